// SPDX-License-Identifier: GPL-2.0

//! Faults made on purpose, one at a time, to show that the tests would find them.
//!
//! Only with `CONFIG_BLK_SNAP_FAULTS`, and if the parameter `fault` says so. Without that option
//! nothing of this is in the module.

/// What is done wrong: the values of the parameter.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// A write is let go before the old data was read.
    ReleaseBeforeRead = 1,
    /// It is not looked, after an optimistic read, whether the chunks are still untouched.
    NoLookAfterRead = 2,
    /// Of the blocks of a write, the last one is not marked if there are more.
    ForgetMark = 3,
    /// It is forgotten that a chunk was stored, so that it is copied again.
    CopyTwice = 4,
    /// Copying goes on, after the snapshot has failed, when there is room again.
    StoreAfterFailure = 5,
    /// A take does not wait for the writes of bio based devices.
    NoDrain = 6,
    /// The short chunk at the end of a device is not copied.
    LoseTail = 7,
}

/// Whether this is to be done wrong.
#[cfg(CONFIG_BLK_SNAP_FAULTS)]
#[inline]
pub(crate) fn planted(fault: Fault) -> bool {
    crate::base::params::fault() == fault as u32
}

/// Whether this is to be done wrong: never.
#[cfg(not(CONFIG_BLK_SNAP_FAULTS))]
#[inline(always)]
pub(crate) const fn planted(_fault: Fault) -> bool {
    false
}
