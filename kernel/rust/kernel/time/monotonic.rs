// SPDX-License-Identifier: GPL-2.0

//! The monotonic clock as a number, for interfaces that give it to user space.
//!
//! Inside of the kernel [`Instant`](super::Instant) is the right type.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;

/// The time on the monotonic clock, in nanoseconds.
pub fn monotonic_ns() -> i64 {
    // SAFETY: May be called in any context but NMI.
    unsafe { bindings::ktime_get() }
}
