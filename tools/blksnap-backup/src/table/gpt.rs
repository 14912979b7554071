// SPDX-License-Identifier: GPL-2.0-or-later

//! The table of partitions of UEFI.
//!
//! ```text
//! sector 0    the protective master boot record
//! sector 1    the header, and from where it says on, usually sector 2, the entries
//! …           what partitions may use, from `first_usable` up to `last_usable`
//! the end     the entries again, and in the last sector a second header
//! ```
//!
//! Each header has checksums of itself and of the entries. On a disk that became larger, the second header is
//! not in the last sector: the kernel goes on to use the first one, and tools complain.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::mbr::Record;
use super::{Disk, Partition, check_apart};

/// The most sectors that are read at a time: of the entries, of which there are seldom more than 128.
pub const MOST: u64 = 2048;
const SIGNATURE: [u8; 8] = *b"EFI PART";
/// Where partitions end that are grown: at a multiple of it.
const ALIGN: u64 = 1 << 20;

/// What every version of a header begins with. More may follow, which is kept.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    revision: U32,
    /// Bytes of the header that have the checksum.
    size: U32,
    checksum: U32,
    reserved: U32,
    /// Sectors: where this one is, and the other one.
    own: U64,
    other: U64,
    first_usable: U64,
    last_usable: U64,
    disk: [u8; 16],
    /// The first sector of the entries, how many there are, and bytes in one.
    entries: U64,
    count: U32,
    entry_size: U32,
    entries_checksum: U32,
}

/// An entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    /// All zeros if it is free.
    kind: [u8; 16],
    id: [u8; 16],
    first: U64,
    last: U64,
    flags: U64,
    name: [u8; 72],
}

/// A table that was read, and is whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Gpt {
    sector: u64,
    /// The first sector of the disk.
    boot: Vec<u8>,
    /// The sector of the first header, whose checksum need not be right.
    header: Vec<u8>,
    entries: Vec<u8>,
    partitions: Vec<Partition>,
    /// Where the second header and its entries are, if they are good.
    second: Option<Range<u64>>,
}

impl std::fmt::Debug for Gpt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Gpt");
        shown.field("partitions", &self.partitions);
        shown.field("second", &self.second).finish_non_exhaustive()
    }
}

/// What is to be done for a table to be that of a larger disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// What is to be written, in this order: the place, in bytes, and whole logical sectors.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// The last partition as it will be, and how many bytes it had.
    pub grown: Option<(Partition, u64)>,
}

impl Gpt {
    /// Reads it. Where the first header is damaged, the second one, in the last sector, counts.
    pub(super) fn read(disk: &Disk<'_>, boot: Vec<u8>) -> Result<Self> {
        let last = disk.count.saturating_sub(1);
        let first = Part::read(disk, 1).and_then(Part::at_beginning);
        let first = first.context("the first header of the GPT is damaged");
        let second = match &first {
            Ok(first) => Part::read(disk, first.head.other.get()).ok(),
            Err(_) => Part::read(disk, last).ok(),
        };
        // Who has another disk in mind is no copy.
        let second = second.filter(|second| {
            let first = first.as_ref();
            second.head.own.get() != 1
                && first.map_or(true, |one| one.head.disk == second.head.disk)
        });
        let place = second.as_ref().and_then(|second| second.range(disk).ok());
        let part = match (first, second) {
            (Ok(first), _) => first,
            (Err(_), Some(second)) => second.into_first()?,
            (Err(error), None) => return Err(error.context("and there is no good second one")),
        };
        Ok(Self {
            sector: disk.sector,
            partitions: part.partitions(disk)?,
            boot,
            header: part.sector,
            entries: part.entries,
            second: place,
        })
    }

    /// The partitions.
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// Whether both headers are good and the second one is at the end of a disk of `size` bytes.
    pub fn fits(&self, size: u64) -> bool {
        let end = size / self.sector * self.sector;
        self.second.as_ref().is_some_and(|second| second.end == end)
    }

