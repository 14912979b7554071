// SPDX-License-Identifier: GPL-2.0

//! Atomics and what is made of them.

pub mod atomic;
pub mod rcu;
pub mod sparse;
pub mod turn;

use atomic::{Acquire, Release};
use loom::{cell::UnsafeCell, sync::atomic::AtomicPtr};
use turn::Turn;

/// Something that is put in place at most once, and then seen without a lock.
pub struct SetOnce<T> {
    value: Turn<AtomicPtr<Published<T>>>,
}

impl<T> SetOnce<T> {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            value: Turn::new(AtomicPtr::new(core::ptr::null_mut())),
        }
    }

    pub fn as_ref(&self) -> Option<&T> {
        // SAFETY: What is put there stays until the drop.
        unsafe { self.value.take().load(Acquire).as_ref() }.map(Published::get)
    }

    /// Tells whether it did; the model calls it with a lock held.
    pub fn populate(&self, value: T) -> bool {
        let new = Box::into_raw(Box::new(Published::new(value)));
        self.value.take().store(new, Release);
        true
    }
}

impl<T> Drop for SetOnce<T> {
    fn drop(&mut self) {
        let value = self.value.alone().load(Acquire);
        if !value.is_null() {
            // SAFETY: It came from a box, and nobody looks at it any more.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}

/// Something that was made before others could find it. loom sees who looks at it without being
/// ordered after that.
pub(crate) struct Published<T> {
    made: UnsafeCell<()>,
    value: T,
}

impl<T> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        let made = UnsafeCell::new(());
        made.with_mut(|_| ());
        Self { made, value }
    }

    pub(crate) fn get(&self) -> &T {
        self.made.with(|_| ());
        &self.value
    }
}

// SAFETY: loom's threads run one at a time.
unsafe impl<T> Sync for Published<T> {}
