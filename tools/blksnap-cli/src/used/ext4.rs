// SPDX-License-Identifier: GPL-2.0-or-later

//! ext2, ext3 and ext4: what the bitmaps of blocks say is free.
//!
//! ```text
//! superblock → descriptors of groups → the bitmap of each group: a bit for each cluster
//! ```
//!
//! Why these bitmaps are those of the instant: `ext4_freeze()` flushes the journal, and writes a
//! superblock without `EXT4_FEATURE_INCOMPAT_RECOVER` only if that worked; `ext4_unfreeze()` and a mount
//! set it again before the first change. `freeze_super()` has written the data before, so nothing is
//! without blocks that are allocated (delayed allocation), and it waits for resizing, which is in
//! `mnt_want_write_file()`. Blocks that the allocator keeps for a file beforehand are not in its bitmap,
//! but nothing is in them either. What was unlinked while open is in the bitmaps until it is closed.
//!
//! Without a journal, the kernel's ext4 has `EXT4_VALID_FS` cleared while it is mounted: all is read.
//!
//! The end of a table of inodes, which `bg_itable_unused` counts, is not used: neither the kernel nor e2fsck
//! reads it. Inodes that come into use have been written. Free ones that the count is moved past have not: what is
//! there are the zeros of `ext4_init_inode_table()`, or remains; zeros, which the backup has, are free inodes.
//!
//! Each structure is checked as the kernel does (`ext4_superblock_csum()`, `ext4_group_desc_csum()`,
//! `ext4_block_bitmap_csum_verify()`), and a bitmap also against the count in its descriptor. Where one
//! does not agree, nothing of the file system is believed.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use blksnap::ByteSet;
use blksnap_backup::without;

use super::largest::{Largest, MOST};
use super::place::{Bytes, Place, crc16, crc32c};

mod journal;
mod superblock;

use superblock::{Checksums, Super};

/// The bitmap of a group was never written.
const BLOCK_UNINIT: u16 = 2;

/// The runs of bits that are 0, of the first `count`.
fn zeros(bitmap: &[u8], count: u64) -> Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < count {
        let byte = bitmap.get(usize::try_from(at / 8)?);
        let rest = byte.context("a bitmap is too short")? >> (at % 8);
        // Bits that are the same, up to the end of the byte: mostly all of it.
        let left = 8 - at % 8;
        let same = match rest & 1 {
            0 => rest.trailing_zeros(),
            _ => rest.trailing_ones(),
        };
        let end = (at + left.min(same.into())).min(count);
        if rest & 1 == 0 {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    Ok(runs)
}

/// The descriptor of a group, whose checksum is right.
struct Group<'a> {
    bytes: Bytes<'a>,
    is_64bit: bool,
}

impl<'a> Group<'a> {
    fn check(sb: &Super, number: u64, desc: &'a [u8]) -> Result<Self> {
        let bytes = Bytes(desc);
        let number32 = u32::try_from(number)?.to_le_bytes();
        // bg_checksum counts as zeros or, in the older kind, as missing.
        let (before, after) = (bytes.part(0, 0x1e)?, &desc[0x20..]);
        let sum = match sb.checksums {
            Checksums::None => None,
            Checksums::Crc16 => Some(crc16(&[&sb.uuid, &number32, before, after])),
            Checksums::Crc32c(seed) => {
                Some(crc32c(seed, &[&number32, before, &[0; 2], after]) as u16)
            }
        };
        ensure!(
            sum.is_none_or(|sum| bytes.le16(0x1e).is_ok_and(|said| said == sum)),
            "the checksum of the descriptor of group {number} is wrong"
        );
        Ok(Self {
            bytes,
            is_64bit: sb.is_64bit,
        })
    }

    /// A number in two halves: the upper one is there in large descriptors only.
    fn u64(&self, low: usize, high: usize) -> Result<u64> {
        let upper = if self.is_64bit {
            self.bytes.le32(high)?
        } else {
            0
        };
        Ok(u64::from(upper) << 32 | u64::from(self.bytes.le32(low)?))
    }

    /// The same of 16 bits each.
    fn u32(&self, low: usize, high: usize) -> Result<u32> {
        let upper = if self.is_64bit {
            self.bytes.le16(high)?
        } else {
            0
        };
        Ok(u32::from(upper) << 16 | u32::from(self.bytes.le16(low)?))
    }

