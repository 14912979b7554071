// SPDX-License-Identifier: GPL-2.0-or-later

//! ext2, ext3 and ext4: what the bitmaps of blocks say is free.
//!
//! ```text
//! superblock → descriptors of groups → the bitmap of each group: a bit for each cluster
//! ```
//!
//! A group whose bitmap was never written has only what is in the descriptors, and copies of the
//! superblock and the descriptors, at its beginning. Where a bitmap does not agree with the count in its
//! descriptor, nothing of it is believed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use blksnap::ByteSet;

use super::Unused;
use super::largest::{Largest, MOST};

/// Where the superblock is.
const SUPER: u64 = 1024;
/// Features that change neither bitmaps nor descriptors: those of files and directories, of extents,
/// checksums, 64 bit, MMP, groups of groups, encryption.
const INCOMPAT: u32 =
    0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const RECOVER: u32 = 0x4;
const IS_64BIT: u32 = 0x80;
const RO_COMPAT: u32 = 0x1
    | 0x2
    | 0x4
    | 0x8
    | 0x10
    | 0x20
    | 0x40
    | 0x100
    | 0x200
    | 0x400
    | 0x1000
    | 0x2000
    | 0x8000
    | 0x1_0000;
const CHECKSUMS: u32 = 0x10 | 0x400;
const BIGALLOC: u32 = 0x200;
/// The bitmap of a group was never written.
const BLOCK_UNINIT: u16 = 2;

/// Numbers in little-endian bytes.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(at..at + N).context("a structure is too short")?;
        Ok(bytes.try_into()?)
    }

    fn u16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.get(at)?))
    }

    fn u32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.get(at)?))
    }

    /// A number whose upper half is elsewhere, if there is one.
    fn u64(&self, low: usize, high: Option<usize>) -> Result<u64> {
        let high = high.map_or(Ok(0), |at| self.u32(at))?;
        Ok(u64::from(high) << 32 | u64::from(self.u32(low)?))
    }
}

/// What of the superblock is needed.
struct Super {
    block: u64,
    blocks: u64,
    first: u64,
    cluster: u64,
    /// Clusters, and blocks, in a group.
    clusters_per_group: u64,
    per_group: u64,
    /// Blocks in the table of inodes of a group.
    table: u64,
    /// Bytes in a descriptor.
    desc: u64,
    is_64bit: bool,
    /// Whether the flags of groups mean something.
    flags: bool,
    reserved: u64,
}

impl Super {
    fn read(file: &File, size: u64) -> Result<Self> {
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, SUPER)?;
        let sb = Bytes(&bytes);
        ensure!(
            sb.u16(0x38)? == 0xef53 && sb.u32(0x4c)? == 1,
            "its superblock is not known"
        );
        let (incompat, ro_compat) = (sb.u32(0x60)?, sb.u32(0x64)?);
        ensure!(
            incompat & RECOVER == 0,
            "its journal is to be replayed: it was not frozen by the take, or not unmounted"
        );
        // Bit 0: in order, bit 1: with errors. Where there is no journal, a mounted one is not in order.
        ensure!(
            sb.u16(0x3a)? & 3 == 1,
            "it was not unmounted, or has errors"
        );
        ensure!(
            incompat & !INCOMPAT == 0 && ro_compat & !RO_COMPAT == 0,
            "it has features that are not known here ({incompat:#x}, {ro_compat:#x})"
        );
        ensure!(sb.u32(0xe4)? == 0, "its journal is on another device");
        let (log_block, log_cluster) = (sb.u32(0x18)?, sb.u32(0x1c)?);
        ensure!(
            log_block <= 6 && log_cluster <= 20,
            "its blocks are too large"
        );
        let block = 1024 << log_block;
        let is_64bit = incompat & IS_64BIT != 0;
        let bigalloc = ro_compat & BIGALLOC != 0;
        let inode_size = u64::from(sb.u16(0x58)?);
        let found = Self {
            block,
            blocks: sb.u64(0x4, is_64bit.then_some(0x150))?,
            first: sb.u32(0x14)?.into(),
            cluster: if bigalloc { 1024 << log_cluster } else { block },
            per_group: sb.u32(0x20)?.into(),
            clusters_per_group: sb.u32(if bigalloc { 0x24 } else { 0x20 })?.into(),
            table: (u64::from(sb.u32(0x28)?) * inode_size).div_ceil(block),
            desc: if is_64bit { sb.u16(0xfe)?.into() } else { 32 },
            is_64bit,
            flags: ro_compat & CHECKSUMS != 0,
            reserved: sb.u16(0xce)?.into(),
        };
        let bytes = found.blocks.checked_mul(block);
        ensure!(
            bytes.is_some_and(|bytes| bytes <= size)
                && found.first <= 1
                && found.first < found.blocks,
            "it does not fit the device"
        );
        ensure!(
            found.cluster >= block
                && found.clusters_per_group > 0
                && found.clusters_per_group <= block * 8
                && found.per_group * block == found.clusters_per_group * found.cluster
                && (32..=1024).contains(&found.desc)
                && (!is_64bit || found.desc >= 64),
            "its superblock makes no sense"
        );
        Ok(found)
    }

    fn groups(&self) -> u64 {
        (self.blocks - self.first).div_ceil(self.per_group)
    }

    /// Bytes of blocks; all of them must be in the file system.
    fn bytes(&self, start: u64, count: u64) -> Result<Range<u64>> {
        let end = start.checked_add(count).filter(|&end| end <= self.blocks);
        Ok(start * self.block..end.context("a block is behind its end")? * self.block)
    }
}

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

