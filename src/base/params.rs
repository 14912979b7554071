// SPDX-License-Identifier: GPL-2.0

//! Module parameters.
//!
//! `params.c` registers them, since `module!` cannot declare parameters that show in sysfs and can
//! be changed at run time. It refuses values that make no sense. A value is read when it is needed,
//! so a change takes effect at the next attach, create or take.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Declares a parameter, under the name by which `params.c` refers to it.
macro_rules! param {
    ($name:ident, $symbol:literal, $default:literal) => {
        #[export_name = $symbol]
        static $name: Atomic<u32> = Atomic::new($default);
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
param!(
    TRACKING_BLOCK_MAXIMUM_SHIFT,
    "blksnap_tracking_block_maximum_shift",
    26
);
param!(CHUNK_MINIMUM_SHIFT, "blksnap_chunk_minimum_shift", 12);
param!(CHUNK_MAXIMUM_SHIFT, "blksnap_chunk_maximum_shift", 26);
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
    COPY_AHEAD_MAXIMUM_RATIO,
    "blksnap_copy_ahead_maximum_ratio",
    4
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
param!(FRONTENDS, "blksnap_frontends", 3);
param!(DIFF_STORAGE_TIMEOUT, "blksnap_diff_storage_timeout", 60);
#[cfg(CONFIG_BLK_SNAP_FAULTS)]
param!(FAULT, "blksnap_fault", 0);
#[cfg(CONFIG_BLK_SNAP_DELAYS)]
param!(DELAY_US, "blksnap_delay_us", 0);
#[cfg(CONFIG_BLK_SNAP_DELAYS)]
param!(DELAY_POINTS, "blksnap_delay_points", 0xffff_ffff);
#[cfg(CONFIG_BLK_SNAP_DELAYS)]
param!(DELAY_CHANCE, "blksnap_delay_chance", 8);

/// log2 of the size of the smallest tracking block in bytes, 9 to 31.
pub(crate) fn tracking_block_minimum_shift() -> u32 {
    TRACKING_BLOCK_MINIMUM_SHIFT.load(Relaxed)
}

/// The largest number of tracking blocks of a device, not 0.
pub(crate) fn tracking_block_maximum_count() -> u32 {
    TRACKING_BLOCK_MAXIMUM_COUNT.load(Relaxed)
}

/// log2 of the size of the largest tracking block in bytes, 9 to 31, to which it may grow.
pub(crate) fn tracking_block_maximum_shift() -> u32 {
    TRACKING_BLOCK_MAXIMUM_SHIFT.load(Relaxed)
}

/// log2 of the size of the smallest chunk in bytes, 12 to 20.
pub(crate) fn chunk_minimum_shift() -> u32 {
    CHUNK_MINIMUM_SHIFT.load(Relaxed)
}

/// log2 of the size in bytes to which a chunk may grow, 12 or more.
pub(crate) fn chunk_maximum_shift() -> u32 {
    CHUNK_MAXIMUM_SHIFT.load(Relaxed)
}

/// The largest number of chunks of a device, not 0.
pub(crate) fn chunk_maximum_count() -> u64 {
    u64::from(CHUNK_MAXIMUM_COUNT.load(Relaxed))
}

/// How many copies of one device may be in memory at one time if they are large, 1 to 4096.
pub(crate) fn chunk_maximum_in_cache() -> usize {
    CHUNK_MAXIMUM_IN_CACHE.load(Relaxed) as usize
}

/// How many bytes of a device may be copied for one that is overwritten, 1 to 64.
pub(crate) fn copy_ahead_maximum_ratio() -> u64 {
    u64::from(COPY_AHEAD_MAXIMUM_RATIO.load(Relaxed))
}

/// The portion that a low free space event asks for, or that a held file grows by, in sectors, 8 or
/// more.
pub(crate) fn diff_storage_minimum() -> u64 {
    u64::from(DIFF_STORAGE_MINIMUM.load(Relaxed))
}

/// How long writes may wait for storage that does not answer, in seconds; 0 for ever.
pub(crate) fn diff_storage_timeout() -> i64 {
    i64::from(DIFF_STORAGE_TIMEOUT.load(Relaxed))
}

/// Which control interfaces are served when the module is loaded, by the bits of their places in
/// `params.c`.
pub(crate) fn frontends() -> u32 {
    FRONTENDS.load(Relaxed)
}

/// What to do wrong, see [`faults`](crate::base::faults); 0 for nothing.
#[cfg(CONFIG_BLK_SNAP_FAULTS)]
pub(crate) fn fault() -> u32 {
    FAULT.load(Relaxed)
}

/// The longest delay, the points where to wait, and once in how many times, which is not 0; see
/// [`delays`](crate::base::delays).
#[cfg(CONFIG_BLK_SNAP_DELAYS)]
pub(crate) fn delays() -> (u32, u32, u32) {
    (
        DELAY_US.load(Relaxed),
        DELAY_POINTS.load(Relaxed),
        DELAY_CHANCE.load(Relaxed),
    )
}
