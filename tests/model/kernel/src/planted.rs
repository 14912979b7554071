// SPDX-License-Identifier: GPL-2.0

//! Faults that are made on purpose, one at a time: each must be found by the model.

use core::cell::Cell;

/// What is done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The words of chunks are looked at without acquire.
    WordsRelaxed,
    /// The words of chunks are changed without release.
    ChangesRelaxed,
    /// A new window is published without release.
    PublishRelaxed,
    /// Windows are found without acquire.
    FindRelaxed,
    /// A write is let go before the old data was read.
    ReleaseBeforeRead,
    /// It is not looked again after an optimistic read.
    NoLookAfterRead,
    /// A chunk is claimed although it is being copied.
    CopyTwice,
    /// A chunk is said to be stored before it is.
    StoredTooEarly,
    /// Old data is stored although the snapshot has failed.
    StoreAfterFailure,
    /// It is not looked after a read whether the snapshot has failed.
    NoErrorCheck,
    /// What waits for a copy is taken before the copy is taken off the list.
    EndInTwoSteps,
    /// What is read of an unused chunk is stored as it is.
    StoreUnused,
    /// It is not looked after an optimistic read whether its chunks are unused.
    NoLookForUnused,
    /// Whether a chunk is unused is looked at after its place.
    LookForUnusedLate,
    /// It is not looked after an optimistic read whether the first chunks are unused.
    NoLookForFirstUnused,
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Does something wrong from now on, in this test.
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Whether that is done wrong. (All threads of a model are coroutines of one thread.)
pub fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}
