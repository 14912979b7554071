// SPDX-License-Identifier: GPL-2.0

//! Module parameters.
//!
//! `params.c` makes them known, since `module!` cannot declare parameters that are seen in sysfs
//! and changed at run time. A value is read when it is needed: a change is effective for the next
//! attach, create or take. Senseless values act as the nearest sensible one.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Declares a parameter, under the name by which `params.c` refers to it.
macro_rules! param {
    ($name:ident, $symbol:literal, $default:literal) => {
        #[export_name = $symbol]
        static $name: Atomic<i32> = Atomic::new($default);
    };
}

param!(
    TRACKING_BLOCK_MINIMUM_SHIFT,
    "blksnap_tracking_block_minimum_shift",
    16
);
param!(
    TRACKING_BLOCK_MAXIMUM_COUNT,
    "blksnap_tracking_block_maximum_count",
    2097152
);
param!(CHUNK_MINIMUM_SHIFT, "blksnap_chunk_minimum_shift", 14);
param!(
    CHUNK_MAXIMUM_COUNT,
    "blksnap_chunk_maximum_count",
    0x4000_0000
);
param!(
    CHUNK_MAXIMUM_IN_CACHE,
    "blksnap_chunk_maximum_in_cache",
    128
);
param!(
    FREE_DIFF_BUFFER_POOL_SIZE,
    "blksnap_free_diff_buffer_pool_size",
    128
);
param!(
    DIFF_STORAGE_MINIMUM,
    "blksnap_diff_storage_minimum",
    2097152
);

/// The value of a parameter, within bounds that are not negative.
fn get(param: &Atomic<i32>, least: i32, most: i32) -> u32 {
    param.load(Relaxed).clamp(least, most).unsigned_abs()
}

/// log2 of the size of the smallest tracking block in bytes.
pub(crate) fn tracking_block_minimum_shift() -> u32 {
    get(&TRACKING_BLOCK_MINIMUM_SHIFT, 9, 31)
}

/// The largest number of tracking blocks of a device.
pub(crate) fn tracking_block_maximum_count() -> u32 {
    get(&TRACKING_BLOCK_MAXIMUM_COUNT, 1, i32::MAX)
}

/// log2 of the size of the smallest chunk in bytes.
pub(crate) fn chunk_minimum_shift() -> u32 {
    get(&CHUNK_MINIMUM_SHIFT, 12, 20)
}

/// The largest number of chunks of a device.
pub(crate) fn chunk_maximum_count() -> u64 {
    u64::from(get(&CHUNK_MAXIMUM_COUNT, 1, i32::MAX))
}

/// The number of copies of one device that are in memory at one time.
pub(crate) fn chunk_maximum_in_cache() -> usize {
    get(&CHUNK_MAXIMUM_IN_CACHE, 1, 4096) as usize
}

/// The portion that a low free space event asks for, in sectors.
pub(crate) fn diff_storage_minimum() -> u64 {
    u64::from(get(&DIFF_STORAGE_MINIMUM, 8, i32::MAX))
}
