// SPDX-License-Identifier: GPL-2.0

//! The time of day.

use kernel::time::{
    ClockSource,
    RealTime,
    NSEC_PER_SEC, //
};

/// The time of day, in seconds since the beginning of 1970.
pub(crate) fn real_seconds() -> i64 {
    RealTime::ktime_get() / NSEC_PER_SEC
}
