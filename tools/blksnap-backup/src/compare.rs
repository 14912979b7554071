// SPDX-License-Identifier: GPL-2.0-or-later

//! Comparing a backup with the image it was made from, byte for byte.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use blksnap::ByteSet;

use crate::buffer::Buffer;
use crate::chain::Chain;
use crate::copy::Source;
use crate::format::Reader;
use crate::pipeline;
use crate::reading::Readers;
use crate::stretch::{Stretch, stretches};
use crate::watch::Watch;

/// What is told apart: more ranges than that would not be of use.
const SECTOR: usize = 512;

/// Compares places of an image with what the layers of a backup have there. Gives the sectors that
/// differ.
///
/// What is found is in memory: of a large device, compare a part after the other.
pub fn compare(
    image: &Path,
    chain: &Chain,
    places: &ByteSet,
    watch: &dyn Watch,
) -> Result<ByteSet> {
    let readers = Readers::new(false);
    let start = || {
        let source = Source::open(image)?;
        let mut ours = Buffer::new();
        let readers = &readers;
        Ok(move |buffer: &mut Buffer, stretch: &Stretch| {
            for range in stretch.ranges() {
                source.read(range.start, &mut buffer.bytes_mut()[stretch.place(&range)])?;
            }
            let mut wrong = ByteSet::default();
            for seen in &stretch.items {
                for part in &seen.parts {
                    let place = stretch.place(part);
                    let ours = &mut ours.bytes_mut()[place.clone()];
                    match seen.is_zeros() {
                        true => ours.fill(0),
                        false => readers.read(&chain.layers[seen.layer], part.start, ours)?,
                    }
                    for sectors in differing(ours, &buffer.bytes()[place]) {
                        wrong.insert(part.start + sectors.start..part.start + sectors.end);
                    }
                }
            }
            Ok(wrong)
        })
    };
    let mut wrong = ByteSet::default();
    let stretches = stretches(chain.seen(places));
    pipeline::run(stretches, start, watch, |_, stretch, found: ByteSet| {
        found.iter().for_each(|part| wrong.insert(part));
        watch.advance(stretch.bytes());
        Ok(())
    })?;
    Ok(wrong)
}

/// The sectors in which two pieces of the same length differ.
fn differing<'a>(a: &'a [u8], b: &'a [u8]) -> impl Iterator<Item = Range<u64>> + 'a {
    let both = a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate();
    both.filter(|(_, (a, b))| a != b).map(|(at, (a, _))| {
        let start = (at * SECTOR) as u64;
        start..start + a.len() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Repository;
    use crate::testing::Store;
    use crate::watch::Nobody;

    #[test]
    fn neighbours_that_differ_are_one_range() {
        let (zeros, mut ones) = ([0; 4096 + 100], [1; 4096 + 100]);
        ones[1024..2048].fill(0);
        let found: ByteSet = differing(&zeros, &ones).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), [0..1024, 2048..4196]);
    }

    #[test]
    fn differences_are_found_in_the_places() {
        let store = Store::new(12 << 20);
        let mut data = vec![0u8; 12 << 20];
        data[5000..9 << 20].fill(3);
        let full = store.full(&data);
        let first = 4096 * 5;
        data[first..first + 65536].fill(0);
        let id = store.incremental(&full, &data, &[first as u64..first as u64 + 65536]);
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(&id).unwrap();
        let chain = Chain::open(&repository, &manifest, &manifest.devices[0]).unwrap();

        let image = store.path().join("image");
        let with = |data: &[u8], place: Range<u64>| {
            std::fs::write(&image, data).unwrap();
            let places = std::iter::once(place).collect();
            let wrong = compare(&image, &chain, &places, &Nobody);
            wrong.unwrap().iter().collect::<Vec<_>>()
        };
        let all = 0..12 << 20;
        assert_eq!(with(&data, all.clone()), []);
        for at in [0, first + 7, 8 << 20, 11 << 20] {
            data[at] ^= 1;
            let start = (at - at % SECTOR) as u64;
            let end = start + SECTOR as u64;
            assert_eq!(with(&data, all.clone()), [start..end]);
            assert_eq!(with(&data, end..12 << 20), []);
            data[at] ^= 1;
        }
    }
}
