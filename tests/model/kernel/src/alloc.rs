// SPDX-License-Identifier: GPL-2.0

//! Vectors and boxes with the kernel crate's names.

use core::ops::Deref;

/// How to allocate: of no meaning here.
#[derive(Clone, Copy)]
pub struct Flags;

impl core::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, _: Self) -> Self {
        self
    }
}

/// The flags in use.
pub mod flags {
    use super::Flags;

    pub const GFP_KERNEL: Flags = Flags;
    pub const GFP_ATOMIC: Flags = Flags;
    #[allow(non_upper_case_globals)]
    pub const __GFP_NOWARN: Flags = Flags;
}

/// A vector.
pub struct KVec<T>(Vec<T>);

/// A vector.
pub type VVec<T> = KVec<T>;

impl<T> KVec<T> {
    pub fn with_capacity(count: usize, _: Flags) -> crate::Result<Self> {
        Ok(Self(Vec::with_capacity(count)))
    }

    pub fn push(&mut self, item: T, _: Flags) -> crate::Result {
        self.0.push(item);
        Ok(())
    }

    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// A box.
pub struct KBox<T>(Box<T>);

impl<T> KBox<T> {
    pub fn init(init: impl FnOnce() -> T, _: Flags) -> crate::Result<Self> {
        Ok(Self(Box::new(init())))
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Initialisers.
pub mod pin_init {
    pub fn init_array_from_fn<T, const N: usize>(
        init: impl FnMut(usize) -> T,
    ) -> impl FnOnce() -> [T; N] {
        || core::array::from_fn(init)
    }
}
