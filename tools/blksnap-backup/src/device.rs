// SPDX-License-Identifier: GPL-2.0-or-later

//! Block devices and files that stand for them, measured.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result};

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
