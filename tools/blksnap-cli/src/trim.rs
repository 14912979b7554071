// SPDX-License-Identifier: GPL-2.0-or-later

//! `--trim`: what was freed while a snapshot was held is discarded after it.
//!
//! A discard of a captured device is not passed on: the old data is still needed. Nobody repeats it, so
//! a thin pool or an SSD would never learn of that space. So the file systems discard all that is free.

use std::fs::File;

use anyhow::{Context, Result};
use blksnap::DevId;
use rustix::ioctl::{self, Opcode, Updater};

use crate::above;
use crate::mounts;
use crate::output;
use crate::size::Size;

/// `struct fstrim_range`, in bytes of the file system; out: how many were discarded.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
    smallest: u64,
}

const FITRIM: Opcode = ioctl::opcode::read_write::<Range>(b'X', 121);

/// Trims what is mounted on or above devices, and says so. What cannot be trimmed is named, and is no
/// failure: the snapshot has done its work.
pub fn trim(devices: &[DevId]) {
    let table = match mounts::table() {
        Ok(table) => table,
        Err(error) => return output::remark(format!("nothing was trimmed: {error:#}")),
    };
    let found = above::find(&table, devices);
    if found.is_empty() {
        output::remark("nothing was trimmed: no file system is mounted on the devices");
    }
    for one in found {
        output::remark(match one.open().and_then(|file| discard_free(&file)) {
            Ok(bytes) => format!("{one}: {} of free space trimmed", Size(bytes)),
            Err(error) => format!("{one} was not trimmed: {error:#}"),
        });
    }
}

/// Lets a file system discard all that is free; gives the bytes.
fn discard_free(file: &File) -> Result<u64> {
    let mut range = Range {
        start: 0,
        length: u64::MAX,
        smallest: 0,
    };
    // SAFETY: FITRIM reads and writes this structure.
    unsafe { ioctl::ioctl(file, Updater::<FITRIM, Range>::new(&mut range)) }
        .context("FITRIM, as of fstrim, failed")?;
    Ok(range.length)
}
