// SPDX-License-Identifier: GPL-2.0

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::Queue;
use crate::{
    bindings,
    prelude::*, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// A workqueue that is destroyed, after its work was done, when dropped.
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
    /// (`WQ_MEM_RECLAIM`), as is needed by all that block I/O waits for.
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

    /// Waits until all work that was queued before has been done. May sleep.
    pub fn flush(&self) {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: Valid by the type invariant, as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: We own the queue by the type invariant.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
