// SPDX-License-Identifier: GPL-2.0

//! The parts of a captured device that are difference storage themselves.
//!
//! A difference file normally lives on the very file system that is captured. What the engine
//! writes there must not be copied before, or it would never end, and its blocks have no meaning
//! in the image: they read as zeroes.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*, //
};

/// Ranges of sectors, `start..end`, sorted and not overlapping.
pub(crate) struct Excluded(KVVec<(u64, u64)>);

impl Excluded {
    /// Excludes nothing.
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }

    /// The number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Room for the ranges of a list of `len` ranges and `more`. May sleep.
    pub(crate) fn with_room(len: usize, more: usize) -> Result<Self> {
        let room = len.checked_add(more).ok_or(ENOMEM)?;
        Ok(Self(KVVec::with_capacity(room, GFP_KERNEL)?))
    }

    /// Adds ranges given as first sector and number of sectors, in any order.
    ///
    /// `room` comes from [`with_room`](Self::with_room) and becomes the new list; the old one is
    /// returned, to be freed where that may sleep. Nothing is allocated here.
    pub(crate) fn add(&mut self, mut room: Self, ranges: &[(u64, u64)]) -> Self {
        for &range in &self.0 {
            room.insert(range);
        }
        for &(first, count) in ranges {
            if count > 0 {
                room.insert((first, first.saturating_add(count)));
            }
        }
        core::mem::replace(self, room)
    }

    /// Inserts a range, merged with those that it touches.
    fn insert(&mut self, (mut start, mut end): (u64, u64)) {
        let at = self.0.partition_point(|range| range.1 < start);
        while let Some(&(next_start, next_end)) = self.0.get(at) {
            if next_start > end {
                break;
            }
            start = start.min(next_start);
            end = end.max(next_end);
            if self.0.remove(at).is_err() {
                break;
            }
        }
        // There is room for each range by itself.
        let _ = self.0.insert_within_capacity(at, (start, end));
    }

    /// Whether all sectors from `start` to before `end` are excluded.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        self.next(start)
            .is_some_and(|range| range.0 <= start && end <= range.1)
    }

    /// The ranges, as first sector and the sector after the last one.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// The first range that ends after `sector`.
    pub(crate) fn next(&self, sector: u64) -> Option<(u64, u64)> {
        let at = self.0.partition_point(|range| range.1 <= sector);
        self.0.get(at).copied()
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_excluded)]
mod tests {
    use super::*;

    fn list(ranges: &[(u64, u64)]) -> Result<Excluded> {
        let mut list = Excluded::new();
        for range in ranges {
            let room = Excluded::with_room(list.len(), 1)?;
            list.add(room, &[*range]);
        }
        Ok(list)
    }

    #[test]
    fn sorted_and_merged() -> Result {
        let list = list(&[(50, 10), (10, 10), (30, 5), (20, 10), (34, 2), (70, 0)])?;
        assert_eq!(list.0.as_slice(), &[(10, 36), (50, 60)]);
        Ok(())
    }

    #[test]
    fn covers_whole_ranges_only() -> Result {
        let list = list(&[(10, 10), (30, 10)])?;
        assert!(list.covers(10, 20));
        assert!(list.covers(12, 13));
        assert!(!list.covers(9, 11));
        assert!(!list.covers(19, 21));
        assert!(!list.covers(10, 40));
        assert!(!list.covers(20, 21));
        assert!(!Excluded::new().covers(0, 1));
        Ok(())
    }

    #[test]
    fn next_range() -> Result {
        let list = list(&[(10, 10), (30, 10)])?;
        assert_eq!(list.next(0), Some((10, 20)));
        assert_eq!(list.next(19), Some((10, 20)));
        assert_eq!(list.next(20), Some((30, 40)));
        assert_eq!(list.next(40), None);
        Ok(())
    }
}
