// SPDX-License-Identifier: GPL-2.0-or-later

//! Memory does not grow with the device, nor with the number of extents: of 20 TB, or of the worst there
//! is, data and zeros in turn, as much is needed as of little.
//!
//! What is allocated is counted, so there is one test here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use blksnap::ByteSet;
use blksnap_backup::format::Writer;
use blksnap_backup::testing::{device, test_dir};
use blksnap_backup::{
    Cache, Chain, Checked, Device, Extent, ExtentsWriter, Image, Nobody, Recorder, compare,
    differences, no_work, read,
};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Counts bytes that are allocated.
struct Counting;

// SAFETY: all is done by the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that is allocated at a time by something, more than before.
fn peak(of: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    of();
    PEAK.load(Ordering::Relaxed) - before
}

/// Fails if something takes more memory for many extents than for a tenth of them: so much more is
/// allowed, for blocks of lists, and what is on the way between threads.
fn flat(what: &str, many: u64, more: usize, of: impl Fn(u64)) {
    let few = peak(|| of(many / 10));
    let many = peak(|| of(many));
    println!("{what}: {few} bytes for few extents, {many} for many");
    assert!(many < few + more, "{what}: {few} bytes, then {many}");
}

const SECTOR: u64 = 512;
const MIB: usize = 1 << 20;
const TB: u64 = 1_000_000_000_000;

/// Makes a backup by hand: extents of data and of zeros in turn, at places of a device of `size` bytes.
fn layer(
    checked: &mut Checked,
    dir: &Path,
    size: u64,
    extents: impl Iterator<Item = Extent>,
) -> blksnap_backup::Layer {
    fs::create_dir(dir).unwrap();
    let file = File::create_new(dir.join("vda.raw")).unwrap();
    file.set_len(size).unwrap();
    let mut list = ExtentsWriter::create(&dir.join("vda.extents.jsonl")).unwrap();
    extents.for_each(|extent| list.push(extent).unwrap());
    let entry = Device {
        size,
        extents_blake3: list.finish().unwrap().hash().to_string(),
        ..device("vda")
    };
    checked.layer(dir.to_owned(), &entry).unwrap()
}

/// Two lists of a device of 20 TB: which hide each other, and are looked at from one end to the other.
fn lists_of_20_tb(count: u64) {
    let dir = test_dir();
    let step = 20 * TB / count / SECTOR * SECTOR;
    let data = Extent {
        length: 65536,
        ..Extent::of(0, b"x")
    };
    let all = (0..count).flat_map(|number| {
        let start = number * step;
        [
            Extent { start, ..data },
            Extent::of_zeros(start + 65536..start + step),
        ]
    });
    let some = (0..count).map(|number| Extent {
        start: number * step + 4096,
        ..data
    });
    let mut checked = Checked::default();
    let layers = vec![
        layer(&mut checked, &dir.path().join("1"), count * step, all),
        layer(&mut checked, &dir.path().join("2"), count * step, some),
    ];
    let chain = Chain::new(layers);
    assert_eq!(chain.data_bytes().unwrap(), count * (65536 + 4096));
}

/// What is in a sector.
fn fill(number: u64, sector: &mut [u8]) {
    sector.fill(if number % 2 == 0 {
        1 + (number / 2 % 255) as u8
    } else {
        0
    });
}

/// An image of sectors of data and of zeros in turn, and a chain that has it.
fn sectors(dir: &Path, count: u64) -> Chain {
    let size = count * 2 * SECTOR;
    let hashes: Vec<_> = (0..255)
        .map(|kind| {
            let mut sector = [0; SECTOR as usize];
            fill(kind * 2, &mut sector);
            Extent::of(0, &sector)
        })
        .collect();
    let extents = (0..count).flat_map(|number| {
        let start = number * 2 * SECTOR;
        let data = Extent {
            start,
            ..hashes[(number % 255) as usize]
        };
        [data, Extent::of_zeros(start + SECTOR..start + 2 * SECTOR)]
    });
    let layer = layer(&mut Checked::default(), &dir.join("1"), size, extents);
    let image = File::create_new(dir.join("image")).unwrap();
    let stored = File::options().write(true).open(layer.file()).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let sectors = bytes.len() as u64 / SECTOR;
    for at in (0..size).step_by(bytes.len()) {
        let all = bytes.chunks_mut(SECTOR as usize).enumerate();
        all.for_each(|(index, sector)| fill(at / SECTOR + index as u64, sector));
        let length = (size - at).min(sectors * SECTOR) as usize;
        image.write_all_at(&bytes[..length], at).unwrap();
        stored.write_all_at(&bytes[..length], at).unwrap();
    }
    Chain::new(vec![layer])
}

