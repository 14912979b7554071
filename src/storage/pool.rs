// SPDX-License-Identifier: GPL-2.0

//! Allocation of difference storage: ranges of sectors of devices or files, seen as one line of
//! units.
//!
//! The ranges are laid end to end in the order in which they were appended, and what is stored
//! gets the next units of the line. Nothing is ever given back before the snapshot ends, so there
//! is no free list and no fragmentation: what is stored together lies together, and something
//! that does not fit the rest of one range continues in the next one.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*, //
};

use crate::base::units::{
    MAX_UNIT,
    UNIT_SECTORS,
    UNIT_SECTORS_SHIFT,
    UNIT_SHIFT, //
};

/// A range of sectors of a device or file.
#[derive(Clone)]
pub(crate) struct StorageRange<D> {
    /// The first unit in the line.
    first: u64,
    /// The number of units.
    units: u64,
    /// Of which device or file.
    target: D,
    /// The first sector there.
    sector: u64,
}

/// Where a part of the line is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extent<D> {
    /// The device or file.
    pub(crate) target: D,
    /// The first sector there.
    pub(crate) sector: u64,
    /// The number of sectors that lie side by side from there on.
    pub(crate) sectors: u64,
}

/// The line of units.
pub(crate) struct Pool<D> {
    ranges: KVVec<StorageRange<D>>,
    /// Each range, and all that is allocated, has a multiple of so many units: a power of two.
    granule: u64,
    /// Units in all ranges.
    capacity: u64,
    /// Units that were allocated.
    filled: u64,
}

impl<D: Clone> Pool<D> {
    /// Makes an empty pool for what has whole blocks of `block` bytes, a power of two: also where
    /// it begins in the middle of what was stored, and on another range, it begins in a whole block
    /// of that range.
    pub(crate) fn new(block: u32) -> Self {
        Self {
            ranges: KVVec::new(),
            granule: u64::from(block >> UNIT_SHIFT).max(1),
            capacity: 0,
            filled: 0,
        }
    }

    /// The number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Units in all ranges.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Units that were allocated.
    pub(crate) fn filled(&self) -> u64 {
        self.filled
    }

    /// Makes a list with room for the ranges of this pool and `more`. May sleep.
    ///
    /// See [`append`](Self::append).
    pub(crate) fn with_room(len: usize, more: usize) -> Result<KVVec<StorageRange<D>>> {
        Ok(KVVec::with_capacity(
            len.checked_add(more).ok_or(ENOMEM)?,
            GFP_KERNEL,
        )?)
    }

    /// Appends ranges given as first sector and number of sectors; what is less than a unit, or
    /// less than a block, at the end of one is not used.
    ///
    /// `room` comes from [`with_room`](Self::with_room), so that nothing is allocated here. Fails,
    /// and changes nothing, with `ENOMEM` if that is too small, and with `ENOSPC` if the line gets
    /// longer than places can tell. Returns the old list, to be freed where that may sleep.
    pub(crate) fn append(
        &mut self,
        mut room: KVVec<StorageRange<D>>,
        target: &D,
        ranges: &[(u64, u64)],
    ) -> Result<KVVec<StorageRange<D>>> {
        let mut capacity = self.capacity;
        for range in &self.ranges {
            room.push_within_capacity(range.clone())
                .map_err(|_| ENOMEM)?;
        }
        for &(sector, sectors) in ranges {
            let units = sectors >> UNIT_SECTORS_SHIFT;
            let units = units & !(self.granule - 1);
            if units == 0 {
                continue;
            }
            let range = StorageRange {
                first: capacity,
                units,
                target: target.clone(),
                sector,
            };
            room.push_within_capacity(range).map_err(|_| ENOMEM)?;
            capacity = capacity.checked_add(units).ok_or(ENOSPC)?;
        }
        if capacity > u64::from(MAX_UNIT) {
            return Err(ENOSPC);
        }
        self.capacity = capacity;
        Ok(core::mem::replace(&mut self.ranges, room))
    }

    /// Allocates `units` units that lie side by side in the line, and returns the first one.
    pub(crate) fn alloc(&mut self, units: u64) -> Option<u32> {
        let end = self.filled.checked_add(units)?;
        if end > self.capacity {
            return None;
        }
        let first = u32::try_from(self.filled).ok()?;
        self.filled = end;
        Some(first)
    }

