// SPDX-License-Identifier: GPL-2.0

//! Lines in the kernel log that clients can cause: not more of a kind than one in some seconds.

use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        ClockSource,
        Monotonic, //
    }, //
};

/// How long a kind of line is not repeated, in nanoseconds.
const PAUSE_NS: i64 = 5_000_000_000;

/// When a kind of line was logged, on the monotonic clock in nanoseconds; or 0.
pub(crate) struct Logged(Atomic<i64>);

impl Logged {
    /// It was not.
    pub(crate) const fn never() -> Self {
        Self(Atomic::new(0))
    }
}

/// Whether such a line may be logged now; if so, it counts as logged. For any context.
pub(crate) fn may_log(logged: &Logged) -> bool {
    let (now, last) = (Monotonic::ktime_get(), logged.0.load(Relaxed));
    // Of several at once, one.
    (last == 0 || now.saturating_sub(last) > PAUSE_NS)
        && logged.0.cmpxchg(last, now, Relaxed).is_ok()
}
