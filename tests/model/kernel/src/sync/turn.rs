// SPDX-License-Identifier: GPL-2.0

//! A help for loom. It remembers the last access to an atomic only: if one thread loads it and
//! then another one loads and stores it, it does not see that the first load could as well have
//! come later, and leaves that order out. So each access is preceded by a relaxed increment of a
//! number beside it, which orders nothing, but makes all accesses count.

use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// An atomic of loom's.
pub struct Turn<A> {
    turn: AtomicU32,
    atomic: A,
}

impl<A> Turn<A> {
    pub fn new(atomic: A) -> Self {
        Self {
            turn: AtomicU32::new(0),
            atomic,
        }
    }

    /// For one access.
    pub fn take(&self) -> &A {
        self.turn.fetch_add(1, Relaxed);
        &self.atomic
    }

    /// When there is nobody else.
    pub fn alone(&self) -> &A {
        &self.atomic
    }
}
