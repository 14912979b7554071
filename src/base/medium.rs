// SPDX-License-Identifier: GPL-2.0

//! What happens to the data of a tracked device though no bio changes it.
//!
//! What lies behind the end that a disk had for a while may be another's data when the disk has
//! grown again: a map of changes does not hold any more, nor does what is read there for an image.
//! All of it may be when the disk is made of something else: it got another table of device mapper,
//! or what it lies on did. And a disk that had no sector at all may have another medium. What was
//! written while the machine hibernated is not known, either.
//!
//! The block layer tells of each change before it takes effect, and so before the driver can hand
//! out other data. Hence a reader first reads the data, and then looks here: if it finds that
//! nothing happened, nothing had when the data was read.

use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};

/// How the disk that a tracked device is, or is on, has changed since tracking began. No locks, and
/// for any context.
pub(crate) struct Medium {
    /// How often the disk got smaller, or other data.
    shrinks: Atomic<u32>,
    /// The least number of sectors that were the same then as before.
    least: Atomic<u64>,
    /// It had none at all.
    lost_medium: Atomic<bool>,
}

impl Medium {
    /// Of a device that is not tracked yet.
    pub(crate) fn new() -> Self {
        Self {
            shrinks: Atomic::new(0),
            least: Atomic::new(u64::MAX),
            lost_medium: Atomic::new(false),
        }
    }

    /// The disk is about to change from `old` to `new` sectors.
    pub(crate) fn resized(&self, old: u64, new: u64) {
        if new == 0 {
            self.lost_medium.store(true, Release);
        } else if new < old {
            self.forget_from(new);
        }
    }

    /// The disk is about to get other data: as if it had been cut down to nothing.
    pub(crate) fn replaced(&self) {
        self.forget_from(0);
    }

    fn forget_from(&self, sectors: u64) {
        let mut least = self.least.load(Relaxed);
        while sectors < least {
            match self.least.cmpxchg(least, sectors, Relaxed) {
                Ok(_) => break,
                Err(now) => least = now,
            }
        }
        // Who sees the new number sees the new minimum.
        self.shrinks.fetch_add(1, Release);
    }

    /// A number that is another one after the disk got smaller, or other data.
    pub(crate) fn shrinks(&self) -> u32 {
        // Pairs with the release above.
        self.shrinks.load(Acquire)
    }

    /// Whether the disk got smaller since [`shrinks`](Self::shrinks) was `then`, and has had less
    /// than `sectors` sectors; perhaps before that.
    pub(crate) fn was_below(&self, then: u32, sectors: u64) -> bool {
        self.shrinks() != then && self.least.load(Relaxed) < sectors
    }

    /// Whether the disk had no sectors for a while, or has none.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost_medium.load(Acquire)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kernel::macros::kunit_tests(blksnap_medium)]
mod tests {
    use super::*;

    #[test]
    fn growing_is_not_remembered() {
        let medium = Medium::new();
        let then = medium.shrinks();
        medium.resized(0, 8);
        medium.resized(8, 16);
        medium.resized(16, 16);
        assert_eq!(medium.shrinks(), then);
        assert!(!medium.was_below(then, u64::MAX) && !medium.is_lost());
    }

    #[test]
    fn the_least_size_counts() {
        let medium = Medium::new();
        let first = medium.shrinks();
        for (old, new) in [(16, 8), (8, 32), (32, 12), (12, 32)] {
            medium.resized(old, new);
        }
        assert!(medium.was_below(first, 9));
        assert!(!medium.was_below(first, 8));
        let second = medium.shrinks();
        assert_ne!(first, second);
        assert!(!medium.was_below(second, 32));
        medium.resized(32, 31);
        assert!(medium.was_below(second, 32));
        assert!(!medium.is_lost());
    }

    #[test]
    fn other_data_counts_for_all() {
        let medium = Medium::new();
        let then = medium.shrinks();
        medium.replaced();
        assert!(medium.was_below(then, 1) && !medium.is_lost());
        let then = medium.shrinks();
        assert!(!medium.was_below(then, u64::MAX));
        // An engine that was made later sees it, too, if the disk gets smaller: the safe side.
        medium.resized(16, 8);
        assert!(medium.was_below(then, 9));
    }

    #[test]
    fn no_sectors_are_no_medium() {
        let medium = Medium::new();
        let then = medium.shrinks();
        medium.resized(16, 0);
        medium.resized(0, 16);
        assert!(medium.is_lost());
        assert_eq!(medium.shrinks(), then);
    }
}
