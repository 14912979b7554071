// SPDX-License-Identifier: GPL-2.0

//! What a snapshot need not copy, as it was not used at the instant.

use kernel::{
    block::bdev::DevId,
    prelude::*,
    sync::atomic::Relaxed, //
};

use crate::{
    snapshot::{
        Snapshot,
        State, //
    },
    storage::ranges::check_inside, //
};

impl Snapshot {
    /// It is bound to the open file by which it was created, and to no other.
    pub(crate) fn set_bound(&self) {
        self.bound.store(true, Relaxed);
    }

    /// Whether it is.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound.load(Relaxed)
    }

    /// Ranges of one of its devices, given as first sector and number of sectors, had no meaning
    /// at the instant.
    ///
    /// Fails with `ESRCH` if the snapshot was destroyed, `ENODEV` if it was not taken, `ENOENT` if
    /// the device is not in it, `EINVAL`, and nothing is given, if a range is empty or not inside
    /// of the device, `EIO` if the image is lost, or with `ENOMEM`.
    pub(crate) fn give_unused(&self, device: DevId, ranges: &[(u64, u64)]) -> Result {
        // Neither is it destroyed meanwhile, nor is something else given.
        let _command = self.commands.lock();
        let engine = match &*self.state.lock() {
            State::Destroyed => Err(ESRCH),
            State::Created | State::Taking(_) => Err(ENODEV),
            State::Taken(captured) => {
                let mut all = captured.iter();
                let found = all.find(|captured| captured.tracker.id() == device);
                found.map(|found| found.engine.clone()).ok_or(ENOENT)
            }
        }?;
        let cow = &engine.cow;
        check_inside(ranges, cow.geometry().sectors)?;
        if cow.image_has_failed() {
            return Err(EIO);
        }
        cow.give_unused(ranges)
    }
}
