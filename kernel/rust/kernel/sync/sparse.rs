// SPDX-License-Identifier: GPL-2.0

//! Small sparse arrays that can be read without a lock.
//!
//! A [`SparseArray`] has room for up to 64 items, and takes memory only for those that are
//! present. Which of them are never changes: whoever needs another one makes a new array and
//! [replaces](RcuSlot::replace) the old one in its [`RcuSlot`], where readers find one or the other
//! under the protection of RCU. The items themselves may change at any time if their type allows
//! it, as atomics do.
//!
//! # Examples
//!
//! ```
//! use kernel::sync::{
//!     atomic::{Atomic, Relaxed},
//!     rcu,
//!     sparse::{RcuSlot, SparseArray},
//! };
//!
//! let slot = RcuSlot::new();
//! assert!(slot.get(&rcu::read_lock()).is_none());
//!
//! let odd = SparseArray::new(0b1010, |i| Atomic::new(i * 100), GFP_KERNEL)?;
//! assert!(slot.replace(odd).is_none());
//! {
//!     let guard = rcu::read_lock();
//!     let items = slot.get(&guard).ok_or(EINVAL)?;
//!     assert_eq!(items.get(3).map(|item| item.load(Relaxed)), Some(300));
//!     assert!(items.get(2).is_none());
//! }
//! let old = slot.replace(SparseArray::new(1, |_| Atomic::new(7), GFP_KERNEL)?);
//! drop(old); // waits for those who look at it
//! # Ok::<(), Error>(())
//! ```
//!
//! Whoever looks at an array cannot wait for himself: it is not freed then.
//!
//! ```
//! # use kernel::sync::{
//! #     rcu,
//! #     sparse::{Retired, RcuSlot, SparseArray},
//! # };
//! let slot = RcuSlot::new();
//! assert!(slot.replace(SparseArray::new(0b100, |i| i, GFP_KERNEL)?).is_none());
//! let mut retired = KVec::with_capacity(1, GFP_KERNEL)?;
//! {
//!     let guard = rcu::read_lock();
//!     let items = slot.get(&guard).ok_or(EINVAL)?;
//!     let old = slot.replace(SparseArray::new(0, |i| i, GFP_ATOMIC)?);
//!     retired.push_within_capacity(old.ok_or(EINVAL)?).map_err(|_| EINVAL)?;
//!     Retired::free_all(&mut retired);
//!     assert_eq!(retired.len(), 1);
//!     assert_eq!(items.get(2), Some(&2));
//! }
//! Retired::free_all(&mut retired);
//! assert!(retired.is_empty());
//! # Ok::<(), Error>(())
//! ```

use super::{
    atomic::{
        Acquire,
        Atomic,
        Full, //
    },
    rcu, //
};
use crate::{
    alloc::{
        allocator::Kmalloc,
        Allocator,
        Flags,
        NumaNode, //
    },
    bindings,
    preempt,
    prelude::*, //
};
use core::{
    alloc::Layout,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// How an array lies in memory: followed by an item for each bit that is set.
#[repr(C)]
struct Head<T> {
    present: u64,
    items: [T; 0],
}

/// An array of 64 items of which only some are present.
///
/// # Invariants
///
/// `0` was allocated by [`Kmalloc`] and holds a head with as many initialised items behind it as
/// bits are set in `present`. Neither the head nor the number of items changes.
pub struct SparseArray<T>(NonNull<Head<T>>);

// SAFETY: The array owns its items.
unsafe impl<T: Send> Send for SparseArray<T> {}
// SAFETY: `&SparseArray<T>` gives `&T` only.
unsafe impl<T: Sync> Sync for SparseArray<T> {}

impl<T> SparseArray<T> {
    /// Makes an array of the items whose bits are set in `present`, each of which is made from its
    /// index.
    pub fn new(present: u64, mut init: impl FnMut(u32) -> T, flags: Flags) -> Result<Self> {
        let memory = Kmalloc::alloc(Self::layout(present)?, flags, NumaNode::NO_NODE)?;
        let head = memory.cast::<Head<T>>();
        // SAFETY: The memory is ours, large enough by its layout, and aligned for a head.
        unsafe { (&raw mut (*head.as_ptr()).present).write(present) };
        // SAFETY: Within the allocation.
        let items = unsafe { (&raw mut (*head.as_ptr()).items).cast::<T>() };
        let mut left = present;
        for at in 0..present.count_ones() as usize {
            // SAFETY: The memory has room for as many items as bits are set.
            unsafe { items.add(at).write(init(left.trailing_zeros())) };
            left &= left - 1;
        }
        // INVARIANT: All items were just written.
        Ok(Self(head))
    }

    fn layout(present: u64) -> Result<Layout> {
        let items = Layout::array::<T>(present.count_ones() as usize).map_err(|_| ENOMEM)?;
        let (layout, _) = Layout::new::<Head<T>>().extend(items).map_err(|_| ENOMEM)?;
        Ok(layout)
    }

    /// The items.
    #[inline]
    pub fn items(&self) -> Items<'_, T> {
        // SAFETY: By the type invariant.
        unsafe { Items::from_raw(self.0.as_ptr()) }
    }

    /// The bytes of memory that the array takes, with what the allocator adds.
    pub fn memory(&self) -> usize {
        // SAFETY: Allocated by `Kmalloc` by the type invariant.
        unsafe { bindings::ksize(self.0.as_ptr().cast()) }
    }
}

