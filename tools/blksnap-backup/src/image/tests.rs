// SPDX-License-Identifier: GPL-2.0-or-later

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::chain::Damaged;
use crate::format::Format;
use crate::repository::Repository;
use crate::testing::{SIZE, Store, numbers, three, three_in};

const MIB: usize = 1 << 20;

fn image(store: &Store, id: &str, cache: &Arc<Cache>) -> Image {
    let (repository, _) = Repository::read(store.path()).unwrap();
    let manifest = repository.manifest(id).unwrap();
    let chain = Chain::open(&repository, &manifest, &manifest.devices[0]).unwrap();
    Image::new(chain, cache.clone())
}

#[test]
fn every_place_is_as_it_was_for_many_readers() {
    let stores = [
        three(Format::Raw),
        three(Format::Qcow2),
        three(Format::RbdDiff),
        three_in(Store::compressed(SIZE as u64)),
    ];
    for (number, (store, backups)) in stores.into_iter().enumerate() {
        let bound = 4 * MIB as u64;
        let cache = Arc::new(Cache::new(bound).unwrap());
        let images: Vec<_> = backups
            .iter()
            .map(|(id, _)| image(&store, id, &cache))
            .collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (images, backups, cache) = (&images, &backups, &cache);
                scope.spawn(move || {
                    let mut random = numbers(100 + thread);
                    for _ in 0..200 {
                        let which = random.next().unwrap() % images.len();
                        let start = random.next().unwrap() % SIZE;
                        let length = random.next().unwrap() % (300 << 10);
                        let end = SIZE.min(start + length);
                        let mut found = vec![1; end - start];
                        images[which].read(start as u64, &mut found).unwrap();
                        assert!(
                            found == backups[which].1[start..end],
                            "{number}: {start}..{end}"
                        );
                        assert!(cache.bytes() <= bound);
                    }
                });
            }
        });
        let mut all = vec![1; SIZE];
        images[2].read(0, &mut all).unwrap();
        assert!(all == backups[2].1, "{number}");
        assert!(images[2].read(SIZE as u64 - 1, &mut [0; 2]).is_err());
        assert!(images[2].read(u64::MAX, &mut [0; 2]).is_err());
        assert!(images[2].read(SIZE as u64, &mut []).is_ok());
    }
}

#[test]
fn damage_is_where_it_is_and_named() {
    let (store, backups) = three(Format::Raw);
    let (id, data) = &backups[2];
    let file = store.path().join(&backups[0].0).join("vda.raw");
    let place = 8 * MIB + 5;
    let damaged = File::options().write(true).open(&file).unwrap();
    damaged.write_all_at(&[!data[place]], place as u64).unwrap();
    let cache = Arc::new(Cache::new(8 * MIB as u64).unwrap());
    let image = image(&store, id, &cache);
    for _ in 0..2 {
        // The whole extent is not to be believed.
        let error = image.read(8 * MIB as u64 + 4096, &mut [0; 10]).unwrap_err();
        let found = error.downcast_ref::<Damaged>().unwrap();
        assert_eq!(found.file, file);
        assert!(found.place.contains(&(place as u64)));
        assert!(
            format!("{error:#}").contains("the checksum is wrong"),
            "{error:#}"
        );
    }
    let mut good = vec![0; 8 * MIB];
    image.read(0, &mut good).unwrap();
    assert!(good == data[..8 * MIB]);
}

#[test]
fn who_wants_the_same_waits_for_it() {
    let cache = Cache::new(4 * MIB as u64).unwrap();
    let extent = Extent::of(0, &[7; 8192]);
    let (loads, start) = (AtomicU32::new(0), Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let load = || {
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok(Buffer::with_room(8192))
                };
                cache.extent(&extent, load).unwrap();
            });
        }
    });
    assert_eq!(loads.into_inner(), 1);
    // A failure is of one reader, and the next one tries again.
    let other = Extent::of(0, &[8; 8192]);
    assert!(cache.extent(&other, || bail!("no")).is_err());
    assert!(cache.extent(&other, || Ok(Buffer::with_room(8192))).is_ok());
}
