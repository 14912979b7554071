// SPDX-License-Identifier: GPL-2.0

//! The parts of a captured device that are difference storage themselves.
//!
//! A difference file normally lives on the very file system that is captured. What the engine
//! writes there must not be copied before, or it would never end, and its blocks have no meaning
//! in the image: they read as zeroes.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*,
    rbtree::RBTree, //
};

/// Ranges of sectors, `start..end`, sorted and not overlapping.
pub(crate) struct Excluded(KVVec<(u64, u64)>);

impl Excluded {
    /// Excludes nothing.
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }

    /// These ranges and others, given as first sector and number of sectors, in any order. May
    /// sleep.
    pub(crate) fn with(&self, ranges: &[(u64, u64)]) -> Result<Self> {
        let mut sorted: RBTree<u64, u64> = RBTree::new();
        for &(start, count) in ranges {
            let end = start.saturating_add(count);
            match sorted.get_mut(&start) {
                Some(other) => *other = end.max(*other),
                None => drop(sorted.try_create_and_insert(start, end, GFP_KERNEL)?),
            }
        }
        let room = self.0.len().checked_add(ranges.len()).ok_or(ENOMEM)?;
        let mut merged = Self(KVVec::with_capacity(room, GFP_KERNEL)?);
        let mut old = self.0.iter().copied().peekable();
        for (&start, &end) in sorted.iter() {
            while let Some(range) = old.next_if(|range| range.0 <= start) {
                merged.push(range)?;
            }
            merged.push((start, end))?;
        }
        old.try_for_each(|range| merged.push(range))?;
        Ok(merged)
    }

    /// Adds a range that begins at or after the last one, with which it is merged if they touch.
    /// There must be room.
    fn push(&mut self, (start, end): (u64, u64)) -> Result {
        match self.0.last_mut() {
            Some(last) if start <= last.1 => last.1 = end.max(last.1),
            _ if start < end => self
                .0
                .push_within_capacity((start, end))
                .map_err(|_| ENOMEM)?,
            _ => {}
        }
        Ok(())
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
            list = list.with(&[*range])?;
        }
        Ok(list)
    }

    #[test]
    fn many_at_once_in_any_order() -> Result {
        let ranges = [
            (50, 10),
            (10, 10),
            (30, 5),
            (20, 10),
            (34, 2),
            (70, 0),
            (10, 3),
        ];
        let all = Excluded::new().with(&ranges)?;
        assert_eq!(all.0.as_slice(), list(&ranges)?.0.as_slice());
        let more = all.with(&[(60, 1), (0, 5), (100, 1), (5, 5)])?;
        assert_eq!(more.0.as_slice(), &[(0, 36), (50, 61), (100, 101)]);
        Ok(())
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
