// SPDX-License-Identifier: GPL-2.0-or-later

//! Extents: what one backup itself has of a device, and the checksums of it.
//!
//! A file of lines, `[start, length, "blake3 of the data"]`, or `[start, length, null]` for zeros,
//! in bytes; ascending and disjoint. The manifest has the checksum of the file itself.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use blake3::{Hash, Hasher};
use blksnap::ByteSet;

use crate::buffer;
use crate::private;

/// A part of a device, as one backup has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub start: u64,
    /// Bytes; of data no more than [`buffer::SIZE`].
    pub length: u64,
    /// The checksum of data; `None` if all are zeros.
    pub hash: Option<Hash>,
}

impl Extent {
    /// One of data.
    pub fn of(start: u64, bytes: &[u8]) -> Self {
        Self {
            start,
            length: bytes.len() as u64,
            hash: Some(blake3::hash(bytes)),
        }
    }

    /// One of zeros.
    pub fn of_zeros(place: Range<u64>) -> Self {
        Self {
            start: place.start,
            length: place.end - place.start,
            hash: None,
        }
    }

    /// Its place.
    pub fn range(&self) -> Range<u64> {
        // No sum overflows: extents come from devices, or were checked when they were read.
        self.start..self.start + self.length
    }

    /// Takes in the next extent, if both are zeros and there is nothing between.
    fn join(&mut self, next: &Self) -> bool {
        let join = self.hash.is_none() && next.hash.is_none() && self.range().end == next.start;
        if join {
            self.length += next.length;
        }
        join
    }

    /// Whether this is the data.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        self.hash == Some(blake3::hash(bytes))
    }
}

/// Cuts data that belongs at `offset` into extents of zeros and of others.
pub fn cut(bytes: &[u8], offset: u64) -> Vec<Extent> {
    let runs = buffer::runs(bytes, offset).into_iter();
    runs.map(|(run, zero)| Extent {
        start: offset + run.start as u64,
        length: run.len() as u64,
        hash: (!zero).then(|| blake3::hash(&bytes[run])),
    })
    .collect()
}

