// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that nobody may change, as after `chattr +i`.
//!
//! The module writes to the blocks of a difference file by their numbers. If the file is truncated,
//! punched, defragmented or removed meanwhile, they become those of another file, which is
//! overwritten. The file system itself refuses all of these for an immutable file, to root as well.

use std::fs::File;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Result;

/// Makes a file immutable, or undoes it. Needs CAP_LINUX_IMMUTABLE, and a file system that knows it
/// (ext4 and xfs do).
pub(super) fn set(file: &File, immutable: bool) -> Result<()> {
    let old = ioctl_getflags(file)?;
    let mut new = old;
    new.set(IFlags::IMMUTABLE, immutable);
    if new == old {
        return Ok(());
    }
    ioctl_setflags(file, new)
}