    /// The table for a disk of `size` bytes that begins as this one does, and is larger. The second header
    /// goes to the end of that; with `grow`, the last partition takes what comes after it.
    pub fn moved(&self, size: u64, grow: bool) -> Result<Moved> {
        let count = size / self.sector;
        let room = (self.entries.len() as u64).div_ceil(self.sector);
        let used = self.partitions.iter().map(|one| one.range.end).max();
        let head = self.head()?;
        let used = (used.unwrap_or(0) / self.sector).max(head.first_usable.get());
        // The first sector that no partition can have.
        let usable = count.checked_sub(room + 1).filter(|&end| end >= used);
        let usable = usable.context("the disk is too small for the table")?;

        let mut moved = Moved {
            writes: Vec::new(),
            grown: None,
        };
        let mut entries = self.entries.clone();
        if grow {
            moved.grown = self.grow(&mut entries, usable)?;
        }
        // What tools could take for the table of a smaller disk, where no partition could be.
        let apart = |old: &&Range<u64>| old.start / self.sector > head.last_usable.get();
        if let Some(old) = self.second.as_ref().filter(apart) {
            let length = (old.end - old.start) as usize;
            moved.writes.push((old.start, vec![0; length]));
        }
        let first = Header {
            other: (count - 1).into(),
            last_usable: (usable - 1).into(),
            ..head
        };
        let second = Header {
            own: first.other,
            other: first.own,
            entries: usable.into(),
            ..first
        };
        let mut boot = self.boot.clone();
        Record::protect(&mut boot, count);
        let mut all = entries.clone();
        all.resize((room * self.sector) as usize, 0);
        let mut write = |sector: u64, bytes| moved.writes.push((sector * self.sector, bytes));
        write(usable, all.clone());
        write(count - 1, self.sealed(second, &entries)?);
        write(first.entries.get(), all);
        write(1, self.sealed(first, &entries)?);
        write(0, boot);
        Ok(moved)
    }

    /// The first header.
    fn head(&self) -> Result<Header> {
        let head = Header::read_from_prefix(&self.header).ok();
        Ok(head.context("a sector is too short for a header")?.0)
    }

    /// Lets the entry of the last partition end before the sector `usable`.
    fn grow(&self, entries: &mut [u8], usable: u64) -> Result<Option<(Partition, u64)>> {
        let end = usable * self.sector / ALIGN * ALIGN;
        let last = self.partitions.iter().max_by_key(|one| one.range.end);
        let Some(last) = last.filter(|one| one.range.end < end) else {
            return Ok(None);
        };
        let at = (last.number as usize - 1) * size_of::<Entry>();
        let place = entries.get_mut(at..at + size_of::<Entry>());
        let place = place.context("the last partition has no entry")?;
        let entry = Entry::mut_from_bytes(place).ok();
        let entry = entry.context("the last partition has no entry")?;
        entry.last = (end / self.sector - 1).into();
        let grown = Partition {
            number: last.number,
            range: last.range.start..end,
        };
        Ok(Some((grown, last.range.end - last.range.start)))
    }

    /// The sector of a header, with its checksums.
    fn sealed(&self, head: Header, entries: &[u8]) -> Result<Vec<u8>> {
        let mut sector = self.header.clone();
        let head = Header {
            entries_checksum: crc32fast::hash(entries).into(),
            checksum: 0.into(),
            ..head
        };
        let seal = |sector: &mut Vec<u8>, head: &Header| {
            let place = sector.get_mut(..size_of::<Header>());
            let place = place.context("a sector is too short for a header")?;
            place.copy_from_slice(head.as_bytes());
            Ok::<_, anyhow::Error>(())
        };
        seal(&mut sector, &head)?;
        let sum = crc32fast::hash(checked(&sector, &head)?);
        seal(
            &mut sector,
            &Header {
                checksum: sum.into(),
                ..head
            },
        )?;
        Ok(sector)
    }
}