/// The extents of one device in one backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// From extents in any order, no two of which overlap. Neighbouring zeros are joined.
    pub fn new(mut extents: Vec<Extent>) -> Self {
        extents.sort_unstable_by_key(|extent| extent.start);
        extents.dedup_by(|next, last| last.join(next));
        Self(extents)
    }

    /// Adds extents that follow all these.
    pub fn append(&mut self, mut more: Vec<Extent>) {
        let join = match (self.0.last_mut(), more.first()) {
            (Some(last), Some(next)) => last.join(next),
            _ => false,
        };
        if join {
            more.remove(0);
        }
        self.0.append(&mut more);
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> + Clone {
        self.0.iter()
    }

    /// All but zeros, ascending.
    pub fn data(&self) -> impl Iterator<Item = &Extent> + Clone {
        self.0.iter().filter(|extent| extent.hash.is_some())
    }

    /// All zeros, ascending.
    pub fn zeros(&self) -> impl Iterator<Item = &Extent> + Clone {
        self.0.iter().filter(|extent| extent.hash.is_none())
    }

    /// Those that have something of a range, ascending.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Extent> {
        let first = self
            .0
            .partition_point(|extent| extent.range().end <= range.start);
        let rest = self.0.iter().skip(first);
        rest.take_while(move |extent| extent.start < range.end)
    }

    /// Their places.
    pub fn places(&self) -> ByteSet {
        self.0.iter().map(Extent::range).collect()
    }

    /// Bytes of data, and of zeros.
    pub fn totals(&self) -> (u64, u64) {
        let sum = |zero| {
            let all = self.0.iter().filter(|extent| extent.hash.is_none() == zero);
            all.map(|extent| extent.length).sum()
        };
        (sum(false), sum(true))
    }

    /// Removes what is in `places`, and gives what is to be stored anew: that, and the rest of the
    /// extents whose checksums would not be right any more.
    pub fn take_out(&mut self, places: ByteSet) -> ByteSet {
        let mut out = places;
        let mut kept = std::mem::take(&mut self.0);
        let mut split = Vec::new();
        kept.retain(|extent| {
            if out.inside(extent.range()).next().is_none() {
                return true;
            }
            match extent.hash {
                None => split.push(*extent),
                Some(_) => out.insert(extent.range()),
            }
            false
        });
        // Zeros can be cut anywhere.
        kept.extend(split.iter().flat_map(|extent| {
            out.outside(extent.range()).map(|part| Extent {
                start: part.start,
                length: part.end - part.start,
                hash: None,
            })
        }));
        *self = Self::new(kept);
        out
    }

    /// Adds extents that overlap none of these.
    pub fn add(&mut self, mut more: Self) {
        if self.0.is_empty() {
            *self = more;
            return;
        }
        let mut all = std::mem::take(&mut self.0);
        all.append(&mut more.0);
        *self = Self::new(all);
    }

    /// Writes them to a new file, makes it durable, and gives its checksum and size.
    pub fn write(&self, path: &Path) -> Result<(Hash, u64)> {
        let write = || -> std::io::Result<_> {
            let mut file = BufWriter::new(private::replace(path)?);
            let (mut hasher, mut size) = (Hasher::new(), 0);
            let mut line = Vec::new();
            for extent in &self.0 {
                line.clear();
                match extent.hash {
                    Some(hash) => write!(
                        line,
                        "[{},{},\"{}\"]",
                        extent.start,
                        extent.length,
                        hash.to_hex()
                    )?,
                    None => write!(line, "[{},{},null]", extent.start, extent.length)?,
                }
                line.push(b'\n');
                hasher.update(&line);
                size += line.len() as u64;
                file.write_all(&line)?;
            }
            file.into_inner()?.sync_all()?;
            Ok((hasher.finalize(), size))
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads those of a device of `size` bytes from a file, and checks them against the checksum of
    /// the file.
    pub fn read(path: &Path, hash: Hash, size: u64) -> Result<Self> {
        let read = || -> Result<Self> {
            let mut file = BufReader::new(File::open(path)?);
            let mut hasher = Hasher::new();
            let (mut extents, mut end) = (Vec::new(), 0);
            let mut line = Vec::new();
            let mut wrong = None;
            while file.read_until(b'\n', &mut line)? > 0 {
                hasher.update(&line);
                match parse(&line, end..size) {
                    Ok(extent) => {
                        end = extent.range().end;
                        extents.push(extent);
                    }
                    Err(error) => {
                        wrong.get_or_insert_with(|| {
                            error.context(format!("line {}", extents.len() + 1))
                        });
                    }
                }
                line.clear();
            }
            ensure!(hasher.finalize() == hash, "its checksum is wrong");
            wrong.map_or(Ok(Self(extents)), Err)
        };
        read().with_context(|| format!("the list of extents {}", path.display()))
    }
}

/// Understands a line; the extent must be inside `room`.
fn parse(line: &[u8], room: Range<u64>) -> Result<Extent> {
    let (start, length, hash): (u64, u64, Option<&str>) = serde_json::from_slice(line)?;
    let end = start.checked_add(length);
    if length == 0 || start < room.start || end.is_none_or(|end| end > room.end) {
        bail!("the extent at byte {start} of {length} bytes is out of place");
    }
    if hash.is_some() && length > buffer::SIZE as u64 {
        bail!("the extent at byte {start} of {length} bytes is too long");
    }
    let hash = hash.map(Hash::from_hex).transpose()?;
    Ok(Extent {
        start,
        length,
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAIN: u64 = buffer::GRAIN as u64;

    fn zero(start: u64, length: u64) -> Extent {
        let hash = None;
        Extent {
            start,
            length,
            hash,
        }
    }

    fn data(start: u64, length: u64) -> Extent {
        Extent {
            hash: Some(blake3::hash(b"x")),
            ..zero(start, length)
        }
    }

    #[test]
    fn data_is_cut_into_extents_with_checksums() {
        let mut bytes = vec![0; 3 * GRAIN as usize];
        bytes[GRAIN as usize + 5] = 1;
        let extents = cut(&bytes, 7 * GRAIN);
        assert_eq!(
            extents.iter().map(Extent::range).collect::<Vec<_>>(),
            [
                7 * GRAIN..8 * GRAIN,
                8 * GRAIN..9 * GRAIN,
                9 * GRAIN..10 * GRAIN
            ]
        );
        assert!(extents[1].matches(&bytes[GRAIN as usize..2 * GRAIN as usize]));
        assert!(!extents[1].matches(&bytes[..GRAIN as usize]));
        assert_eq!((extents[0].hash, extents[2].hash), (None, None));
    }

    #[test]
    fn an_extent_takes_no_more_memory_than_is_told() {
        // Documentation/admin-guide/blksnap-backup.rst has this number, and what follows from it.
        assert_eq!(size_of::<Extent>(), 56);
    }

    #[test]
    fn zeros_are_joined() {
        let extents = Extents::new(vec![zero(8, 4), data(12, 4), zero(0, 8), data(16, 4)]);
        assert_eq!(extents.0, [zero(0, 12), data(12, 4), data(16, 4)]);
        assert_eq!(extents.totals(), (8, 12));
        // A large device may have many pieces of zeros: none is kept by itself.
        let mut extents = Extents::default();
        for more in [
            vec![zero(0, 8), data(8, 4)],
            vec![zero(12, 4)],
            vec![],
            vec![zero(16, 4), zero(20, 4)],
        ] {
            extents.append(more);
        }
        assert_eq!(
            extents.0,
            [zero(0, 8), data(8, 4), zero(12, 8), zero(20, 4)]
        );
    }

    #[test]
    fn whole_extents_of_data_are_taken_out() {
        let mut extents = Extents::new(vec![zero(0, 100), data(100, 50), data(150, 50)]);
        let out = extents.take_out([10..20, 120..130, 300..310].into_iter().collect());
        assert_eq!(out.iter().collect::<Vec<_>>(), [10..20, 100..150, 300..310]);
        assert_eq!(extents.0, [zero(0, 10), zero(20, 80), data(150, 50)]);
        extents.add(Extents(vec![data(100, 50), zero(10, 10)]));
        assert_eq!(extents.0, [zero(0, 100), data(100, 50), data(150, 50)]);
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("extents");
        let extents = Extents::new(vec![zero(0, 1 << 40), data(1 << 40, 512)]);
        let (hash, size) = extents.write(&path).unwrap();
        assert_eq!(path.metadata().unwrap().len(), size);
        let end = (1 << 40) + 512;
        assert_eq!(Extents::read(&path, hash, end).unwrap(), extents);
        let error = Extents::read(&path, hash, end - 1).unwrap_err();
        assert!(format!("{error:#}").contains("out of place"), "{error:#}");
        let mut text = std::fs::read(&path).unwrap();
        text[1] = b'1';
        std::fs::write(&path, &text).unwrap();
        let error = Extents::read(&path, hash, end).unwrap_err();
        assert!(format!("{error:#}").contains("checksum"), "{error:#}");
    }

    #[test]
    fn nonsense_is_no_extent() {
        for line in [
            "",
            "[]",
            "[0,0,null]",
            "[5,1,null]",
            "[90,20,null]",
            "[18446744073709551615,1,null]",
            "[10,1,\"abc\"]",
            "[-1,1,null]",
        ] {
            assert!(parse(line.as_bytes(), 10..100).is_err(), "{line}");
        }
        let long = format!(
            "[0,{},\"{}\"]",
            buffer::SIZE + 1,
            blake3::hash(b"").to_hex()
        );
        assert!(parse(long.as_bytes(), 0..1 << 30).is_err());
        assert!(parse(b"[10,90,null]", 10..100).is_ok());
    }
}
