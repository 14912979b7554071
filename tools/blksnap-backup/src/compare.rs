// SPDX-License-Identifier: GPL-2.0-or-later

//! Comparing a backup with the image it was made from, byte for byte.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use blksnap::ByteSet;

use crate::buffer::Buffer;
use crate::chain::{Chain, Layer};
use crate::copy::{Source, pieces};
use crate::format::Reader;
use crate::pipeline;
use crate::watch::Watch;

/// What is told apart: more ranges than that would not be of use, and would take much memory.
const SECTOR: usize = 512;

/// Compares places of an image with what the layers of a backup have there. Gives the sectors that
/// differ.
pub fn compare(
    image: &Path,
    chain: &Chain,
    places: &ByteSet,
    watch: &dyn Watch,
) -> Result<ByteSet> {
    let mut wrong = ByteSet::default();
    for layer in &chain.layers {
        let parts = parts(layer, places);
        let start = || {
            let mut source = Source::open(image)?;
            let mut reader = layer.reader()?;
            let mut ours = Buffer::new();
            Ok(
                move |buffer: &mut Buffer, (range, data): &(Range<u64>, bool)| {
                    let length = (range.end - range.start) as usize;
                    let theirs = &mut buffer.bytes_mut()[..length];
                    source.read(range.start, theirs)?;
                    let ours = &mut ours.bytes_mut()[..length];
                    match data {
                        true => reader.read(range.start, ours)?,
                        false => ours.fill(0),
                    }
                    let mut wrong = ByteSet::default();
                    differing(ours, theirs).for_each(|part| {
                        wrong.insert(range.start + part.start..range.start + part.end);
                    });
                    Ok(wrong)
                },
            )
        };
        let parts = parts.iter().cloned();
        pipeline::run(parts, start, watch, |_, (range, _), found| {
            found.iter().for_each(|part| wrong.insert(part));
            watch.advance(range.end - range.start);
            Ok(())
        })?;
    }
    Ok(wrong)
}

/// What is seen of a layer in some places, in pieces, and whether that is data.
fn parts(layer: &Layer, places: &ByteSet) -> Vec<(Range<u64>, bool)> {
    let mut parts = Vec::new();
    for extent in layer.extents.iter() {
        for part in layer.visible(extent) {
            let inside: Vec<_> = places.inside(part).collect();
            let data = extent.hash.is_some();
            parts.extend(pieces(inside.into_iter()).map(|piece| (piece, data)));
        }
    }
    parts
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