/// The bytes that the checksum of a header is of.
fn checked<'a>(sector: &'a [u8], head: &Header) -> Result<&'a [u8]> {
    let size = head.size.get() as usize;
    let bytes = sector.get(..size).filter(|_| size >= size_of::<Header>());
    bytes.with_context(|| format!("it claims to have {size} bytes"))
}

/// A header and its entries, which are as they were written.
struct Part {
    sector: Vec<u8>,
    head: Header,
    entries: Vec<u8>,
}

impl Part {
    /// Reads the header in a sector, and its entries.
    fn read(disk: &Disk<'_>, at: u64) -> Result<Self> {
        let sector = disk.sectors(at, 1)?;
        let head = Header::read_from_prefix(&sector).ok();
        let (head, _) = head.context("a sector is too short for it")?;
        ensure!(head.signature == SIGNATURE, "there is none in sector {at}");
        let mut clear = checked(&sector, &head)?.to_vec();
        if let Some(sum) = clear.get_mut(16..20) {
            sum.fill(0);
        }
        ensure!(
            crc32fast::hash(&clear) == head.checksum.get(),
            "its checksum is wrong"
        );
        ensure!(head.own.get() == at, "it is that of sector {}", head.own);
        ensure!(
            head.entry_size.get() as usize == size_of::<Entry>(),
            "entries of {} bytes are not known",
            head.entry_size
        );
        let (first, last) = (head.first_usable.get(), head.last_usable.get());
        ensure!(
            first > 1 && first <= last && last < disk.count,
            "partitions would be in sectors {first} to {last} of {}",
            disk.count
        );
        let length = u64::from(head.count.get()) * size_of::<Entry>() as u64;
        let mut entries = disk.sectors(head.entries.get(), length.div_ceil(disk.sector))?;
        entries.truncate(length as usize);
        ensure!(
            crc32fast::hash(&entries) == head.entries_checksum.get(),
            "the checksum of its entries is wrong"
        );
        Ok(Self {
            sector,
            head,
            entries,
        })
    }

    /// The bytes of a second header and its entries, which come before it.
    fn range(&self, disk: &Disk<'_>) -> Result<Range<u64>> {
        let (first, own) = (self.head.entries.get(), self.head.own.get());
        ensure!(own.checked_sub(first).is_some_and(|length| length <= MOST));
        disk.range(first, own + 1)
    }

    /// The first header that belongs to this second one: its entries come after it.
    fn into_first(mut self) -> Result<Self> {
        self.head = Header {
            own: 1.into(),
            other: self.head.own,
            entries: 2.into(),
            ..self.head
        };
        let place = self.sector.get_mut(..size_of::<Header>());
        let place = place.context("a sector is too short for a header")?;
        place.copy_from_slice(self.head.as_bytes());
        self.at_beginning()
    }

    /// Fails if the entries are not between the header in sector 1 and what partitions can have.
    fn at_beginning(self) -> Result<Self> {
        let sector = self.sector.len() as u64;
        let room = (self.entries.len() as u64).div_ceil(sector);
        let end = self.head.entries.get().checked_add(room);
        ensure!(
            self.head.entries.get() > 1
                && end.is_some_and(|end| end <= self.head.first_usable.get()),
            "its entries are where partitions could be"
        );
        Ok(self)
    }

    fn partitions(&self, disk: &Disk<'_>) -> Result<Vec<Partition>> {
        let mut found = Vec::new();
        for (number, bytes) in (1..).zip(self.entries.chunks_exact(size_of::<Entry>())) {
            // Of the right length.
            let Ok(entry) = Entry::read_from_bytes(bytes) else {
                continue;
            };
            if entry.kind == [0; 16] {
                continue;
            }
            let (first, last) = (entry.first.get(), entry.last.get());
            ensure!(
                self.head.first_usable.get() <= first && last <= self.head.last_usable.get(),
                "partition {number}, sectors {first} to {last}, is where no partition can be"
            );
            found.push(Partition {
                number,
                range: disk.range(first, last + 1)?,
            });
        }
        check_apart(&found)?;
        Ok(found)
    }
}