    fn block_bitmap(&self) -> Result<u64> {
        self.u64(0x0, 0x20)
    }

    fn inode_bitmap(&self) -> Result<u64> {
        self.u64(0x4, 0x24)
    }

    fn inode_table(&self) -> Result<u64> {
        self.u64(0x8, 0x28)
    }

    fn free_clusters(&self) -> Result<u32> {
        self.u32(0xc, 0x2c)
    }

    /// Inodes at the end of the table that were never used: `bg_itable_unused`.
    fn unused_inodes(&self) -> Result<u32> {
        self.u32(0x1c, 0x32)
    }

    /// `bg_block_bitmap_csum`.
    fn is_bitmap(&self, sb: &Super, bitmap: &[u8]) -> Result<bool> {
        let Checksums::Crc32c(seed) = sb.checksums else {
            return Ok(true);
        };
        let bytes = usize::try_from(sb.clusters_per_group / 8)?;
        let sum = crc32c(seed, &[Bytes(bitmap).part(0, bytes)?]);
        let mask = if self.is_64bit { u32::MAX } else { 0xffff };
        Ok(self.u32(0x18, 0x38)? == sum & mask)
    }
}

/// What is free, or means nothing now.
pub fn unused(place: &Place) -> Result<ByteSet> {
    let sb = Super::read(place)?;
    let table = sb.read_descriptors(place)?;
    let mut used: ByteSet = table.places.iter().cloned().collect();
    let mut free = Largest::of(MOST);
    let descs = table.bytes.chunks_exact(usize::try_from(sb.desc)?);
    ensure!(
        descs.len() as u64 >= sb.groups(),
        "descriptors of groups are missing"
    );
    for (number, desc) in (0..sb.groups()).zip(descs) {
        let group = Group::check(&sb, number, desc)?;
        let bitmap_block = sb.bytes(group.block_bitmap()?, 1)?;
        // They may be in other groups, also in those without bitmaps.
        used.insert(bitmap_block.clone());
        used.insert(sb.bytes(group.inode_bitmap()?, 1)?);
        let mut inodes = sb.bytes(group.inode_table()?, sb.inode_blocks)?;
        if number == 0 && sb.journal.is_some() {
            let ranges = journal::unused(place, &sb, inodes.start)?;
            ranges.into_iter().for_each(|range| free.push(range));
        }
        if sb.has_flags() {
            let unused = sb
                .inodes_per_group
                .checked_sub(group.unused_inodes()?.into());
            let count = unused.context("a group has more unused inodes than inodes")?;
            inodes.end = inodes.start + (count * sb.inode_size).next_multiple_of(sb.block);
            free.push(inodes.end..inodes.start + sb.inode_blocks * sb.block);
        }
        used.insert(inodes);
        let start = sb.group_start(number);
        let count = sb.per_group.min(sb.blocks - start);
        let bytes = sb.bytes(start, count)?;
        // As ext4_init_block_bitmap(): only copies of the superblock and of descriptors. More is not
        // allocated there before there is a bitmap.
        if sb.has_flags() && group.bytes.le16(0x12)? & BLOCK_UNINIT != 0 {
            free.push(bytes);
            used.insert(sb.bytes(start, sb.copies(number).min(count))?);
            continue;
        }
        let bitmap = place.read(bitmap_block.start, sb.block)?;
        ensure!(
            group.is_bitmap(&sb, &bitmap)?,
            "the checksum of the bitmap of group {number} is wrong"
        );
        let clusters = (bytes.end - bytes.start).div_ceil(sb.cluster);
        let mut counted = 0;
        for run in zeros(&bitmap, clusters)? {
            counted += run.end - run.start;
            let start = bytes.start + run.start * sb.cluster;
            free.push(start..(bytes.start + run.end * sb.cluster).min(bytes.end));
        }
        let said = group.free_clusters()?;
        if counted != u64::from(said) {
            bail!(
                "the bitmap of group {number} has {counted} free clusters, its descriptor says {said}"
            );
        }
    }
    Ok(without(&free.finish(), &used))
}

#[cfg(test)]
mod tests;