impl<T> Drop for SparseArray<T> {
    fn drop(&mut self) {
        let Items { present, first, .. } = self.items();
        let items =
            core::ptr::slice_from_raw_parts_mut(first.cast_mut(), present.count_ones() as usize);
        // SAFETY: By the type invariant they are initialised, and nobody looks at them any more.
        unsafe { core::ptr::drop_in_place(items) };
        if let Ok(layout) = Self::layout(present) {
            // SAFETY: Allocated with this layout by the type invariant, and not used afterwards.
            unsafe { Kmalloc::free(self.0.cast(), layout) };
        }
    }
}

/// The items of a [`SparseArray`], or some of them.
///
/// # Invariants
///
/// `first` points at an initialised item for each bit that is set in `present`, one behind the
/// other in the order of their indices, that are not freed during `'a`.
pub struct Items<'a, T> {
    present: u64,
    first: *const T,
    _p: PhantomData<&'a T>,
}

impl<'a, T> Items<'a, T> {
    /// # Safety
    ///
    /// `head` must point at what [`SparseArray`]'s invariant says, not to be freed during `'a`.
    #[inline]
    unsafe fn from_raw(head: *const Head<T>) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            // SAFETY: As promised by the caller.
            present: unsafe { (*head).present },
            // SAFETY: Within the allocation.
            first: unsafe { (&raw const (*head).items).cast::<T>() },
            _p: PhantomData,
        }
    }

    /// A bit for each item that is present.
    #[inline]
    pub fn present(&self) -> u64 {
        self.present
    }

    /// The item with this index, below 64, if it is present.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&'a T> {
        let bit = 1u64.checked_shl(index)?;
        if self.present & bit == 0 {
            return None;
        }
        let before = match self.present {
            // Not every processor can count bits.
            u64::MAX => index as usize,
            present => (present & (bit - 1)).count_ones() as usize,
        };
        // SAFETY: By the type invariant: fewer are before it than there are.
        Some(unsafe { &*self.first.add(before) })
    }

    /// Those of the items whose index is at least `from` and below `to`, which are at most 64.
    #[inline]
    pub fn between(&self, from: u32, to: u32) -> Self {
        let below = |index: u32| 1u64.checked_shl(index).map_or(u64::MAX, |bit| bit - 1);
        let before = (self.present & below(from)).count_ones() as usize;
        // INVARIANT: Items that come later, and not more than are left.
        Self {
            present: self.present & below(to) & !below(from),
            // SAFETY: By the type invariant there are as many items, so it is not beyond the end.
            first: unsafe { self.first.add(before) },
            _p: PhantomData,
        }
    }

    /// All of them, with their indices.
    #[inline]
    pub fn iter(&self) -> Iter<'a, T> {
        // INVARIANT: That of `Items`.
        Iter(Self { ..*self })
    }
}

