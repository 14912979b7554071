// SPDX-License-Identifier: GPL-2.0

//! When the image of a device is lost, and what that means for writes.
//!
//! The image is lost with the whole snapshot, see [`health`](crate::storage::health); or alone,
//! when the device goes, or is given another medium or other data. From then on nothing is copied,
//! and writes pass.

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Relaxed,
        Release, //
    }, //
};

use super::Cow;
use crate::base::faults::{
    planted,
    Fault, //
};
#[cfg(doc)]
use crate::storage::health::Health;

impl Cow {
    /// Whether the image is lost. Acquire, see [`Health::snapshot_has_failed`].
    #[inline]
    pub(crate) fn image_has_failed(&self) -> bool {
        self.health.snapshot_has_failed()
            || self.device_gone.load(Acquire)
            || self.medium_has_changed()
    }

    /// Whether the device was given another medium or other data, or lost its own, since the engine
    /// was made.
    #[inline]
    fn medium_has_changed(&self) -> bool {
        self.origin.bdev().disk_id() != self.disk
            || self.medium.is_lost()
            || self.medium.was_below(self.shrinks, 1)
    }

    /// Whether the device has been too small for the chunks before `to` since the engine was made.
    /// What was read there cannot be trusted then: it may be another's data.
    pub(crate) fn device_was_too_small(&self, to: u64) -> bool {
        self.medium.shrinks() != self.shrinks && {
            let end = self.geometry.sector(to).min(self.geometry.sectors);
            let end = self.origin.bdev().start_sector() + end;
            self.medium.was_below(self.shrinks, end)
        }
    }

    /// Whether nothing is copied any more, and all writes just pass.
    #[inline]
    pub(super) fn passes_writes(&self) -> bool {
        self.image_has_failed() && !(planted(Fault::StoreAfterFailure) && self.space.has_room())
    }

    /// The error since which the image is lost, as a positive errno, or 0.
    pub(crate) fn error(&self) -> i32 {
        self.health.device_error(self.origin.bdev().id())
    }

    /// The device is going: ends the use of its image. Does not sleep.
    pub(crate) fn device_gone(&self) {
        self.device_gone.store(true, Release);
        self.health.fail_device(self.origin.bdev().id(), ENODEV);
    }

    /// Tells the client if the image is lost because the device was given another medium. Does not
    /// sleep.
    pub(crate) fn tell_of_medium(&self) {
        if self.medium_has_changed() && !self.device_gone.load(Relaxed) {
            self.device_gone();
        }
    }

    /// Ends the use of the snapshot's images because of `err`.
    pub(super) fn fail(&self, err: Error) {
        if self.image_has_failed() {
            return;
        }
        self.health.fail(self.origin.bdev().id(), err);
    }
}
