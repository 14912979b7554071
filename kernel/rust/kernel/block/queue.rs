// SPDX-License-Identifier: GPL-2.0

//! Freezing request queues, and data that a frozen queue protects.
//!
//! Each bio enters its device's queue before the driver sees it, and a freeze waits until all
//! that entered have left. For a request based driver that includes the I/O itself. So freezing a
//! queue is like taking a write lock, and [entering](Entered) it like taking a read lock, which the
//! I/O path does anyway. [`QueueCell`] builds on that: whoever is inside the queue reads its value
//! at no cost, and whoever has [frozen](Frozen) the queue replaces it.
//!
//! In a kernel without our hooks filters see bios before they enter the queue: inside of a gate
//! then, which is closed first by whoever freezes, and which all that was said goes for as well.
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
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
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

/// Freezing these queues takes no longer than what is inside of them, as long as this lives.
///
/// Otherwise a freeze also waits for a grace period of RCU, during which no bio enters, as there is
/// a usage counter for each processor. Meanwhile there is one for all, which costs each bio a
/// little more. It is a hint: nothing else depends on it. Dropping it may sleep.
///
/// The mode of a queue's counter is not counted: whoever leaves it first, leaves it for all. So
/// there is only one `QuickFreeze` at a time, for any number of queues.
///
/// # Invariants
///
/// It was made by whoever set `QUICK_FREEZE`, which it clears when dropped.
#[must_use]
pub struct QuickFreeze(KVec<Arc<BdevFile>>);

/// Whether there is a [`QuickFreeze`].
static QUICK_FREEZE: Atomic<bool> = Atomic::new(false);

impl QuickFreeze {
    /// Prepares the queues of the devices of `files`. May sleep.
    ///
    /// `None` if somebody else is freezing something quickly: then do without.
    pub fn start(files: KVec<Arc<BdevFile>>) -> Option<Self> {
        // Acquire, paired with `drop()`: the counters are as the last one left them.
        QUICK_FREEZE.cmpxchg(false, true, Acquire).ok()?;
        // INVARIANT: It was us who have set it.
        let this = Self(files);
        // First all of them, so that their grace periods are one.
        for counter in this.counters() {
            // SAFETY: The counter is initialised, as the device is open by `counters()`.
            unsafe { bindings::percpu_ref_switch_to_atomic(counter, None) };
        }
        for counter in this.counters() {
            // SAFETY: As above. By the type invariant nobody else comes here to switch it back.
            unsafe { bindings::percpu_ref_switch_to_atomic_sync(counter) };
        }
        Some(this)
    }

    /// The usage counters of the queues, which are valid as the devices are open.
    fn counters(&self) -> impl Iterator<Item = *mut bindings::percpu_ref> + '_ {
        self.0.iter().map(|file| {
            // SAFETY: The queue is valid, as the device is open.
            unsafe { &raw mut (*file.bdev().queue()).q_usage_counter }
        })
    }
}

impl Drop for QuickFreeze {
    fn drop(&mut self) {
        for counter in self.counters() {
            // SAFETY: The counter is initialised, as the device is open.
            unsafe { bindings::percpu_ref_switch_to_percpu(counter) };
        }
        QUICK_FREEZE.store(false, Release);
    }
}

/// A queue whose freeze has begun: no bio enters any more.
///
/// # Invariants
///
/// Our freeze of the queue of `file`'s device was started on this thread and not undone.
#[must_use]
pub struct Freezing {
    freeze: bindings::blk_filter_freeze,
    file: Arc<BdevFile>,
    _not_send: NotThreadSafe,
}

impl Freezing {
    /// Begins to freeze the queue of `file`'s device. May sleep.
    ///
    /// A [`NoIoScope`] must be in force until the queue was thawed.
    pub fn start(file: &Arc<BdevFile>, _scope: &NoIoScope) -> Self {
        let mut freeze = bindings::blk_filter_freeze::default();
        // SAFETY: The device is open, so its queue is valid.
        unsafe { bindings::blk_filter_freeze_start(&mut freeze, file.bdev().queue()) };
        // INVARIANT: Just started.
        Self {
            freeze,
            file: file.clone(),
            _not_send: NotThreadSafe,
        }
    }

    /// Waits, however long it takes, until all that had entered the queue has left it.
    pub fn complete(mut self) -> Frozen {
        // `MAX_SCHEDULE_TIMEOUT`.
        let forever = c_long::MAX as c_ulong;
        // SAFETY: The queue is valid, as the device is open, and the freeze was started.
        unsafe { bindings::blk_filter_freeze_wait(&mut self.freeze, forever) };
        // INVARIANT: The freeze is complete.
        Frozen(self)
    }

    /// Waits until all that had entered the queue has left it.
    ///
    /// Fails with `ETIMEDOUT`, and undoes the freeze.
    pub fn wait(mut self, timeout: Jiffies) -> Result<Frozen> {
        // SAFETY: The queue is valid, as the device is open, and the freeze was started.
        if !unsafe { bindings::blk_filter_freeze_wait(&mut self.freeze, timeout as c_ulong) } {
            return Err(ETIMEDOUT);
        }
        // INVARIANT: The freeze is complete.
        Ok(Frozen(self))
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        // SAFETY: The freeze was started by the type invariant, and the queue is valid, as the
        // device is open.
        unsafe { bindings::blk_filter_freeze_end(&mut self.freeze) };
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
/// During `'a` `blk_filter_freeze_wait()` does not succeed for `queue`: a reference on its usage
/// counter is held, or the gate in front of it was entered.
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
    /// During the proof's lifetime the caller must hold a reference on the usage counter of
    /// `queue`, or be inside of the gate that is closed before it is frozen.
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
        // are ordered by the usage counter, or by that of the gate.
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
