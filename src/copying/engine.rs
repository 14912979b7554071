// SPDX-License-Identifier: GPL-2.0

//! What all copy engines use: bio sets and workqueues; and the count of what is in flight.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bio_set::{
            BioSet,
            Wait, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Completion, //
    },
    workqueue::owned::OwnedQueue, //
};

use crate::{
    copying::copy::{
        ReadIo,
        StoreIo, //
    },
    image::io::ImageIo, //
};

/// Bios of each kind that can be in flight whatever the state of memory.
const RESERVE: u32 = 64;

/// Copies that are stored by one bio at the most.
pub(crate) const BATCH: usize = 16;

/// What all copy engines use. Made when the module is loaded.
#[pin_data]
pub(crate) struct Engine {
    /// Reads of old data, which begin under locks. Apart from stores, which a finished read needs.
    #[pin]
    pub(crate) reads: BioSet<ReadIo>,
    /// Stores of old data.
    #[pin]
    pub(crate) stores: BioSet<StoreIo, BATCH>,
    /// Clones of image bios.
    #[pin]
    pub(crate) clones: BioSet<ImageIo>,
    /// Does what must not be done in interrupts or in the submission path.
    pub(crate) queue: OwnedQueue,
    /// Does that for images, which may wait for memory where writers must not.
    pub(crate) images: OwnedQueue,
}

impl Engine {
    /// Makes the engine.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                reads <- BioSet::new(RESERVE, Wait::Never),
                stores <- BioSet::new(RESERVE, Wait::ForBio),
                clones <- BioSet::new(RESERVE, Wait::ForBio),
                queue: OwnedQueue::new_mem_reclaim(c"blksnap")?,
                images: OwnedQueue::new_mem_reclaim(c"blksnap_images")?,
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until all work that was queued before has been done; it queues no more when nothing is
    /// in flight. May sleep.
    pub(crate) fn flush(&self) {
        self.queue.flush();
        self.images.flush();
    }
}

/// Counts the I/O of one copy engine, so that its end can be waited for.
///
/// It lives apart from the engine because the last reference may go in an interrupt.
#[pin_data]
pub(crate) struct InFlight {
    /// One for each [`Busy`], and one until [`wait`](Self::wait) is called.
    count: Atomic<i32>,
    #[pin]
    idle: Completion,
}

impl InFlight {
    /// Nothing is in flight.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                count: Atomic::new(1),
                idle <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until nothing is in flight. To be called once, when nothing more can begin.
    pub(crate) fn wait(&self) {
        self.put();
        self.idle.wait_for_completion();
    }

    fn put(&self) {
        // Fully ordered: who is woken sees all that was done before.
        if self.count.fetch_sub(1, Full) == 1 {
            self.idle.complete_all();
        }
    }
}

/// Something is in flight as long as this lives.
pub(crate) struct Busy(Arc<InFlight>);

impl Busy {
    /// Something begins.
    pub(crate) fn new(inflight: &Arc<InFlight>) -> Self {
        inflight.count.fetch_add(1, Relaxed);
        Self(inflight.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.put();
    }
}
