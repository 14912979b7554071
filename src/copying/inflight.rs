// SPDX-License-Identifier: GPL-2.0

//! The count of what is in flight, so that its end can be waited for.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Completion, //
    }, //
};

/// Counts the I/O of one copy engine.
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
