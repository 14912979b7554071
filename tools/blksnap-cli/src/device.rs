// SPDX-License-Identifier: GPL-2.0-or-later

//! Block devices and files that stand for them: opened, and measured.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;

/// Opens a device for reading past the page cache, or through it where that can't be done.
pub fn open_direct(path: &Path) -> Result<File> {
    let open = |flags: OFlags| {
        // The flag fits: it is one of the kernel's.
        OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(path)
    };
    open(OFlags::DIRECT)
        .or_else(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => open(OFlags::empty()),
            _ => Err(error),
        })
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Bytes in a device or file.
pub fn size_of(file: &File, path: &Path) -> Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
        .with_context(|| format!("cannot get the size of {}", path.display()))
}

/// Bytes in the smallest piece that can be read or written; 1 for what is no device.
pub fn logical_block(file: &File) -> u64 {
    rustix::fs::ioctl_blksszget(file).map_or(1, u64::from)
}

/// Whether a path names a block device.
pub fn is_block_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.file_type().is_block_device())
}
