// SPDX-License-Identifier: GPL-2.0-or-later

//! How much room there is in a file system.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::statvfs;
use rustix::process::geteuid;

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What this process can still use.
    pub free: u64,
    /// All there is.
    pub all: u64,
}

/// That of the file system of a path.
pub fn room(path: &Path) -> Result<Room> {
    let stat = statvfs(path)
        .with_context(|| format!("cannot find out how much is free in {}", path.display()))?;
    let blocks = match geteuid().is_root() {
        true => stat.f_bfree,
        false => stat.f_bavail,
    };
    Ok(Room {
        free: blocks.saturating_mul(stat.f_frsize),
        all: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}
