// SPDX-License-Identifier: GPL-2.0

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::{
    Queue,
    RawDelayedWorkItem,
    RawWorkItem, //
};
use crate::{
    bindings,
    prelude::*,
    sync::Arc,
    time::Jiffies, //
};
use core::ptr::NonNull;

/// A workqueue. Dropping it waits until its work is done, then destroys it.
///
/// # Invariants
///
/// `0` is a valid workqueue that we own.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue may be used and destroyed from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates an unbound workqueue whose work makes progress when memory is short
    /// (`WQ_MEM_RECLAIM`), which all work needs that block I/O waits for.
    pub fn new_mem_reclaim(name: &'static CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;
        // SAFETY: The format takes one string, and the name is one.
        let wq = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags,
                0,
                crate::str::as_char_ptr_in_const_context(name),
            )
        };
        // INVARIANT: Just created.
        Ok(Self(NonNull::new(wq).ok_or(ENOMEM)?))
    }

    fn queue(&self) -> &Queue {
        // SAFETY: Valid by the type invariant, as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Enqueues a work item, see [`Queue::enqueue`].
    pub fn enqueue<W, const ID: u64>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        self.queue().enqueue(item)
    }

    /// Enqueues a work item after a delay, on a queue that the item itself keeps: `find` finds it
    /// there. See [`Queue::enqueue_delayed`].
    ///
    /// Destroying a queue does not wait for an item whose delay has not passed yet, so the item has
    /// to keep the queue from being destroyed. But it must not hold the last reference when it
    /// runs: a queue cannot be destroyed by its own worker.
    pub fn enqueue_delayed<T, const ID: u64>(
        item: Arc<T>,
        find: fn(&T) -> &Self,
        delay: Jiffies,
    ) -> <Arc<T> as RawWorkItem<ID>>::EnqueueOutput
    where
        Arc<T>: RawDelayedWorkItem<ID> + Send + 'static,
    {
        let wq = find(&item).0;
        // SAFETY: Valid by the type invariant of what was found. `find` captures nothing, so it has
        // found the queue in the item, which stays unchanged as long as it is shared, hence until
        // it is enqueued; or it has found a queue that is never destroyed.
        unsafe { Queue::from_raw(wq.as_ptr()) }.enqueue_delayed(item, delay)
    }

    /// Waits until all work that was enqueued before is done. May sleep.
    pub fn flush(&self) {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: We own the queue by the type invariant.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