/// Stores nothing.
struct Nowhere;

impl Writer for Nowhere {
    fn granularity(&self) -> u64 {
        1
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&mut self, _: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A device of grains of data and of zeros in turn is copied, and some of it again.
fn record(count: u64) {
    const GRAIN: u64 = 64 << 10;
    let dir = test_dir();
    let path = dir.path().join("image");
    let size = count * 2 * GRAIN;
    let image = File::create_new(&path).unwrap();
    image.set_len(size).unwrap();
    for number in 0..count {
        image.write_all_at(b"x", number * 2 * GRAIN).unwrap();
    }
    File::create_new(dir.path().join("vda.raw")).unwrap();
    let entry = Device {
        size,
        ..device("vda")
    };
    let mut recorder = Recorder::with(entry, Box::new(Nowhere)).listed_in(dir.path());
    for places in [0..size, 5 * GRAIN..9 * GRAIN, 0..3 * GRAIN] {
        let places = ByteSet::from_iter([places]);
        recorder.copy(&path, places, &Nobody, || Ok(())).unwrap();
    }
    let entry = recorder.finish().unwrap();
    assert_eq!((entry.data_bytes, entry.zero_bytes), (size / 2, size / 2));
}

#[test]
fn memory_is_flat() {
    flat("lists of 20 TB", 300_000, MIB, lists_of_20_tb);
    flat("copying", 20_000, MIB, record);

    let dir = test_dir();
    let chains = |count: u64, of: &dyn Fn(&Path, &Chain, &ByteSet)| {
        let dir = dir.path().join("x");
        fs::create_dir(&dir).unwrap();
        let chain = sectors(&dir, count);
        let all = chain.all();
        // Not what it takes to make it.
        PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
        of(&dir.join("image"), &chain, &all);
        fs::remove_dir_all(dir).unwrap();
    };
    let many = 200_000;
    flat("reading", many, 4 * MIB, |count| {
        chains(count, &|_, chain, all| {
            let mut bytes = 0;
            let wanted = |_: &_| true;
            let seen = chain.seen(all);
            read(
                &chain.layers,
                seen,
                wanted,
                &Nobody,
                no_work,
                |seen, _, good| {
                    bytes += seen.bytes();
                    good
                },
            )
            .unwrap();
            assert_eq!(bytes, count * 2 * SECTOR);
        });
    });
    flat("comparing", many, 4 * MIB, |count| {
        chains(count, &|image, chain, all| {
            let found = differences(image, chain, all, false, &Nobody, || Ok(())).unwrap();
            assert_eq!((found.places.len(), found.read), (0, count * 2 * SECTOR));
        });
    });
    flat("verifying", many, 4 * MIB, |count| {
        chains(count, &|image, chain, all| {
            assert!(compare(image, chain, all, &Nobody).unwrap().is_empty());
        });
    });
    flat("an image", many, 4 * MIB, |count| {
        chains(count, &|_, chain, _| {
            let chain = Chain::new(chain.layers.iter().map(clone).collect());
            let image = Image::new(chain, Arc::new(Cache::new(1 << 20).unwrap()));
            let mut sector = [0; SECTOR as usize];
            for number in (0..2 * count).step_by(count as usize / 50 + 1) {
                image.read(number * SECTOR, &mut sector).unwrap();
                let mut expected = [0; SECTOR as usize];
                fill(number, &mut expected);
                assert_eq!(sector, expected);
            }
        });
    });
}

fn clone(layer: &blksnap_backup::Layer) -> blksnap_backup::Layer {
    blksnap_backup::Layer {
        dir: layer.dir.clone(),
        device: layer.device.clone(),
        extents: layer.extents.clone(),
    }
}
