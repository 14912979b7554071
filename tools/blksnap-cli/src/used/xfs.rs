// SPDX-License-Identifier: GPL-2.0-or-later

//! xfs: what the trees of free space say.
//!
//! ```text
//! superblock → the AGF of each allocation group → its tree of free extents, sorted by block (bnobt)
//! ```
//!
//! Only version 5, where each block of metadata has a checksum and says where, and of which file system,
//! it is. What is in no record of a bnobt counts as used: the headers of groups, blocks of trees, the
//! AGFL, what `xfs_refcountbt` has as staged copies. Resizing is not seen half done: it is in
//! `mnt_want_write_file()`, which a freeze waits for. [`log`] has why the trees are those of the instant.
//!
//! Of a realtime device, nothing is known here: it is another device, but for `XFS_SB_FEAT_INCOMPAT_ZONED`,
//! which is refused.

use anyhow::{Result, ensure};
use blksnap::ByteSet;

use super::largest::{Largest, MOST};
use super::place::{Bytes, Place, crc32c};

mod log;

/// FTYPE, SPINODES, META_UUID, BIGTIME, NREXT64, EXCHRANGE, PARENT, METADIR: not NEEDSREPAIR, ZONED, ZONE_GAPS.
const INCOMPAT: u32 = 0x1 | 0x2 | META_UUID | 0x8 | 0x20 | 0x40 | 0x80 | 0x100;
const META_UUID: u32 = 0x4;
/// FINOBT, RMAPBT, REFLINK, INOBTCNT.
const RO_COMPAT: u32 = 0xf;
/// `XFS_BTREE_MAXLEVELS` and `XFS_BTREE_SBLOCK_CRC_LEN`.
const LEVELS: u32 = 9;
const NODE_HEAD: usize = 56;

/// Whether the checksum at `at`, which counts as zeros, is right: `xfs_verify_cksum()`.
fn is_whole(block: &[u8], at: usize) -> Result<bool> {
    let bytes = Bytes(block);
    let (before, after) = (bytes.part(0, at)?, &block[at + 4..]);
    Ok(bytes.le32(at)? == !crc32c(u32::MAX, &[before, &[0; 4], after]))
}

/// What of the superblock is needed. Blocks are numbered from the beginning of the file system or, in an
/// allocation group, of that.
struct Super {
    block: u64,
    sector: u64,
    blocks: u64,
    /// Blocks in a group.
    group: u64,
    groups: u64,
    uuid: [u8; 16],
    /// Of metadata.
    meta_uuid: [u8; 16],
    log_start: u64,
    log_blocks: u64,
}

impl Super {
    fn read(place: &Place) -> Result<Self> {
        let head = place.read(0, 512)?;
        let sector = u64::from(Bytes(&head).be16(102)?);
        ensure!(
            head.starts_with(b"XFSB")
                && sector.is_power_of_two()
                && (512..=32768).contains(&sector),
            "its superblock is not known"
        );
        let bytes = place.read(0, sector)?;
        let sb = Bytes(&bytes);
        ensure!(sb.be16(100)? & 0xf == 5, "it is not of version 5");
        ensure!(
            is_whole(&bytes, 224)?,
            "the checksum of its superblock is wrong"
        );
        let (ro_compat, incompat, log) = (sb.be32(212)?, sb.be32(216)?, sb.be32(220)?);
        ensure!(
            incompat & !INCOMPAT == 0 && ro_compat & !RO_COMPAT == 0 && log == 0,
            "it has features that are not known here ({incompat:#x}, {ro_compat:#x}, {log:#x})"
        );
        // sb_inprogress.
        ensure!(sb.get(126)? == [0], "its making has not come to an end");
        let uuid = sb.get(32)?;
        let found = Self {
            block: sb.be32(4)?.into(),
            sector,
            blocks: sb.be64(8)?,
            group: sb.be32(84)?.into(),
            groups: sb.be32(88)?.into(),
            uuid,
            meta_uuid: match incompat & META_UUID {
                0 => uuid,
                _ => sb.get(248)?,
            },
            log_start: sb.be64(48)?,
            log_blocks: sb.be32(96)?.into(),
        };
        // sb_logstart.
        ensure!(found.log_start != 0, "its log is on another device");
        let end = found.blocks.checked_mul(found.block);
        ensure!(
            end.is_some_and(|end| end <= place.size),
            "it does not fit the device"
        );
        // A number of a block has the group above sb_agblklog bits.
        let [group_bits] = sb.get(124)?;
        ensure!(
            found.block.is_power_of_two()
                && (512..=65536).contains(&found.block)
                && sector <= found.block
                && found.group > 4
                && found.groups == found.blocks.div_ceil(found.group)
                && found.group.next_power_of_two() == 1 << (group_bits & 63),
            "its superblock makes no sense"
        );
        let (group, block) = (
            found.log_start >> group_bits,
            found.log_start & ((1 << group_bits) - 1),
        );
        ensure!(
            block + found.log_blocks <= found.group && group < found.groups,
            "its log is not in an allocation group"
        );
        Ok(Self {
            log_start: group * found.group + block,
            ..found
        })
    }
}

