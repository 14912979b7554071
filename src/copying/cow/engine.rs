// SPDX-License-Identifier: GPL-2.0

//! What all copy engines use: sets of bios, and workqueues.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::bio_set::{
        BioSet,
        Wait, //
    },
    prelude::*,
    sync::Arc,
    workqueue::owned::OwnedQueue, //
};

use super::{
    ends::{
        ReadIo,
        StoreIo, //
    },
    flights::BATCH, //
};

/// Bios of each kind that can be in flight whatever the state of memory.
const RESERVE: u32 = 64;

/// What all copy engines use. Made when the module is loaded.
pub(crate) struct Engine {
    /// Reads of old data, which begin under locks. Apart from stores, which a finished read needs.
    pub(super) reads: BioSet<ReadIo>,
    /// Stores of old data.
    pub(super) stores: BioSet<StoreIo, BATCH>,
    /// Does what must not be done in interrupts or in the submission path.
    pub(super) queue: OwnedQueue,
    /// Submits bios of images again. Apart from `queue`, as images may wait for memory where
    /// writers must not.
    pub(super) requeue: OwnedQueue,
}

impl Engine {
    /// Makes the engine.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let engine = Self {
            reads: BioSet::new(RESERVE, Wait::Never)?,
            stores: BioSet::new(RESERVE, Wait::ForBio)?,
            queue: OwnedQueue::new_mem_reclaim(c"blksnap")?,
            requeue: OwnedQueue::new_mem_reclaim(c"blksnap_images")?,
        };
        Ok(Arc::new(engine, GFP_KERNEL)?)
    }

    /// Waits until all work that was queued before has been done; it queues no more when nothing is
    /// in flight. May sleep.
    pub(crate) fn flush(&self) {
        self.queue.flush();
        self.requeue.flush();
    }
}
