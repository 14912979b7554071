// SPDX-License-Identifier: GPL-2.0-or-later

//! Where an image differs from a backup of the same device, when nobody knows what has changed.
//!
//! ```text
//! extent of data, all of it seen ── checksum of the image's bytes ── equal: the same
//!                                                                 └─ else: with the base's bytes
//! extent of data, seen in part ──── with the base's bytes, in grains of 64 KiB
//! extent of zeros ───────────────── the image's bytes are zeros, or differ
//! ```
//!
//! So of the base, only the lists are read, but for what has changed; the image is read once, in
//! order, by several threads. What the base cannot tell any more, since it is damaged there, differs.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, ensure};
use blksnap::ByteSet;

use crate::buffer::{Buffer, GRAIN, is_zero};
use crate::chain::Chain;
use crate::copy::Source;
use crate::format::Reader;
use crate::pipeline;
use crate::reading::Readers;
use crate::seen::Seen;
use crate::stretch::{Stretch, stretches};
use crate::unreadable;
use crate::watch::Watch;

/// What a comparison has found.
#[derive(Debug, Default)]
pub struct Differences {
    /// Where the image differs, in grains, or could not be read.
    pub places: ByteSet,
    /// Bytes read from the image.
    pub read: u64,
}

/// Compares places of an image with what a chain of backups has there. With `skip_unreadable`, what
/// cannot be read of the image differs, and is no error; `after_loss` says then whether to go on.
///
/// What is found is in memory: of a large device, compare a part after the other.
pub fn differences(
    image: &Path,
    chain: &Chain,
    places: &ByteSet,
    skip_unreadable: bool,
    watch: &dyn Watch,
    after_loss: impl Fn() -> Result<()>,
) -> Result<Differences> {
    watch.expect(places.len());
    let readers = Readers::new(false);
    let start =
        || {
            let worker = Worker {
                source: Source::open(image)?,
                readers: &readers,
                chain,
                skip_unreadable,
            };
            // An extent of the base.
            let mut base = Buffer::new();
            Ok(move |buffer: &mut Buffer, stretch: &Stretch| {
                worker.compare(stretch, buffer, &mut base)
            })
        };
    let mut found = Differences::default();
    let stretches = stretches(chain.seen(places));
    pipeline::run(stretches, start, watch, |_, stretch, (differing, lost)| {
        if lost {
            after_loss()?;
        }
        differing
            .into_iter()
            .for_each(|range| found.places.insert(range));
        found.read += stretch.bytes();
        watch.advance(stretch.bytes());
        Ok(())
    })?;
    Ok(found)
}

/// What one thread has.
struct Worker<'a> {
    source: Source,
    /// The files of the layers, those that were needed.
    readers: &'a Readers,
    chain: &'a Chain,
    skip_unreadable: bool,
}

impl Worker<'_> {
    /// The places of a stretch that differ, and whether some could not be read.
    fn compare(
        &self,
        stretch: &Stretch,
        buffer: &mut Buffer,
        base: &mut Buffer,
    ) -> Result<(Vec<Range<u64>>, bool)> {
        let mut lost = ByteSet::default();
        for range in stretch.ranges() {
            let bytes = &mut buffer.bytes_mut()[stretch.place(&range)];
            if self.skip_unreadable {
                let bad = unreadable::read(&self.source, range.start, bytes)?;
                bad.into_iter().for_each(|range| lost.insert(range));
            } else {
                self.source.read(range.start, bytes)?;
            }
        }
        let mut differing = Vec::new();
        for seen in &stretch.items {
            let mut base_is_read = None;
            for part in &seen.parts {
                if lost.inside(part.clone()).next().is_some() {
                    differing.push(part.clone());
                    continue;
                }
                let bytes = &buffer.bytes()[stretch.place(part)];
                if seen.is_zeros() {
                    differing.extend(grains(part.clone(), bytes, |_, grain| is_zero(grain)));
                    continue;
                }
                if *part == seen.extent.range() && seen.extent.matches(bytes) {
                    continue;
                }
                // Damage of the base is no error: here is the data.
                let read = *base_is_read.get_or_insert_with(|| self.read_base(seen, base).is_ok());
                let base = base.bytes();
                differing.extend(grains(part.clone(), bytes, |at, grain| {
                    let at = (part.start - seen.extent.start) as usize + at;
                    read && base[at..at + grain.len()] == *grain
                }));
            }
        }
        Ok((differing, !lost.is_empty()))
    }

    /// Reads an extent of a layer, all of it, so that its checksum can be told.
    fn read_base(&self, seen: &Seen, base: &mut Buffer) -> Result<()> {
        let layer = &self.chain.layers[seen.layer];
        let bytes = &mut base.bytes_mut()[..seen.extent.length as usize];
        self.readers.read(layer, seen.extent.start, bytes)?;
        ensure!(seen.extent.matches(bytes), "the checksum is wrong");
        Ok(())
    }
}

