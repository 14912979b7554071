// SPDX-License-Identifier: GPL-2.0

//! How the capacity of a tracked device has changed.
//!
//! What lies behind the end that a disk had for a while may be another's data when the disk has
//! grown again, though no bio wrote it: a map of changes does not hold any more, nor does what is
//! read there for an image. And a disk that had no sector at all may have another medium.
//!
//! The block layer tells of each change before it takes effect, and so before the driver can hand
//! out other data. Hence a reader first reads the data, and then looks here: if it finds that
//! nothing happened, nothing had when the data was read.

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    }, //
};

/// How the capacity of the disk that a tracked device is, or is on, has changed since tracking
/// began. No locks; [`changes`](Self::changes) may be called in interrupts.
pub(crate) struct Resizes {
    /// How often the disk got smaller.
    shrinks: Atomic<u32>,
    /// The least number of sectors that it had then.
    least: Atomic<u64>,
    /// It had none at all.
    lost_medium: Atomic<bool>,
}

impl Resizes {
    /// Of a device that is not tracked yet.
    pub(crate) fn new() -> Self {
        Self {
            shrinks: Atomic::new(0),
            least: Atomic::new(u64::MAX),
            lost_medium: Atomic::new(false),
        }
    }

    /// The disk is about to change from `old` to `new` sectors. Calls must not overlap.
    pub(crate) fn changes(&self, old: u64, new: u64) {
        if new == 0 {
            self.lost_medium.store(true, Release);
        } else if new < old {
            let least = self.least.load(Relaxed).min(new);
            self.least.store(least, Relaxed);
            // Who sees the new number sees the new minimum.
            self.shrinks
                .store(self.shrinks.load(Relaxed).wrapping_add(1), Release);
        }
    }

    /// A number that is another one after the disk got smaller.
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
    pub(crate) fn lost_medium(&self) -> bool {
        self.lost_medium.load(Acquire)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_resizes)]
mod tests {
    use super::*;

    #[test]
    fn growing_is_not_remembered() {
        let resizes = Resizes::new();
        let then = resizes.shrinks();
        resizes.changes(0, 8);
        resizes.changes(8, 16);
        resizes.changes(16, 16);
        assert_eq!(resizes.shrinks(), then);
        assert!(!resizes.was_below(then, u64::MAX) && !resizes.lost_medium());
    }

    #[test]
    fn the_least_size_counts() {
        let resizes = Resizes::new();
        let first = resizes.shrinks();
        for (old, new) in [(16, 8), (8, 32), (32, 12), (12, 32)] {
            resizes.changes(old, new);
        }
        assert!(resizes.was_below(first, 9));
        assert!(!resizes.was_below(first, 8));
        let second = resizes.shrinks();
        assert_ne!(first, second);
        assert!(!resizes.was_below(second, 32));
        resizes.changes(32, 31);
        assert!(resizes.was_below(second, 32));
        assert!(!resizes.lost_medium());
    }

    #[test]
    fn no_sectors_are_no_medium() {
        let resizes = Resizes::new();
        let then = resizes.shrinks();
        resizes.changes(16, 0);
        resizes.changes(0, 16);
        assert!(resizes.lost_medium());
        assert_eq!(resizes.shrinks(), then);
    }
}
