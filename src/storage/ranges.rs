// SPDX-License-Identifier: GPL-2.0

//! Checks of ranges that a client gives, each as first sector and number of sectors.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*,
    rbtree::RBTree, //
};

/// Fails with `EINVAL` unless all ranges are inside of a device of `sectors` sectors and not
/// empty.
pub(crate) fn check_inside(ranges: &[(u64, u64)], sectors: u64) -> Result {
    let inside = |&(first, count): &(u64, u64)| {
        count > 0 && first.checked_add(count).is_some_and(|end| end <= sectors)
    };
    if ranges.iter().all(inside) {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// Ranges of sectors of a disk that do not overlap: where each starts, and the sector after it.
pub(crate) struct Disjoint(RBTree<u64, u64>);

impl Disjoint {
    /// Ranges given as first sector and number of sectors, counted from `start`. Fails with
    /// `EINVAL` if they overlap. They must end before `u64` does. May sleep.
    pub(crate) fn new(start: u64, ranges: &[(u64, u64)]) -> Result<Self> {
        let mut this = Self(RBTree::new());
        for &(sector, sectors) in ranges {
            let (from, to) = (start + sector, start + sector + sectors);
            if this.overlap(from, to) {
                return Err(EINVAL);
            }
            this.0.try_create_and_insert(from, to, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// Whether one of the ranges has a sector from `start` to before `end`.
    pub(crate) fn overlap(&self, start: u64, end: u64) -> bool {
        match self.0.cursor_lower_bound(&start) {
            Some(next) => {
                *next.current().0 < end
                    || next.peek_prev().is_some_and(|(_, &before)| before > start)
            }
            None => self
                .0
                .cursor_back()
                .is_some_and(|last| *last.current().1 > start),
        }
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_ranges)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inside_of_the_device() {
        assert!(check_inside(&[(0, 100), (99, 1)], 100).is_ok());
        assert!(check_inside(&[], 0).is_ok());
        for bad in [(0, 101), (100, 1), (5, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(check_inside(&[(0, 1), bad], 100).is_err());
        }
    }

    #[test]
    fn overlaps_are_found() -> Result {
        let ranges = Disjoint::new(50, &[(50, 100), (250, 100)])?;
        for (start, end) in [
            (100, 101),
            (150, 160),
            (199, 300),
            (50, 101),
            (50, 500),
            (250, 301),
            (399, 500),
        ] {
            assert!(ranges.overlap(start, end));
        }
        for (start, end) in [(200, 300), (0, 100), (400, 401)] {
            assert!(!ranges.overlap(start, end));
        }
        assert!(!Disjoint::new(0, &[])?.overlap(0, u64::MAX));
        assert!(Disjoint::new(0, &[(10, 10), (19, 1)]).is_err());
        assert!(Disjoint::new(0, &[(10, 10), (20, 1), (9, 1)]).is_ok());
        Ok(())
    }
}