    /// Where the `sectors` sectors are that begin `skip` sectors into `unit`, as far as they lie
    /// side by side.
    pub(crate) fn locate(&self, unit: u32, skip: u64, sectors: u64) -> Option<Extent<D>> {
        let unit = u64::from(unit).checked_add(skip >> UNIT_SECTORS_SHIFT)?;
        let skip = skip & (UNIT_SECTORS - 1);
        let after = self.ranges.partition_point(|range| range.first <= unit);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let into = ((unit - range.first) << UNIT_SECTORS_SHIFT) + skip;
        let left = (range.units << UNIT_SECTORS_SHIFT).checked_sub(into)?;
        if left == 0 {
            return None;
        }
        Some(Extent {
            target: range.target.clone(),
            sector: range.sector + into,
            sectors: left.min(sectors),
        })
    }

    /// Calls `f` with the device or file, the first sector and the number of sectors of each range.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&D, u64, u64) -> Result) -> Result {
        for range in &self.ranges {
            f(
                &range.target,
                range.sector,
                range.units << UNIT_SECTORS_SHIFT,
            )?;
        }
        Ok(())
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_pool)]
mod tests {
    use super::*;

    fn pool(ranges: &[(u64, u64)]) -> Result<Pool<u8>> {
        let mut pool = Pool::new(512);
        append(&mut pool, 0, ranges)?;
        Ok(pool)
    }

    fn append(pool: &mut Pool<u8>, device: u8, ranges: &[(u64, u64)]) -> Result {
        let room = Pool::<u8>::with_room(pool.len(), ranges.len())?;
        pool.append(room, &device, ranges)?;
        Ok(())
    }

    fn at(pool: &Pool<u8>, unit: u32, skip: u64, sectors: u64) -> Option<(u8, u64, u64)> {
        pool.locate(unit, skip, sectors)
            .map(|e| (e.target, e.sector, e.sectors))
    }

    #[test]
    fn tails_are_trimmed_to_units() -> Result {
        let pool = pool(&[(100, 23), (200, 7), (300, 8)])?;
        assert_eq!(pool.capacity(), 3);
        assert_eq!(pool.len(), 2);
        Ok(())
    }

    #[test]
    fn large_blocks_are_not_cut() -> Result {
        let mut pool = Pool::new(16 << 10);
        append(&mut pool, 0, &[(0, 7 * 8), (64, 3 * 8), (128, 4 * 8)])?;
        append(&mut pool, 1, &[(32, 4 * 8)])?;
        assert_eq!((pool.len(), pool.capacity()), (3, 12));
        assert_eq!(at(&pool, 0, 0, 999), Some((0, 0, 32)));
        assert_eq!(at(&pool, 4, 0, 999), Some((0, 128, 32)));
        assert_eq!(at(&pool, 8, 0, 999), Some((1, 32, 32)));
        Ok(())
    }

    #[test]
    fn allocations_follow_each_other() -> Result {
        let mut pool = pool(&[(100, 24), (300, 16)])?;
        assert_eq!(pool.alloc(2), Some(0));
        assert_eq!(pool.alloc(2), Some(2));
        assert_eq!(pool.alloc(2), None);
        assert_eq!(pool.alloc(1), Some(4));
        assert_eq!(pool.alloc(1), None);
        assert_eq!(pool.filled(), 5);
        append(&mut pool, 1, &[(0, 8)])?;
        assert_eq!(pool.alloc(1), Some(5));
        assert_eq!(pool.alloc(u64::MAX), None);
        Ok(())
    }

    #[test]
    fn an_allocation_may_cross_ranges() -> Result {
        let mut pool = pool(&[(100, 24)])?;
        append(&mut pool, 1, &[(300, 16)])?;
        assert_eq!(at(&pool, 0, 0, 40), Some((0, 100, 24)));
        assert_eq!(at(&pool, 0, 24, 16), Some((1, 300, 16)));
        assert_eq!(at(&pool, 2, 3, 4), Some((0, 119, 4)));
        assert_eq!(at(&pool, 2, 3, 9), Some((0, 119, 5)));
        assert_eq!(at(&pool, 4, 7, 9), Some((1, 315, 1)));
        assert_eq!(at(&pool, 5, 0, 1), None);
        assert_eq!(at(&pool, u32::MAX, u64::MAX, 1), None);
        Ok(())
    }

    #[test]
    fn the_line_has_an_end() -> Result {
        let mut pool = pool(&[(0, 8 << 32)]).err();
        assert_eq!(pool.take(), Some(ENOSPC));
        Ok(())
    }
}
