// SPDX-License-Identifier: GPL-2.0

//! Freezing request queues, and data that a frozen queue protects.
//!
//! Each bio enters its device's queue before the driver sees it, and a freeze waits until all
//! that entered have left. For a request based driver that includes the I/O itself. So a frozen
//! queue is a write lock, and having [entered](Entered) it a read lock that the I/O path holds
//! anyway. [`QueueCell`] builds on that: its value is read at no cost by whoever is inside the
//! queue, and replaced by whoever has [frozen](Frozen) it.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::bdev::{
    BdevFile,
    BlockDevice, //
};
use crate::{
    bindings,
    prelude::*,
    sync::{
        new_spinlock,
        Arc,
        SpinLock, //
    },
    time::Jiffies,
    types::NotThreadSafe, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData, //
};

/// Allocations of this thread do no I/O as long as this lives.
///
/// Needed wherever I/O cannot proceed until the thread goes on, as with a frozen queue.
#[must_use]
pub struct NoIoScope {
    flags: c_uint,
    _not_send: NotThreadSafe,
}

impl NoIoScope {
    /// Begins the scope. Scopes nest, and must end in reverse order.
    #[expect(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            // SAFETY: Affects only the current thread.
            flags: unsafe { bindings::memalloc_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIoScope {
    fn drop(&mut self) {
        // SAFETY: The flags were saved on this thread, as the type is not `Send`.
        unsafe { bindings::memalloc_noio_restore(self.flags) };
    }
}

/// Freezing a queue takes no longer than what is inside of it, as long as this lives.
///
/// Otherwise a freeze waits for a grace period of RCU, too, as the usage counter is one per
/// processor, and bios do not enter meanwhile. Here it is one for all, which costs each bio a
/// little more. It is a hint: nothing else depends on it. Dropping it may sleep.
#[must_use]
pub struct QuickFreeze(Arc<BdevFile>);

impl QuickFreeze {
    /// Begins to prepare the queue of `file`'s device. May sleep.
    pub fn start(file: &Arc<BdevFile>) -> Self {
        let this = Self(file.clone());
        // SAFETY: The counter is initialised, as the device is open.
        unsafe { bindings::percpu_ref_switch_to_atomic(this.counter(), None) };
        this
    }

    /// Waits until the queue is prepared.
    pub fn wait(&self) {
        // SAFETY: As above.
        unsafe { bindings::percpu_ref_switch_to_atomic_sync(self.counter()) };
    }

    fn counter(&self) -> *mut bindings::percpu_ref {
        // SAFETY: The queue is valid, as the device is open.
        unsafe { &raw mut (*self.0.bdev().queue()).q_usage_counter }
    }
}

impl Drop for QuickFreeze {
    fn drop(&mut self) {
        // SAFETY: The counter is initialised, as the device is open.
        unsafe { bindings::percpu_ref_switch_to_percpu(self.counter()) };
    }
}

/// A queue whose freeze has begun: no bio enters any more.
///
/// # Invariants
///
/// Our freeze of the queue of `file`'s device was started on this thread and not undone.
#[must_use]
pub struct Freezing {
    file: Arc<BdevFile>,
    _not_send: NotThreadSafe,
}

impl Freezing {
    /// Begins to freeze the queue of `file`'s device. May sleep.
    ///
    /// A [`NoIoScope`] must be in force until the queue was thawed.
    pub fn start(file: &Arc<BdevFile>, _scope: &NoIoScope) -> Self {
        // SAFETY: The device is open, so its queue is valid.
        unsafe { bindings::blk_freeze_queue_start(file.bdev().queue()) };
        // INVARIANT: Just started.
        Self {
            file: file.clone(),
            _not_send: NotThreadSafe,
        }
    }

    /// Waits, for as long as it takes, until all that had entered the queue has left it.
    pub fn complete(self) -> Frozen {
        // SAFETY: The queue is valid, as the device is open, and the freeze was started.
        unsafe { bindings::blk_mq_freeze_queue_wait(self.file.bdev().queue()) };
        // INVARIANT: The freeze is complete.
        Frozen(self)
    }

    /// Waits until all that had entered the queue has left it.
    ///
    /// Fails with `ETIMEDOUT`, and undoes the freeze.
    pub fn wait(self, timeout: Jiffies) -> Result<Frozen> {
        let queue = self.file.bdev().queue();
        // SAFETY: The queue is valid, as the device is open, and the freeze was started.
        let left = unsafe { bindings::blk_mq_freeze_queue_wait_timeout(queue, timeout as c_ulong) };
        if left == 0 {
            return Err(ETIMEDOUT);
        }
        // INVARIANT: The freeze is complete.
        Ok(Frozen(self))
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        // SAFETY: The freeze was started by the type invariant.
        unsafe { bindings::blk_mq_unfreeze_queue_nomemrestore(self.file.bdev().queue()) };
    }
}

/// A frozen queue: nobody is inside. Thawed when dropped.
///
/// # Invariants
///
/// The freeze is complete.
#[must_use]
pub struct Frozen(Freezing);

/// Proof that the current context is inside of a queue, which is thus not frozen.
///
/// # Invariants
///
/// During `'a` a reference on the usage counter of `queue` is held.
pub struct Entered<'a> {
    queue: *mut bindings::request_queue,
    _p: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl Entered<'_> {
    /// Creates the proof.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference on the usage counter of `queue` during the proof's
    /// lifetime.
    #[cfg(CONFIG_BLK_FILTER)]
    pub(super) unsafe fn new(queue: *mut bindings::request_queue) -> Self {
        // INVARIANT: Promised by the caller.
        Self {
            queue,
            _p: PhantomData,
            _not_send: NotThreadSafe,
        }
    }
}

/// A value that is read inside of a queue and replaced while the queue is frozen.
///
/// # Invariants
///
/// `value` is only accessed by readers that have entered `queue`, or by somebody who has frozen it
/// and holds `writer`.
#[pin_data]
pub struct QueueCell<T> {
    queue: *mut bindings::request_queue,
    #[pin]
    writer: SpinLock<()>,
    value: UnsafeCell<T>,
}

// SAFETY: The queue pointer is only compared.
unsafe impl<T: Send> Send for QueueCell<T> {}
// SAFETY: Several readers share a `&T`, writers exclude them and each other by the type invariant.
unsafe impl<T: Send + Sync> Sync for QueueCell<T> {}

impl<T> QueueCell<T> {
    /// Creates a cell that the queue of `bdev` protects.
    pub fn new(bdev: &BlockDevice, value: T) -> impl PinInit<Self> {
        let queue = bdev.queue();
        pin_init!(Self {
            queue,
            writer <- new_spinlock!(()),
            value: UnsafeCell::new(value),
        })
    }

    /// Reads the value. `None` if the proof is for another queue.
    #[inline]
    pub fn get<'a>(&'a self, entered: &'a Entered<'_>) -> Option<&'a T> {
        if entered.queue != self.queue {
            return None;
        }
        // SAFETY: The queue is not frozen as long as the proof lives, so by the type invariant
        // nobody writes. What the last writer wrote is visible: thawing the queue and entering it
        // are ordered by the usage counter.
        Some(unsafe { &*self.value.get() })
    }

    /// Replaces the value. Gives the new one back if another queue is frozen.
    pub fn replace(&self, frozen: &Frozen, value: T) -> Result<T, T> {
        if frozen.0.file.bdev().queue() != self.queue {
            return Err(value);
        }
        let _guard = self.writer.lock();
        // SAFETY: Nobody is inside of the frozen queue, and we hold `writer`.
        Ok(core::mem::replace(unsafe { &mut *self.value.get() }, value))
    }
}
