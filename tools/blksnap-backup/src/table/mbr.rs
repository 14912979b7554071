// SPDX-License-Identifier: GPL-2.0-or-later

//! The master boot record: four partitions, one of which may be an extended one, in which there is a chain
//! of records of its own, each with one logical partition and the place of the next record.

use anyhow::{Result, bail, ensure};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Disk, Partition, check_apart};

/// Where the entries are in the first sector, and what is at the end of its first 512 bytes.
const ENTRIES: usize = 446;
const MARK: [u8; 2] = [0x55, 0xaa];
/// Kinds: an extended partition, in its three spellings, and all of a disk with a GPT.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;
/// The most logical partitions. Linux knows no more than 100; a longer chain is a circle.
const MOST: u32 = 256;

/// An entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    /// 0x80 if it is to be booted, else 0.
    boot: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    /// In logical sectors, as is the next.
    start: U32,
    count: U32,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.kind == 0 || self.count == 0
    }

    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }
}

/// The record of a sector.
pub struct Record([Entry; 4]);

impl Record {
    /// Of the bytes of a sector. `None` if it is something else, such as the boot sector of a FAT.
    pub fn of(sector: &[u8]) -> Option<Self> {
        let mark = sector.get(510..512)?;
        let bytes = sector.get(ENTRIES..ENTRIES + 64)?;
        let entries = <[Entry; 4]>::read_from_bytes(bytes).ok()?;
        let possible = entries.iter().all(|one| one.boot & 0x7f == 0);
        (mark == MARK && possible).then_some(Self(entries))
    }

    /// Whether it says that there is a GPT: it has to be named where that begins.
    pub fn protects_gpt(&self) -> bool {
        let mut entries = self.0.iter();
        entries.any(|one| one.kind == PROTECTIVE && one.start.get() == 1)
    }

    /// Puts into a first sector of a disk with a GPT how many sectors that has. Where somebody has added
    /// partitions of the GPT to this record, it is left alone.
    pub fn protect(sector: &mut [u8], count: u64) {
        let Some(Self(mut entries)) = Self::of(sector) else {
            return;
        };
        let mut used = entries.iter_mut().filter(|one| one.kind != 0);
        let (Some(only), None) = (used.next(), used.next()) else {
            return;
        };
        if only.kind != PROTECTIVE || only.start.get() != 1 {
            return;
        }
        only.count = u32::try_from(count - 1).unwrap_or(u32::MAX).into();
        only.last_chs = [0xff; 3];
        // `of` has found it long enough.
        if let Some(place) = sector.get_mut(ENTRIES..ENTRIES + 64) {
            place.copy_from_slice(entries.as_bytes());
        }
    }

    /// All partitions.
    pub fn partitions(&self, disk: &Disk<'_>) -> Result<Vec<Partition>> {
        let mut found = Vec::new();
        for (number, one) in (1..).zip(&self.0) {
            if one.is_empty() || one.is_extended() {
                continue;
            }
            let start = u64::from(one.start.get());
            found.push(Partition {
                number,
                range: disk.range(start, start + u64::from(one.count.get()))?,
            });
        }
        let mut extended = self.0.iter().filter(|one| one.is_extended());
        match (extended.next(), extended.next()) {
            (Some(_), Some(_)) => bail!("there are two extended partitions"),
            (Some(one), None) => logical(disk, u64::from(one.start.get()), &mut found)?,
            (None, _) => {}
        }
        check_apart(&found)?;
        Ok(found)
    }
}

/// Adds the logical partitions of an extended one that begins at a sector.
fn logical(disk: &Disk<'_>, extended: u64, found: &mut Vec<Partition>) -> Result<()> {
    let mut at = extended;
    let mut number = 5;
    loop {
        ensure!(
            number < 5 + MOST,
            "the chain of logical partitions has no end"
        );
        // No record: the chain ends here, as for the kernel.
        let Some(Record([own, next, ..])) = Record::of(&disk.sectors(at, 1)?) else {
            return Ok(());
        };
        if !own.is_empty() && !own.is_extended() {
            // Two numbers of 32 bits, and one that is on the disk.
            let start = at + u64::from(own.start.get());
            found.push(Partition {
                number,
                range: disk.range(start, start + u64::from(own.count.get()))?,
            });
            number += 1;
        }
        if next.is_empty() || !next.is_extended() {
            return Ok(());
        }
        let before = at;
        at = extended + u64::from(next.start.get());
        ensure!(
            at > before,
            "the chain of logical partitions goes backwards"
        );
    }
}
