// SPDX-License-Identifier: GPL-2.0-or-later

//! Tables of partitions: which bytes of a disk are partitions, and the GPT of a disk that is larger than
//! the one it was made for.
//!
//! A table is read as the kernel reads it: a GPT counts where the master boot record says that there is
//! one. What does not fit together is an error: who asks must not believe a part of it.

mod gpt;
mod mbr;

use std::ops::Range;

use anyhow::{Result, ensure};

pub use gpt::{Gpt, Moved};

/// Reads bytes of a disk from a place on: all that are asked for, or it fails.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<()>;

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As in the kernel's name of it: logical ones of a master boot record begin with 5.
    pub number: u32,
    /// Its bytes on the disk.
    pub range: Range<u64>,
}

/// The table of partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// That of UEFI.
    Gpt(Gpt),
    /// A master boot record, and the chain of logical partitions. An extended partition, in which these
    /// are, is no partition here: what else is in it is the chain.
    Mbr(Vec<Partition>),
}

impl Table {
    /// Reads the table of a disk of `size` bytes and logical sectors of `sector` bytes. `None` if there is
    /// none, or one without any partition in a master boot record.
    pub fn read(size: u64, sector: u32, read: ReadAt<'_>) -> Result<Option<Self>> {
        let disk = Disk::new(size, sector, read)?;
        if size < u64::from(sector) {
            return Ok(None);
        }
        let first = disk.sectors(0, 1)?;
        let Some(record) = mbr::Record::of(&first) else {
            return Ok(None);
        };
        if record.protects_gpt() {
            return Gpt::read(&disk, first).map(|gpt| Some(Self::Gpt(gpt)));
        }
        let partitions = record.partitions(&disk)?;
        Ok((!partitions.is_empty()).then_some(Self::Mbr(partitions)))
    }

    /// The partitions, in the order of their numbers. None overlaps another one, all are on the disk.
    pub fn partitions(&self) -> &[Partition] {
        match self {
            Self::Gpt(gpt) => gpt.partitions(),
            Self::Mbr(partitions) => partitions,
        }
    }
}

/// A disk that is read in its logical sectors.
struct Disk<'a> {
    /// How many there are.
    count: u64,
    /// Bytes in one.
    sector: u64,
    read: ReadAt<'a>,
}

impl<'a> Disk<'a> {
    fn new(size: u64, sector: u32, read: ReadAt<'a>) -> Result<Self> {
        ensure!(
            sector.is_power_of_two() && (512..=65536).contains(&sector),
            "logical sectors of {sector} bytes are not known"
        );
        let sector = u64::from(sector);
        Ok(Self {
            count: size / sector,
            sector,
            read,
        })
    }

    /// Reads sectors, which must be on the disk.
    fn sectors(&self, first: u64, count: u64) -> Result<Vec<u8>> {
        let end = first.checked_add(count).filter(|&end| end <= self.count);
        ensure!(
            end.is_some() && count <= gpt::MOST,
            "{count} sectors at sector {first} are not on the disk, which has {}",
            self.count
        );
        // On the disk, so it fits; and no more than `MOST` of them.
        let mut bytes = vec![0; (count * self.sector) as usize];
        (self.read)(first * self.sector, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of sectors from `first` on, up to, but without, `end`; which are on the disk.
    fn range(&self, first: u64, end: u64) -> Result<Range<u64>> {
        ensure!(
            first < end && end <= self.count,
            "a partition from sector {first} up to {end} is not on the disk, which has {}",
            self.count
        );
        Ok(first * self.sector..end * self.sector)
    }
}

/// Fails if partitions overlap.
fn check_apart(partitions: &[Partition]) -> Result<()> {
    let mut sorted: Vec<_> = partitions.iter().collect();
    sorted.sort_by_key(|one| one.range.start);
    for pair in sorted.windows(2) {
        if let [one, next] = pair {
            ensure!(
                one.range.end <= next.range.start,
                "the partitions {} and {} overlap",
                one.number,
                next.number
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
