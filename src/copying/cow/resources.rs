// SPDX-License-Identifier: GPL-2.0

//! What a copy engine has for itself: sets of bios, and workqueues.
//!
//! No engine waits for another one: the storage or the device of one may hang, and the stores of
//! one may be writes that another one copies for first. With the reserves of bios or the rescuers
//! of workqueues in common, both would wait for each other when memory is short.

use kernel::{
    block::bio_set::{
        BioSet,
        Wait, //
    },
    prelude::*,
    workqueue::owned::OwnedQueue, //
};

use super::{
    ends::{
        ReadIo,
        StoreIo, //
    },
    flights::BATCH,
    RESERVED, //
};

/// Stores that can be in flight whatever the state of memory.
const RESERVE: u32 = 64;

/// What a copy engine has for itself. Dropping it sleeps.
pub(super) struct Resources {
    /// Reads of old data, which begin under locks. Apart from stores, which a finished read needs.
    pub(super) reads: BioSet<ReadIo>,
    /// Stores of old data.
    pub(super) stores: BioSet<StoreIo, BATCH>,
    /// Lets writes go, to the device. Does not wait for the storage.
    pub(super) letting_go: OwnedQueue,
    /// Stores, and what else must not be done in interrupts or in the submission path.
    pub(super) storing: OwnedQueue,
    /// Submits bios of the image again, which may wait for memory.
    pub(super) images: OwnedQueue,
}

impl Resources {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            // No more have memory for what they read, whatever its state.
            reads: BioSet::new(RESERVED as u32, Wait::Never)?,
            stores: BioSet::new(RESERVE, Wait::ForBio)?,
            letting_go: OwnedQueue::new_mem_reclaim(c"blksnap_writes")?,
            storing: OwnedQueue::new_mem_reclaim(c"blksnap_stores")?,
            images: OwnedQueue::new_mem_reclaim(c"blksnap_images")?,
        })
    }

    /// Waits until all work that was queued before has been done; it queues no more when nothing is
    /// in flight. May sleep.
    pub(super) fn flush(&self) {
        self.letting_go.flush();
        self.storing.flush();
        self.images.flush();
    }
}
