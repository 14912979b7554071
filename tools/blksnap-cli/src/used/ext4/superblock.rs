// SPDX-License-Identifier: GPL-2.0-or-later

//! What of an ext4 superblock is needed, and where the descriptors of groups are.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::super::place::{Bytes, Place, crc32c};

/// Where the superblock is.
pub const SUPER: u64 = 1024;

// s_feature_incompat.
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const IS_64BIT: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// Those that change neither bitmaps nor descriptors, or are known here: with these FILETYPE, EXTENTS, MMP (whose
/// block is in the bitmaps), FLEX_BG, EA_INODE, LARGEDIR, INLINE_DATA, ENCRYPT and CASEFOLD.
const INCOMPAT: u32 = 0x2
    | META_BG
    | 0x40
    | IS_64BIT
    | 0x100
    | 0x200
    | 0x400
    | CSUM_SEED
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
// s_feature_ro_compat.
const SPARSE_SUPER: u32 = 0x1;
const GDT_CSUM: u32 = 0x10;
const BIGALLOC: u32 = 0x200;
const METADATA_CSUM: u32 = 0x400;
/// The same: with LARGE_FILE, BTREE_DIR, HUGE_FILE, DIR_NLINK, EXTRA_ISIZE, QUOTA, READONLY, PROJECT, VERITY and
/// ORPHAN_PRESENT (files to be deleted, whose blocks are in the bitmaps).
const RO_COMPAT: u32 = SPARSE_SUPER
    | 0x2
    | 0x4
    | 0x8
    | GDT_CSUM
    | 0x20
    | 0x40
    | 0x100
    | BIGALLOC
    | METADATA_CSUM
    | 0x1000
    | 0x2000
    | 0x8000
    | 0x1_0000;
// s_feature_compat.
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;

/// What protects descriptors and bitmaps.
pub enum Checksums {
    None,
    /// Descriptors only, with the UUID.
    Crc16,
    /// With this seed.
    Crc32c(u32),
}

pub struct Super {
    /// Bytes.
    pub block: u64,
    pub cluster: u64,
    pub blocks: u64,
    first: u64,
    pub clusters_per_group: u64,
    /// Blocks in a group.
    pub per_group: u64,
    pub inodes_per_group: u64,
    pub inode_size: u64,
    /// Blocks in the table of inodes of a group.
    pub inode_blocks: u64,
    /// Bytes in a descriptor.
    pub desc: u64,
    pub is_64bit: bool,
    pub checksums: Checksums,
    /// Blocks for descriptors of groups to come, after each copy of the descriptors.
    reserved: u64,
    pub uuid: [u8; 16],
    /// The inode of the journal.
    pub journal: Option<u64>,
    sparse: bool,
    /// The groups with copies of the superblock, with sparse_super2.
    supers: Option<[u64; 2]>,
    /// From this block of descriptors on, they are in the groups that they describe.
    meta_bg: Option<u64>,
}

/// All descriptors, and where they are.
pub struct Descriptors {
    pub bytes: Vec<u8>,
    pub places: Vec<Range<u64>>,
}

