// SPDX-License-Identifier: GPL-2.0

//! How much to copy at once: the chunks that a write needs, or some of their neighbours, too.
//!
//! Chunks are small, so that scattered writes copy little more than they overwrite. But where
//! writes are dense, copying each chunk by itself costs as many reads and writes as there are
//! chunks. So a copy takes untouched neighbours along, up to [`COPY_WINDOW`] bytes, if
//!
//! - there are signs of dense writing: something else in the window was copied already, or half of
//!   the window before or after it; and
//! - it stays within the budget: all that was copied of the device is never more than `ratio`
//!   times what was overwritten; and
//! - the storage has room to spare, see [`Space::spare`]: the rest of it is for what is needed.
//!
//! A chunk that was copied ahead and is overwritten later counts as overwritten from then on, see
//! [`ChunkMap::take_ahead`], and so adds to the budget: where copying ahead pays, copies grow from
//! one to the next, until the window bounds them; where it does not, the budget is soon used up.

use core::ops::Range;

#[cfg(doc)]
use crate::storage::space::Space;
use crate::{
    base::units::{
        Geometry,
        COPY_WINDOW,
        SECTOR_SHIFT,
        UNIT_SHIFT, //
    },
    copying::chunk_map::{
        ChunkMap,
        MAX_RUN, //
    }, //
};

const _: () = assert!(COPY_WINDOW >> UNIT_SHIFT <= MAX_RUN);

/// The account of one device. All numbers are chunks.
pub(crate) struct Account {
    /// How many may be copied for one that is overwritten.
    ratio: u64,
    /// Copied because they were about to be overwritten, or copied ahead and overwritten since.
    needed: u64,
    /// Copied, needed or not.
    copied: u64,
}

impl Account {
    /// Nothing was copied. With a ratio of 1 nothing is ever copied ahead.
    pub(crate) fn new(ratio: u64) -> Self {
        Self {
            ratio,
            needed: 0,
            copied: 0,
        }
    }

    /// The chunks to copy, if those of the untouched `run` are needed; `spare` tells for how many
    /// more there is room.
    pub(crate) fn extend(
        &self,
        map: &ChunkMap,
        geometry: &Geometry,
        run: Range<u64>,
        spare: impl FnOnce() -> u64,
    ) -> Range<u64> {
        let (first, count) = (run.start, run.end - run.start);
        let allowed = (self.needed + count).saturating_mul(self.ratio);
        let budget = allowed.saturating_sub(self.copied);
        let mut size = COPY_WINDOW >> (geometry.chunk_shift + SECTOR_SHIFT);
        let window = |size: u64| {
            let start = first & !(size - 1);
            (start, (start + size).min(geometry.chunks()))
        };
        if self.ratio <= 1 || size <= count || budget <= count {
            return run;
        }
        let (start, end) = window(size);
        if map.untouched_until(start, end) == end && !Self::is_dense_beside(map, start, end) {
            return run;
        }
        let budget = budget.min(count.saturating_add(spare()));
        let since = map.untouched_since(start, first);
        let until = map.untouched_until(first + count, end);
        // The largest part of the window that the budget allows for.
        while size > count {
            let (start, end) = window(size);
            if first + count <= end {
                let (from, to) = (since.max(start), until.min(end));
                if to - from <= budget {
                    return from..to;
                }
            }
            size /= 2;
        }
        run
    }

    /// Whether half of the window before that from `start` to before `end`, or of the one after it,
    /// was copied.
    fn is_dense_beside(map: &ChunkMap, start: u64, end: u64) -> bool {
        let size = end - start;
        let dense = |from, to| 2 * map.touched(from, to) >= size;
        start >= size && dense(start - size, start) || dense(end, end.saturating_add(size))
    }

    /// `copied` chunks are being copied, `needed` of them because they are about to be
    /// overwritten.
    pub(crate) fn add(&mut self, copied: u64, needed: u64) {
        self.copied += copied;
        self.needed += needed;
    }

    /// `hits` chunks that were copied ahead are being overwritten.
    pub(crate) fn hit(&mut self, hits: u64) {
        self.needed += hits;
    }

    /// Takes [`add`](Self::add) back, since the device could not be read; from now on nothing is
    /// copied ahead, which might have been the reason.
    pub(crate) fn give_up(&mut self, copied: u64, needed: u64) {
        self.copied = self.copied.saturating_sub(copied);
        self.needed = self.needed.saturating_sub(needed);
        self.ratio = 1;
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kernel::macros::kunit_tests(blksnap_ahead)]
mod tests {
    use super::*;
    use crate::copying::chunk_map::{
        OldWindow,
        Overwrite,
        Place, //
    };
    use kernel::{
        alloc::flags::GFP_KERNEL,
        prelude::*, //
    };

    /// What came of writing single chunks.
    struct Outcome {
        overwritten: u64,
        copied: u64,
        copies: u64,
    }