/// What is free.
pub fn unused(file: &File, size: u64) -> Unused {
    let sb = Super::read(file, size)?;
    let table_bytes = sb.groups() * sb.desc;
    let mut table = vec![0; usize::try_from(table_bytes)?];
    let first = SUPER / sb.block + 1;
    let table_blocks = table_bytes.div_ceil(sb.block);
    let place = sb.bytes(first, table_blocks)?;
    file.read_exact_at(&mut table, place.start)?;
    let descs = || (0..sb.groups()).zip(table.chunks_exact(sb.desc as usize).map(Bytes));
    let high = |at| sb.is_64bit.then_some(at);
    let blocks_of = |group: u64| {
        let start = sb.first + group * sb.per_group;
        (start, sb.per_group.min(sb.blocks - start))
    };
    let never_written =
        |desc: &Bytes<'_>| -> Result<bool> { Ok(sb.flags && desc.u16(0x12)? & BLOCK_UNINIT != 0) };
    // What a group has may be in another one.
    let mut used = ByteSet::from_iter([0..place.end]);
    for (group, desc) in descs() {
        used.insert(sb.bytes(desc.u64(0x0, high(0x20))?, 1)?);
        used.insert(sb.bytes(desc.u64(0x4, high(0x24))?, 1)?);
        used.insert(sb.bytes(desc.u64(0x8, high(0x28))?, sb.table)?);
        if never_written(&desc)? {
            let (start, count) = blocks_of(group);
            let copies = 1 + table_blocks + sb.reserved;
            used.insert(sb.bytes(start, copies.min(count))?);
        }
    }
    let mut free = Largest::of(MOST);
    let mut bitmap = vec![0; usize::try_from(sb.block)?];
    for (group, desc) in descs() {
        let (start, count) = blocks_of(group);
        let place = sb.bytes(start, count)?;
        if never_written(&desc)? {
            used.outside(place).for_each(|range| free.push(range));
            continue;
        }
        let at = desc.u64(0x0, high(0x20))?;
        file.read_exact_at(&mut bitmap, at * sb.block)?;
        let clusters = (place.end - place.start).div_ceil(sb.cluster);
        let mut counted = 0;
        for run in zeros(&bitmap, clusters)? {
            counted += run.end - run.start;
            let start = place.start + run.start * sb.cluster;
            let range = start..(place.start + run.end * sb.cluster).min(place.end);
            used.outside(range).for_each(|range| free.push(range));
        }
        let upper = if sb.is_64bit { desc.u16(0x2c)? } else { 0 };
        let said = u64::from(upper) << 16 | u64::from(desc.u16(0xc)?);
        if counted != said {
            bail!(
                "the bitmap of group {group} has {counted} free clusters, its descriptor says {said}"
            );
        }
    }
    Ok(free.finish())
}

#[cfg(test)]
mod tests;
