// SPDX-License-Identifier: GPL-2.0

//! Times as numbers, for interfaces that give them to user space.
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

/// The time of day, in seconds since the beginning of 1970.
pub fn real_seconds() -> i64 {
    // SAFETY: May be called in any context but NMI.
    unsafe { bindings::ktime_get_real_seconds() }
}
