// SPDX-License-Identifier: GPL-2.0

//! Sparse arrays, as in `kernel/rust/kernel/sync/sparse.rs` without its pointers: the same
//! exchange publishes an array and the same load finds it.

use super::{
    Published,
    atomic::{Acquire, Full, Relaxed},
    rcu,
    turn::Turn,
};
use crate::{
    alloc::Flags,
    planted::{Fault, planted},
};
use loom::sync::atomic::AtomicPtr;

/// The items whose bits are set in `present`, in their order.
struct Array<T> {
    present: u64,
    items: Vec<T>,
}

/// An array of 64 items of which only some are present.
pub struct SparseArray<T>(Box<Published<Array<T>>>);

impl<T> SparseArray<T> {
    pub fn new(present: u64, mut init: impl FnMut(u32) -> T, _: Flags) -> crate::Result<Self> {
        let indices = (0..u64::BITS).filter(|index| present >> index & 1 != 0);
        let items = indices.map(&mut init).collect();
        Ok(Self(Box::new(Published::new(Array { present, items }))))
    }

    pub fn memory(&self) -> usize {
        0
    }
}

/// The items of an array, or some of them.
pub struct Items<'a, T> {
    present: u64,
    items: &'a [T],
}

impl<'a, T> Items<'a, T> {
    pub fn present(&self) -> u64 {
        self.present
    }

    pub fn get(&self, index: u32) -> Option<&'a T> {
        let mut found = self.iter();
        found.find(|(at, _)| *at == index).map(|(_, item)| item)
    }

    pub fn between(&self, from: u32, to: u32) -> Self {
        let below = |index: u32| 1u64.checked_shl(index).map_or(u64::MAX, |bit| bit - 1);
        let before = (self.present & below(from)).count_ones() as usize;
        Self {
            present: self.present & below(to) & !below(from),
            items: &self.items[before..],
        }
    }

    pub fn iter(&self) -> Iter<'a, T> {
        Iter(Self { ..*self })
    }
}

/// Goes through [`Items`].
pub struct Iter<'a, T>(Items<'a, T>);

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (u32, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        let Items { present, items } = self.0;
        if present == 0 {
            return None;
        }
        let (item, items) = items.split_first()?;
        self.0 = Items {
            present: present & (present - 1),
            items,
        };
        Some((present.trailing_zeros(), item))
    }
}

/// Where readers find an array, or none.
pub struct RcuSlot<T>(Turn<AtomicPtr<Published<Array<T>>>>);

impl<T> RcuSlot<T> {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Turn::new(AtomicPtr::new(core::ptr::null_mut())))
    }

    pub fn get<'a>(&'a self, _guard: &'a rcu::Guard) -> Option<Items<'a, T>> {
        let order = if planted(Fault::FindRelaxed) {
            Relaxed
        } else {
            Acquire
        };
        // SAFETY: Nothing is freed before the threads have ended.
        let array = unsafe { self.0.take().load(order).as_ref() }?.get();
        Some(Items {
            present: array.present,
            items: &array.items,
        })
    }

    pub fn replace(&self, array: SparseArray<T>) -> Option<Retired<T>> {
        let order = if planted(Fault::PublishRelaxed) {
            Acquire
        } else {
            Full
        };
        let old = self.0.take().swap(Box::into_raw(array.0), order);
        // SAFETY: It came from a box, and was taken out by nobody else.
        (!old.is_null()).then(|| Retired(SparseArray(unsafe { Box::from_raw(old) })))
    }
}

impl<T> Drop for RcuSlot<T> {
    fn drop(&mut self) {
        let array = self.0.alone().load(Acquire);
        if !array.is_null() {
            // SAFETY: It came from a box, and nobody looks at it any more.
            drop(unsafe { Box::from_raw(array) });
        }
    }
}

/// An array that was replaced, and that readers may still look at: to be kept.
pub struct Retired<T>(SparseArray<T>);

impl<T> Retired<T> {
    pub fn memory(&self) -> usize {
        self.0.memory()
    }
}
