// SPDX-License-Identifier: GPL-2.0-or-later

//! Which blocks of a captured device its file system does not use at the instant: they need be neither
//! read nor copied by the module, and are zeros in the backup.
//!
//! The image is only read: a mount, even a read-only one, would write to it (ext4 deletes what was
//! unlinked while open). What is not known for sure counts as used:
//!
//! - Only what blkid names, and nothing beside it, is looked into: ext2, ext3, ext4 and swap. A program
//!   that keeps data of its own on such a device, where nobody can see it, is not protected.
//! - An ext4 with a journal to be replayed has bitmaps that may be older than its files. The take
//!   freezes what is mounted, which empties the journal and says so in the superblock. Where it was not
//!   frozen, the superblock says that, too: then all is read.
//! - The first and the last [`EDGE`] of the device are read, and all behind the end of the file system: boot
//!   loaders are there, and the superblocks of RAIDs.
//!
//! Why a later incremental backup is right, though it only has what was written since: a block that is
//! free at one instant and holds data at the next was written between, so it is read. One that came into
//! use without being written has no contents: space allocated in advance reads as zeros by the file
//! system. Bitmaps and tables of inodes that nobody has written yet count as used from the beginning.

mod ext4;
mod largest;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use blksnap::ByteSet;
use blksnap_backup::without;

/// So much of the beginning and of the end of a device is always read.
const EDGE: u64 = 64 << 10;

/// What is not used, or why that is not known.
pub type Unused = Result<ByteSet>;

/// Finds what is not used in an image of `size` bytes.
pub fn unused(image: &Path, size: u64) -> Unused {
    let kind = kind(image)?;
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let found = match kind.as_str() {
        "ext2" | "ext3" | "ext4" => ext4::unused(&file, size),
        "swap" => swap(&file, size),
        _ => bail!("what is free in {kind} is not known"),
    };
    let found = found.with_context(|| format!("what is free in {kind} is not known"))?;
    let edges = [0..EDGE.min(size), size.saturating_sub(EDGE)..size];
    Ok(without(&found, &edges.into_iter().collect()))
}

/// What blkid finds, if it is one thing and no table of partitions.
fn kind(image: &Path) -> Result<String> {
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-o", "export", "--"]).arg(image);
    let output = blkid.output().context("cannot run blkid")?;
    if !output.status.success() {
        bail!("blkid finds no file system, or several");
    }
    of_blkid(&String::from_utf8_lossy(&output.stdout))
}

/// The type of what `blkid -p -o export` prints.
fn of_blkid(text: &str) -> Result<String> {
    let value = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), None) => Ok(kind.to_owned()),
        (_, Some(_)) => bail!("it has partitions, which are not looked into"),
        (None, None) => bail!("blkid finds no file system"),
    }
}

/// Of swap, only the header means something after a restore, unless a system sleeps in it.
fn swap(file: &File, size: u64) -> Unused {
    let mut head = [0; 4096];
    file.read_exact_at(&mut head, 0)?;
    // A hibernated system has another mark there.
    if !head.ends_with(b"SWAPSPACE2") {
        bail!("its header is not that of plain swap with pages of 4 KiB");
    }
    Ok(std::iter::once(EDGE.min(size)..size).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_looked_into() {
        assert_eq!(of_blkid("UUID=1\nTYPE=ext4\n").unwrap(), "ext4");
        assert!(of_blkid("TYPE=vfat\nPTTYPE=dos\n").is_err());
        assert!(of_blkid("PTTYPE=gpt\n").is_err());
        assert!(of_blkid("").is_err());
    }

    #[test]
    fn swap_is_its_header() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 20;
        file.set_len(size).unwrap();
        assert!(swap(&file, size).is_err());
        file.write_all_at(b"SWAPSPACE2", 4086).unwrap();
        assert_eq!(swap(&file, size).unwrap().len(), size - EDGE);
        file.write_all_at(b"S1SUSPEND\0", 4086).unwrap();
        assert!(swap(&file, size).is_err(), "a system sleeps there");
    }
}
