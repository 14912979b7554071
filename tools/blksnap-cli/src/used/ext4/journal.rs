// SPDX-License-Identifier: GPL-2.0-or-later

//! Whether ext4's journal is empty, by what the journal itself says, and where it is.
//!
//! `EXT4_FEATURE_INCOMPAT_RECOVER` in the superblock says so already. But e2fsck replays a journal that is
//! not empty also where that flag is missing, so bitmaps are not believed if the two disagree. A flush
//! (`jbd2_journal_flush()`, which `ext4_freeze()` and unmounting do) ends in `jbd2_mark_journal_empty()`: `s_start`
//! is 0. Fast commits are part of it: there are none after a full commit.
//!
//! Of an empty journal, nothing but its own superblock is ever read (`jbd2_journal_recover()`, and e2fsck), so the
//! rest means nothing. It is what a file system writes most often.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::super::place::{Bytes, Place, crc32c};
use super::superblock::{Checksums, Super};

const EXTENTS_FL: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xf30a;
const JOURNAL_MAGIC: u32 = 0xc03b_3998;
/// Extent trees have no more levels.
const LEVELS: u16 = 5;
/// Longer ones are unwritten.
const LONGEST: u64 = 32768;
/// A journal that is in more pieces is none that mke2fs or tune2fs has made.
const MOST_EXTENTS: usize = 65536;

/// Finds which bytes of the journal mean nothing; fails if it is not empty. `inodes` is where the first
/// group's table of inodes begins.
///
/// Without checksums of inodes and extents, none are told.
pub fn unused(place: &Place, sb: &Super, inodes: u64) -> Result<Vec<Range<u64>>> {
    let number = sb.journal.unwrap_or(0);
    ensure!(
        (1..=sb.inodes_per_group).contains(&number),
        "the inode {number} of its journal is not in the first group"
    );
    let inode = place.read(inodes + (number - 1) * sb.inode_size, sb.inode_size)?;
    let seed = seed(sb, number, &inode)?;
    let inode = Bytes(&inode);
    let mut file = Blocks {
        place,
        sb,
        seed,
        blocks: Vec::new(),
        count: 0,
    };
    if inode.le32(0x20)? & EXTENTS_FL != 0 {
        file.add(inode.part(0x28, 60)?, None)?;
    } else {
        let block = u64::from(inode.le32(0x28)?);
        file.blocks.push(block..block + 1);
    }
    let first = file.blocks.first_mut();
    let first = first.filter(|first| first.start != 0);
    let first = first.context("its journal has no first block")?;
    let head = place.read(sb.bytes(first.start, 1)?.start, 1024)?;
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
    if seed.is_none() {
        return Ok(Vec::new());
    }
    first.start += 1;
    let blocks = file.blocks.into_iter();
    blocks
        .map(|blocks| sb.bytes(blocks.start, blocks.end - blocks.start))
        .collect()
}

/// What the checksums of an inode and of its extents begin with, if there are any; fails if that of the inode
/// is wrong: `ext4_inode_csum()`.
fn seed(sb: &Super, number: u64, inode: &[u8]) -> Result<Option<u32>> {
    let Checksums::Crc32c(seed) = sb.checksums else {
        return Ok(None);
    };
    let bytes = Bytes(inode);
    let number = u32::try_from(number)?.to_le_bytes();
    // i_generation.
    let seed = crc32c(seed, &[&number, bytes.part(0x64, 4)?]);
    // i_checksum_lo and, where i_extra_isize makes room for it, i_checksum_hi count as zeros.
    let has_upper = inode.len() >= 0x84 && bytes.le16(0x80)? >= 4;
    let mut counted = inode.to_vec();
    counted[0x7c..0x7e].fill(0);
    let (mut said, mut mask) = (u32::from(bytes.le16(0x7c)?), 0xffff);
    if has_upper {
        counted[0x82..0x84].fill(0);
        said |= u32::from(bytes.le16(0x82)?) << 16;
        mask = u32::MAX;
    }
    ensure!(
        crc32c(seed, &[&counted]) & mask == said,
        "the checksum of the inode of its journal is wrong"
    );
    Ok(Some(seed))
}

/// The blocks of a file, in its order.
struct Blocks<'a> {
    place: &'a Place<'a>,
    sb: &'a Super,
    seed: Option<u32>,
    blocks: Vec<Range<u64>>,
    /// How many were found.
    count: u64,
}

impl Blocks<'_> {
    /// Adds those of a node of the extent tree, which is at that depth, if that is known.
    fn add(&mut self, node: &[u8], depth: Option<u16>) -> Result<()> {
        const SENSE: &str = "the extents of its journal make no sense";
        let bytes = Bytes(node);
        let (entries, own) = (usize::from(bytes.le16(2)?), bytes.le16(6)?);
        ensure!(
            bytes.le16(0)? == EXTENT_MAGIC
                && entries > 0
                && own <= LEVELS
                && depth.is_none_or(|depth| depth == own),
            SENSE
        );
        for entry in (1..=entries).map(|entry| entry * 12) {
            ensure!(u64::from(bytes.le32(entry)?) == self.count, SENSE);
            if own == 0 {
                let start = u64::from(bytes.le16(entry + 6)?) << 32;
                let start = start | u64::from(bytes.le32(entry + 8)?);
                let count = u64::from(bytes.le16(entry + 4)?);
                ensure!(
                    (1..=LONGEST).contains(&count) && self.blocks.len() < MOST_EXTENTS,
                    SENSE
                );
                self.sb.bytes(start, count)?;
                self.blocks.push(start..start + count);
                self.count += count;
            } else {
                let child = u64::from(bytes.le16(entry + 8)?) << 32;
                let child = child | u64::from(bytes.le32(entry + 4)?);
                let node = self
                    .place
                    .read(self.sb.bytes(child, 1)?.start, self.sb.block)?;
                self.check(&node)?;
                self.add(&node, Some(own - 1))?;
            }
        }
        Ok(())
    }

    /// The checksum is behind the room for entries: `ext4_extent_block_csum()`.
    fn check(&self, node: &[u8]) -> Result<()> {
        let Some(seed) = self.seed else {
            return Ok(());
        };
        let bytes = Bytes(node);
        let end = (usize::from(bytes.le16(4)?) + 1) * 12;
        ensure!(
            crc32c(seed, &[bytes.part(0, end)?]) == bytes.le32(end)?,
            "the checksum of the extents of its journal is wrong"
        );
        Ok(())
    }
}
