// SPDX-License-Identifier: GPL-2.0-or-later

//! Whether ext4's journal is empty, by what the journal itself says.
//!
//! `EXT4_FEATURE_INCOMPAT_RECOVER` in the superblock says so already. But e2fsck replays a journal that is
//! not empty also where that flag is missing, so bitmaps are not believed if the two disagree. A flush
//! (`jbd2_journal_flush()`, which `ext4_freeze()` and unmounting do) ends in `jbd2_mark_journal_empty()`: `s_start`
//! is 0. Fast commits are part of it: there are none after a full commit.

use anyhow::{Result, bail, ensure};

use super::super::place::{Bytes, Place};
use super::superblock::Super;

const EXTENTS_FL: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
const JOURNAL_MAGIC: u32 = 0xc03b_3998;
/// Extent trees have no more levels.
const LEVELS: usize = 5;

/// Fails if the journal is not empty; `inodes` is where the first group's table of inodes begins.
pub fn check_empty(place: &Place, sb: &Super, inodes: u64) -> Result<()> {
    let number = sb.journal.unwrap_or(0);
    ensure!(
        (1..=sb.inodes_per_group).contains(&number),
        "the inode {number} of its journal is not in the first group"
    );
    let inode = place.read(inodes + (number - 1) * sb.inode_size, 128)?;
    let inode = Bytes(&inode);
    let mut block = u64::from(inode.le32(0x28)?);
    if inode.le32(0x20)? & EXTENTS_FL != 0 {
        block = first_of_extents(place, sb, inode.part(0x28, 60)?.to_vec())?;
    }
    ensure!(block != 0, "its journal has no first block");
    let head = place.read(sb.bytes(block, 1)?.start, 1024)?;
    let head = Bytes(&head);
    // h_blocktype: JBD2_SUPERBLOCK_V1 or _V2.
    ensure!(
        head.be32(0)? == JOURNAL_MAGIC && [3, 4].contains(&head.be32(4)?),
        "its journal has no superblock"
    );
    ensure!(
        head.be32(0x1c)? == 0,
        "its journal is not empty, though its superblock says that it is"
    );
    Ok(())
}

/// The block that has the first block of a file.
fn first_of_extents(place: &Place, sb: &Super, mut node: Vec<u8>) -> Result<u64> {
    for _ in 0..=LEVELS {
        let bytes = Bytes(&node);
        ensure!(
            bytes.le16(0)? == EXTENT_MAGIC && bytes.le16(2)? > 0 && bytes.le32(12)? == 0,
            "the extents of its journal make no sense"
        );
        // eh_depth.
        if bytes.le16(6)? == 0 {
            return Ok(u64::from(bytes.le16(18)?) << 32 | u64::from(bytes.le32(20)?));
        }
        let child = u64::from(bytes.le16(20)?) << 32 | u64::from(bytes.le32(16)?);
        node = place.read(sb.bytes(child, 1)?.start, sb.block)?;
    }
    bail!("the extents of its journal have too many levels")
}