/// Goes through [`Items`].
pub struct Iter<'a, T>(Items<'a, T>);

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (u32, &'a T);

    #[inline]
    fn next(&mut self) -> Option<(u32, &'a T)> {
        let Items { present, first, .. } = self.0;
        if present == 0 {
            return None;
        }
        // SAFETY: By the type invariant, as a bit is set.
        let item = unsafe { &*first };
        // INVARIANT: The first bit and the first item go together.
        self.0.present = present & (present - 1);
        // SAFETY: At most one beyond the last one.
        self.0.first = unsafe { first.add(1) };
        Some((present.trailing_zeros(), item))
    }
}

/// Where readers find a [`SparseArray`], or none.
///
/// # Invariants
///
/// `array` is null or what [`SparseArray`]'s invariant says, owned by the slot. What it was before
/// a replacement is owned by a [`Retired`], which frees it only when all readers that may have
/// found it are done.
pub struct RcuSlot<T> {
    array: Atomic<*mut Head<T>>,
    _owned: PhantomData<SparseArray<T>>,
}

// SAFETY: The slot owns its array.
unsafe impl<T: Send> Send for RcuSlot<T> {}
// SAFETY: Readers get `&T`, and a reference is enough to take the array out.
unsafe impl<T: Send + Sync> Sync for RcuSlot<T> {}

impl<T> RcuSlot<T> {
    /// An empty slot.
    pub const fn new() -> Self {
        // INVARIANT: Null.
        Self {
            array: Atomic::new(core::ptr::null_mut()),
            _owned: PhantomData,
        }
    }

    /// The items of the array that is there now.
    #[inline]
    pub fn get<'a>(&'a self, _guard: &'a rcu::Guard) -> Option<Items<'a, T>> {
        // Acquire, paired with `replace()`: what was written before is seen.
        let head = self.array.load(Acquire);
        // SAFETY: By the type invariant, as long as the guard is held.
        (!head.is_null()).then(|| unsafe { Items::from_raw(head) })
    }

    /// Puts an array in the place of what was there.
    pub fn replace(&self, array: SparseArray<T>) -> Option<Retired<T>> {
        let new = ManuallyDrop::new(array).0.as_ptr();
        // INVARIANT: The slot owns the new array; `Retired` takes care of the old one.
        let old = NonNull::new(self.array.xchg(new, Full))?;
        Some(Retired(ManuallyDrop::new(SparseArray(old))))
    }
}

impl<T> Default for RcuSlot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for RcuSlot<T> {
    fn drop(&mut self) {
        if let Some(head) = NonNull::new(self.array.load(Acquire)) {
            // There are no readers, as nobody else has a reference.
            drop(SparseArray(head));
        }
    }
}

/// An array that was replaced, and that readers may still look at.
///
/// Dropping it waits for them, so it may sleep; see [`free_all`](Self::free_all) for many. Drop it
/// where that is [possible](preempt::may_sleep): elsewhere its memory is lost.
pub struct Retired<T>(ManuallyDrop<SparseArray<T>>);

/// Waits until the readers that are there now are done. Returns whether it has.
///
/// One who holds a guard must not wait for himself: where RCU takes any task that sleeps for no
/// reader, which is so unless its readers can be preempted, that would end, and what he looks at
/// would be freed.
fn wait_for_readers() -> bool {
    // A kernel that does not count preemption cannot tell, and there the rule for all that sleeps
    // has to be enough: not with a guard.
    if cfg!(CONFIG_PREEMPT_COUNT) && !preempt::may_sleep() {
        return false;
    }
    rcu::synchronize_rcu();
    true
}

impl<T> Retired<T> {
    /// Waits until no reader looks at any of them, and frees them. May sleep.
    ///
    /// Takes a list of what was replaced already, as only that is waited for. Leaves it as it is
    /// where sleeping is not allowed, such as with an [`rcu::Guard`].
    pub fn free_all(list: &mut KVec<Self>) {
        if list.is_empty() || !wait_for_readers() {
            return;
        }
        for retired in list.drain_all() {
            let mut retired = ManuallyDrop::new(retired);
            // SAFETY: `retired` is not used again. Nobody looks at the array any more.
            unsafe { ManuallyDrop::drop(&mut retired.0) };
        }
    }

    /// The bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.0.memory()
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        if wait_for_readers() {
            // SAFETY: `self` goes. Nobody looks at the array any more.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        } else {
            crate::pr_warn_once!("an array is lost: it was dropped where readers may be\n");
        }
    }
}