impl Super {
    pub fn read(place: &Place) -> Result<Self> {
        let bytes = place.read(SUPER, 1024)?;
        let sb = Bytes(&bytes);
        ensure!(
            sb.le16(0x38)? == 0xef53 && sb.le32(0x4c)? == 1,
            "its superblock is not known"
        );
        let (compat, incompat, ro_compat) = (sb.le32(0x5c)?, sb.le32(0x60)?, sb.le32(0x64)?);
        ensure!(
            incompat & RECOVER == 0,
            "its journal is to be replayed: it was not frozen by the take, or not unmounted"
        );
        // s_state: EXT4_VALID_FS and EXT4_ERROR_FS, which is set when the kernel finds a bitmap to be wrong.
        ensure!(
            sb.le16(0x3a)? & 3 == 1,
            "it has errors, or no journal and was not unmounted"
        );
        ensure!(
            incompat & !INCOMPAT == 0 && ro_compat & !RO_COMPAT == 0,
            "it has features that are not known here ({incompat:#x}, {ro_compat:#x})"
        );
        // s_journal_dev.
        ensure!(sb.le32(0xe4)? == 0, "its journal is on another device");
        let uuid = sb.get(0x68)?;
        let checksums = if ro_compat & METADATA_CSUM != 0 {
            ensure!(
                sb.get(0x175)? == [1]
                    && crc32c(u32::MAX, &[sb.part(0, 0x3fc)?]) == sb.le32(0x3fc)?,
                "the checksum of its superblock is wrong"
            );
            Checksums::Crc32c(match incompat & CSUM_SEED {
                0 => crc32c(u32::MAX, &[&uuid]),
                _ => sb.le32(0x270)?,
            })
        } else if ro_compat & GDT_CSUM != 0 {
            Checksums::Crc16
        } else {
            Checksums::None
        };
        let (log_block, log_cluster) = (sb.le32(0x18)?, sb.le32(0x1c)?);
        ensure!(
            log_block <= 6 && log_cluster <= 20,
            "its blocks are too large"
        );
        let block = 1024 << log_block;
        let is_64bit = incompat & IS_64BIT != 0;
        let bigalloc = ro_compat & BIGALLOC != 0;
        let upper = if is_64bit { sb.le32(0x150)? } else { 0 };
        let inode_size = u64::from(sb.le16(0x58)?);
        let inodes_per_group = u64::from(sb.le32(0x28)?);
        let found = Self {
            block,
            blocks: u64::from(upper) << 32 | u64::from(sb.le32(0x4)?),
            first: sb.le32(0x14)?.into(),
            cluster: if bigalloc { 1024 << log_cluster } else { block },
            per_group: sb.le32(0x20)?.into(),
            clusters_per_group: sb.le32(if bigalloc { 0x24 } else { 0x20 })?.into(),
            inode_blocks: (inodes_per_group * inode_size).div_ceil(block),
            inodes_per_group,
            inode_size,
            desc: if is_64bit { sb.le16(0xfe)?.into() } else { 32 },
            is_64bit,
            checksums,
            reserved: sb.le16(0xce)?.into(),
            uuid,
            journal: match compat & HAS_JOURNAL {
                0 => None,
                _ => Some(sb.le32(0xe0)?.into()),
            },
            sparse: ro_compat & SPARSE_SUPER != 0,
            supers: match compat & SPARSE_SUPER2 {
                0 => None,
                _ => Some([sb.le32(0x24c)?.into(), sb.le32(0x250)?.into()]),
            },
            meta_bg: match incompat & META_BG {
                0 => None,
                _ => Some(sb.le32(0x104)?.into()),
            },
        };
        let bytes = found.blocks.checked_mul(block);
        ensure!(
            bytes.is_some_and(|bytes| bytes <= place.size)
                && found.first <= 1
                && found.first < found.blocks,
            "it does not fit the device"
        );
        ensure!(
            found.cluster >= block
                && found.clusters_per_group > 0
                && found.clusters_per_group <= block * 8
                && found.clusters_per_group % 8 == 0
                && found.per_group * block == found.clusters_per_group * found.cluster
                && found.desc.is_power_of_two()
                && (if is_64bit { 64 } else { 32 }..=1024).contains(&found.desc)
                && inode_size >= 128
                && inodes_per_group > 0,
            "its superblock makes no sense"
        );
        Ok(found)
    }

    pub fn groups(&self) -> u64 {
        (self.blocks - self.first).div_ceil(self.per_group)
    }

    /// The first block of a group.
    pub fn group_start(&self, group: u64) -> u64 {
        self.first + group * self.per_group
    }

    /// Bytes of blocks; all of them must be in the file system.
    pub fn bytes(&self, start: u64, count: u64) -> Result<Range<u64>> {
        let end = start.checked_add(count).filter(|&end| end <= self.blocks);
        Ok(start * self.block..end.context("a block is behind its end")? * self.block)
    }

    /// Whether the flags of groups mean something.
    pub fn has_flags(&self) -> bool {
        !matches!(self.checksums, Checksums::None)
    }

    /// Blocks of all descriptors.
    fn descriptor_blocks(&self) -> u64 {
        (self.groups() * self.desc).div_ceil(self.block)
    }

    /// As `ext4_bg_has_super()`.
    fn has_super(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match self.supers {
            _ if group == 0 => true,
            Some(supers) => supers.contains(&group),
            None => group <= 1 || !self.sparse || [3, 5, 7].into_iter().any(is_power),
        }
    }

    /// Blocks of copies at the beginning of a group, at most: `ext4_num_base_meta_blocks()`.
    pub fn copies(&self, group: u64) -> u64 {
        let own = u64::from(self.meta_bg.is_some());
        match self.has_super(group) {
            true => 1 + self.descriptor_blocks() + self.reserved + own,
            false => own,
        }
    }

    /// Where the block number `number` of descriptors is, as `descriptor_loc()`.
    fn descriptor_block(&self, number: u64) -> u64 {
        let super_block = SUPER / self.block;
        if self.meta_bg.is_none_or(|first| number < first) {
            return super_block + 1 + number;
        }
        let group = number * (self.block / self.desc);
        let mut block = self.group_start(group) + u64::from(self.has_super(group));
        if self.block == 1024 && number == 0 && self.first == 0 {
            block += 1;
        }
        block
    }

    pub fn read_descriptors(&self, place: &Place) -> Result<Descriptors> {
        // What is before the first group, and its superblock.
        let boot = self.bytes(0, SUPER / self.block + 1)?;
        let (mut bytes, mut places) = (Vec::new(), vec![boot]);
        for number in 0..self.descriptor_blocks() {
            let range = self.bytes(self.descriptor_block(number), 1)?;
            bytes.append(&mut place.read(range.start, self.block)?);
            places.push(range);
        }
        Ok(Descriptors { bytes, places })
    }
}