    /// Writes chunks of a device of `chunks` chunks of 4 KiB, in this order, and checks the bound
    /// after each.
    fn write(ratio: u64, chunks: u64, order: impl Iterator<Item = u64>) -> Result<Outcome> {
        let geometry = Geometry::new(chunks << 3, 12, 63, u64::MAX);
        let map = ChunkMap::new(chunks)?;
        let mut account = Account::new(ratio);
        let mut old = KVec::new();
        let mut outcome = Outcome {
            overwritten: 0,
            copied: 0,
            copies: 0,
        };
        for chunk in order {
            if map.overwrite(chunk, chunk + 1) != Overwrite::No {
                let hits = map.take_ahead(chunk, chunk + 1);
                account.hit(hits);
                outcome.overwritten += hits;
                continue;
            }
            let needed = chunk..chunk + 1;
            let run = account.extend(&map, &geometry, needed.clone(), || u64::MAX);
            assert!(run.contains(&chunk) && run.end <= chunks);
            for other in run.clone() {
                assert_eq!(map.get(other), Place::Untouched);
            }
            let count = run.end - run.start;
            account.add(count, 1);
            for window in map
                .claim(map.prepare(run.clone(), &needed)?)
                .into_iter()
                .flatten()
            {
                old.push(window, GFP_KERNEL)?;
            }
            map.set(run, |_| Place::Stored(0));
            outcome.overwritten += 1;
            outcome.copied += count;
            outcome.copies += 1;
            assert!(outcome.copied <= ratio * outcome.overwritten);
        }
        OldWindow::free_all(&mut old);
        Ok(outcome)
    }

    /// All numbers below `count`, a power of two, in an order that looks random.
    fn shuffled(count: u64) -> impl Iterator<Item = u64> {
        (0..count).scan(1u64, move |at, _| {
            *at = (*at * 5 + 12345) & (count - 1);
            // The low bits of such a sequence are too regular.
            Some((*at ^ (*at >> 5)) & (count - 1))
        })
    }

    #[test]
    fn sparse_writes_copy_only_themselves() -> Result {
        let outcome = write(4, 1 << 14, (0..256).map(|i| i * 64 + i % 64))?;
        assert_eq!(outcome.copied, 256);
        Ok(())
    }

    #[test]
    fn sequential_writes_grow() -> Result {
        let outcome = write(4, 1 << 14, 0..1 << 14)?;
        assert_eq!(outcome.copied, 1 << 14);
        assert!(outcome.copies < (1 << 14) / 16);
        Ok(())
    }

    #[test]
    fn random_writes_of_all_are_copied_in_few_pieces() -> Result {
        let outcome = write(4, 1 << 14, shuffled(1 << 14))?;
        assert_eq!(outcome.copied, outcome.overwritten);
        assert!(outcome.copies < (1 << 14) / 5);
        Ok(())
    }

    #[test]
    fn the_bound_holds_wherever_writing_ends() -> Result {
        for part in [1, 10, 100, 1000, 5000] {
            write(4, 1 << 14, shuffled(1 << 14).take(part))?;
        }
        // Clusters of two, in windows far apart: what looks dense, and is not.
        let pairs = (0..512).map(|i| (i / 2) * 64 + (i % 2) * 40);
        let outcome = write(4, 1 << 14, pairs)?;
        assert_eq!(outcome.overwritten, 512);
        assert!(outcome.copied <= 4 * 512);
        Ok(())
    }

    #[test]
    fn beside_what_is_dense() -> Result {
        let geometry = Geometry::new(256 << 3, 12, 63, u64::MAX);
        let map = ChunkMap::new(256)?;
        let mut account = Account::new(4);
        account.add(32, 32);
        let claim = |run: Range<u64>| map.prepare(run.clone(), &run).map(|run| map.claim(run));
        claim(64..95)?;
        let extend = |run| account.extend(&map, &geometry, run, || u64::MAX);
        assert_eq!(extend(16..32), 16..32);
        assert_eq!(extend(128..144), 128..144);
        claim(95..96)?;
        assert_eq!(extend(16..32), 0..64);
        assert_eq!(extend(130..146), 128..192);
        // Farther away it says nothing.
        assert_eq!(extend(192..208), 192..208);
        Ok(())
    }

    #[test]
    fn a_ratio_of_one_is_off() -> Result {
        let outcome = write(1, 1 << 10, 0..1 << 10)?;
        assert_eq!(outcome.copies, 1 << 10);
        Ok(())
    }

    #[test]
    fn no_room_to_spare_and_giving_up() -> Result {
        let geometry = Geometry::new(64 << 3, 12, 63, u64::MAX);
        let map = ChunkMap::new(64)?;
        let mut account = Account::new(4);
        account.add(1, 1);
        map.claim(map.prepare(0..1, &(0..1))?);
        assert_eq!(account.extend(&map, &geometry, 1..2, || 100), 1..8);
        assert_eq!(account.extend(&map, &geometry, 1..2, || 5), 1..4);
        assert_eq!(account.extend(&map, &geometry, 1..2, || 0), 1..2);
        account.give_up(1, 1);
        account.hit(1000);
        assert_eq!(account.extend(&map, &geometry, 1..2, || 100), 1..2);
        Ok(())
    }
}
