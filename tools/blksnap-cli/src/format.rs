// SPDX-License-Identifier: GPL-2.0-or-later

//! The formats a backup can be stored in: one file per device and backup.

pub mod qcow2;
pub mod rbd_diff;

use std::ops::Range;

use anyhow::Result;

/// Stores the data of one device of one backup.
pub trait Writer {
    /// Every call's offset and length are multiples of this (but the end of the device): bytes.
    fn granularity(&self) -> u64;
    /// Stores data.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// Stores that a range reads as zeros, whatever the base has there.
    fn zero(&mut self, range: Range<u64>) -> Result<()>;
    /// Makes all durable.
    fn finish(&mut self) -> Result<()>;
}
/// Reads what one backup itself stores of a device (not its base); only ranges its extents name.
pub trait Reader {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()>;
}

/// A directory in memory, if there is such a place: the tests wait for the disk often.
#[cfg(test)]
fn test_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