/// An allocation group.
struct Group<'a> {
    place: &'a Place<'a>,
    sb: &'a Super,
    number: u64,
    /// Blocks in it.
    length: u64,
    /// What was found to be free.
    free: Vec<(u64, u64)>,
    /// The block behind the last of that.
    next: u64,
}

impl Group<'_> {
    /// Where a block of the group is, in bytes.
    fn byte(&self, block: u64) -> u64 {
        (self.number * self.sb.group + block) * self.sb.block
    }

    fn read(&mut self) -> Result<()> {
        let (number, sector) = (self.number, self.sb.sector);
        let bytes = self.place.read(self.byte(0) + sector, sector)?;
        let agf = Bytes(&bytes);
        ensure!(
            bytes.starts_with(b"XAGF")
                && is_whole(&bytes, 216)?
                && agf.get(64)? == self.sb.meta_uuid
                && u64::from(agf.be32(8)?) == number
                && u64::from(agf.be32(12)?) == self.length,
            "the header of free space of allocation group {number} is wrong"
        );
        let levels = agf.be32(28)?;
        ensure!(
            (1..=LEVELS).contains(&levels),
            "the tree of allocation group {number} has {levels} levels"
        );
        self.walk(agf.be32(16)?.into(), levels - 1)?;
        let found: u64 = self.free.iter().map(|(start, end)| end - start).sum();
        // agf_freeblks.
        let said = agf.be32(52)?;
        ensure!(
            found == u64::from(said),
            "{found} blocks of allocation group {number} are free, its header says {said}"
        );
        Ok(())
    }

    /// Collects what is below a block of the tree.
    fn walk(&mut self, at: u64, level: u32) -> Result<()> {
        let number = self.number;
        ensure!(
            at < self.length,
            "a block of the tree is outside of allocation group {number}"
        );
        let start = self.byte(at);
        let bytes = self.place.read(start, self.sb.block)?;
        let node = Bytes(&bytes);
        ensure!(
            bytes.starts_with(b"AB3B")
                && is_whole(&bytes, 52)?
                && node.get(32)? == self.sb.meta_uuid
                && u64::from(node.be32(48)?) == number
                && node.be64(16)? == start / 512
                && u32::from(node.be16(4)?) == level,
            "block {at} of allocation group {number} is no block of its tree of free space"
        );
        let records = usize::from(node.be16(6)?);
        let room = bytes.len() - NODE_HEAD;
        if level > 0 {
            // Keys of 8 bytes, then pointers.
            let most = room / 12;
            ensure!(records <= most, "a block of the tree has {records} records");
            for record in 0..records {
                let child = node.be32(NODE_HEAD + most * 8 + record * 4)?;
                self.walk(child.into(), level - 1)?;
            }
            return Ok(());
        }
        for record in 0..records {
            let at = NODE_HEAD + record * 8;
            let (start, count) = (u64::from(node.be32(at)?), u64::from(node.be32(at + 4)?));
            ensure!(
                count > 0 && start >= self.next && start + count <= self.length,
                "the tree of free space of allocation group {number} makes no sense at block {start}"
            );
            self.next = start + count;
            self.free.push((start, self.next));
        }
        Ok(())
    }
}

/// What is free.
pub fn unused(place: &Place) -> Result<ByteSet> {
    let sb = Super::read(place)?;
    log::check_empty(place, &sb)?;
    let mut free = Largest::of(MOST);
    for number in 0..sb.groups {
        let mut group = Group {
            place,
            sb: &sb,
            number,
            length: sb.group.min(sb.blocks - number * sb.group),
            free: Vec::new(),
            // Superblock, AGF, AGI and AGFL have a sector each.
            next: (4 * sb.sector).div_ceil(sb.block),
        };
        group.read()?;
        let found = group.free.iter();
        found.for_each(|&(start, end)| free.push(group.byte(start)..group.byte(end)));
    }
    Ok(free.finish())
}

#[cfg(test)]
mod tests;