/// Cuts a range, which has these bytes, into grains, and gives those that are not the same. `same`
/// gets where a grain is in `bytes`, and the grain.
fn grains(range: Range<u64>, bytes: &[u8], same: impl Fn(usize, &[u8]) -> bool) -> Vec<Range<u64>> {
    let mut differing = Vec::new();
    let mut start = range.start;
    while start < range.end {
        // The next multiple of a grain; no sum overflows, since devices end before.
        let end = (start / GRAIN as u64 + 1) * GRAIN as u64;
        let end = end.min(range.end);
        let at = (start - range.start) as usize;
        let grain = &bytes[at..at + (end - start) as usize];
        if !same(at, grain) {
            differing.push(start..end);
        }
        start = end;
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Repository;
    use crate::testing::Store;
    use crate::watch::Nobody;

    const MIB: usize = 1 << 20;
    const GRAIN: u64 = super::GRAIN as u64;

    /// A full backup and an incremental one, of a device of 6 MiB and a half sector more.
    fn store() -> (Store, Vec<u8>, String) {
        let size = 6 * MIB + 512;
        let store = Store::new(size as u64);
        let mut data: Vec<u8> = (0..size).map(|i| ((i * 7) >> 3) as u8 | 1).collect();
        data[2 * MIB..3 * MIB].fill(0);
        let full = store.full(&data);
        // Inside an extent of the full one, of which both ends are seen.
        let at = MIB + 300_032;
        data[at..at + 9000].fill(9);
        data[4 * MIB..5 * MIB].fill(0);
        let (at, mib) = (at as u64, MIB as u64);
        let id = store.incremental(&full, &data, &[at..at + 9000, 4 * mib..5 * mib]);
        (store, data, id)
    }

    fn found(store: &Store, id: &str, data: &[u8], places: Range<u64>) -> Vec<Range<u64>> {
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(id).unwrap();
        let chain = Chain::open(&repository, &manifest, &manifest.devices[0]).unwrap();
        let image = store.path().join(".image");
        std::fs::write(&image, data).unwrap();
        let places = std::iter::once(places).collect();
        let found = differences(&image, &chain, &places, false, &Nobody, || Ok(())).unwrap();
        assert_eq!(found.read, places.len());
        found.places.iter().collect()
    }

    #[test]
    fn only_the_grains_that_differ_are_found() {
        let (store, mut data, id) = store();
        let size = data.len() as u64;
        assert_eq!(found(&store, &id, &data, 0..size), []);
        for at in [
            0,
            MIB + 299_000,
            MIB + 300_100,
            MIB + 310_000,
            2 * MIB + 5,
            4 * MIB + 70_000,
            6 * MIB + 511,
        ] {
            data[at] ^= 0x55;
            let start = at as u64 / GRAIN * GRAIN;
            let grain = start..(start + GRAIN).min(size);
            // Less, where the grain is in two layers.
            let one = found(&store, &id, &data, 0..size);
            assert_eq!(one.len(), 1, "{at}");
            assert!(one[0].contains(&(at as u64)), "{at} {one:?}");
            assert!(
                one[0].start >= grain.start && one[0].end <= grain.end,
                "{at} {one:?}"
            );
            assert_eq!(found(&store, &id, &data, grain.end..size), []);
            data[at] ^= 0x55;
        }
        data.fill(0);
        let differing: ByteSet = found(&store, &id, &data, 0..size).into_iter().collect();
        let mib = MIB as u64;
        let zeros = [2 * mib..3 * mib, 4 * mib..5 * mib];
        assert_eq!(differing.outside(0..size).collect::<Vec<_>>(), zeros);
    }

    #[test]
    fn what_the_base_has_lost_differs() {
        let (store, mut data, id) = store();
        let size = data.len() as u64;
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(&id).unwrap();
        let base = repository.dir(manifest.base.as_deref().unwrap());
        std::fs::write(base.join("vda.raw"), vec![7; data.len()]).unwrap();
        drop(repository);
        // Where a checksum tells, the base is not read; where an extent is seen in part, it must be.
        let first: ByteSet = found(&store, &id, &data, 0..size).into_iter().collect();
        assert!(
            first
                .iter()
                .all(|range| range.start >= MIB as u64 && range.end <= 2 * MIB as u64)
        );
        assert!(!first.is_empty());
        data[0] ^= 1;
        let all = found(&store, &id, &data, 0..size);
        assert!(all[0].start == 0 && all[0].end >= MIB as u64, "{all:?}");
    }

    #[test]
    fn an_image_that_ends_too_early_is_an_error() {
        let (store, data, id) = store();
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(&id).unwrap();
        let chain = Chain::open(&repository, &manifest, &manifest.devices[0]).unwrap();
        let image = store.path().join(".image");
        std::fs::write(&image, &data[..5 * MIB]).unwrap();
        let places = std::iter::once(0..data.len() as u64).collect();
        // The end of a file is no error of a medium.
        for skip in [false, true] {
            assert!(differences(&image, &chain, &places, skip, &Nobody, || Ok(())).is_err());
        }
    }
}
