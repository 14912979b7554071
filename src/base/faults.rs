// SPDX-License-Identifier: GPL-2.0

//! Deliberate faults, one at a time, to show that the tests would find them.
//!
//! Only with `CONFIG_BLK_SNAP_FAULTS`; without it nothing of this is in the module. The parameter
//! `fault` selects one.

/// What is done wrong: the values of the parameter.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// A write is released before the old data was read.
    ReleaseBeforeRead = 1,
    /// Nobody checks, after an optimistic read, whether the chunks are still untouched.
    NoLookAfterRead = 2,
    /// The last block of a write is not marked, if there is more than one.
    ForgetMark = 3,
    /// The map forgets that a chunk was stored, so that it is copied again.
    CopyTwice = 4,
    /// After the snapshot has failed, copying goes on when there is room again.
    StoreAfterFailure = 5,
    /// A take does not wait for writes in flight on bio based devices.
    NoDrain = 6,
    /// The short chunk at the end of a device is not copied.
    LoseTail = 7,
    /// The client is told that the last device was lost while something is being stored.
    ToldTooEarly = 8,
    /// Storage is excluded from being copied in all snapshots, not just where it must be.
    ExcludeForAll = 9,
    /// Writes wait for storage that hangs for as long as it does.
    WaitForEver = 10,
    /// What is read of an unused chunk is stored as it is.
    StoreUnused = 11,
}

/// Whether to do this wrong.
#[cfg(CONFIG_BLK_SNAP_FAULTS)]
#[inline]
pub(crate) fn planted(fault: Fault) -> bool {
    crate::base::params::fault() == fault as u32
}

/// Whether to do this wrong: never.
#[cfg(not(CONFIG_BLK_SNAP_FAULTS))]
#[inline(always)]
pub(crate) const fn planted(_fault: Fault) -> bool {
    false
}
