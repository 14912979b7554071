// SPDX-License-Identifier: GPL-2.0

//! The kernel crate's atomics, as loom's.

use super::turn::Turn;
use crate::planted::{Fault, planted};
use core::sync::atomic::Ordering;
pub use core::sync::atomic::Ordering::{AcqRel as Full, Acquire, Relaxed, Release};

/// An integer that threads share.
pub struct Atomic<T: Value>(T::Cell);

/// What an [`Atomic`] can hold.
pub trait Value: Sized {
    type Cell;

    fn cell(self) -> Self::Cell;
}

impl Value for u32 {
    type Cell = Turn<loom::sync::atomic::AtomicU32>;

    fn cell(self) -> Self::Cell {
        Turn::new(loom::sync::atomic::AtomicU32::new(self))
    }
}

impl Value for usize {
    // Such ones only count, memory and chunks: not worth an interleaving.
    type Cell = core::sync::atomic::AtomicUsize;

    fn cell(self) -> Self::Cell {
        Self::Cell::new(self)
    }
}

impl<T: Value> Atomic<T> {
    pub fn new(value: T) -> Self {
        Self(value.cell())
    }
}

impl Atomic<u32> {
    pub fn load(&self, order: Ordering) -> u32 {
        self.0.take().load(if planted(Fault::WordsRelaxed) {
            Relaxed
        } else {
            order
        })
    }

    pub fn store(&self, value: u32, order: Ordering) {
        self.0.take().store(
            value,
            if planted(Fault::ChangesRelaxed) {
                Relaxed
            } else {
                order
            },
        );
    }
}

impl Atomic<usize> {
    pub fn load(&self, order: Ordering) -> usize {
        self.0.load(order)
    }

    pub fn add(&self, value: usize, order: Ordering) {
        self.0.fetch_add(value, order);
    }

    pub fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_sub(value, order)
    }
}
