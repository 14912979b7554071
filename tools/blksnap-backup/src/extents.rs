// SPDX-License-Identifier: GPL-2.0-or-later

//! Extents: what one backup itself has of a device, and the checksums of it.
//!
//! A file of lines, `[start, length, "blake3 of the data"]`, or `[start, length, null]` for zeros,
//! in bytes; ascending and disjoint. The manifest has the checksum of the file itself.
//!
//! A list may be much larger than memory: so it stays in its file, and is read where it is needed.

mod index;
mod list;
mod writer;

use std::io::Write;
use std::ops::Range;

use anyhow::{Result, bail};
use blake3::Hash;

use crate::buffer;
pub use list::{Cursor, Extents};
pub use writer::ExtentsWriter;

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

/// Appends the line of an extent.
fn write_line(line: &mut Vec<u8>, extent: &Extent) -> std::io::Result<()> {
    let Extent { start, length, .. } = extent;
    match extent.hash {
        Some(hash) => writeln!(line, "[{start},{length},\"{}\"]", hash.to_hex()),
        None => writeln!(line, "[{start},{length},null]"),
    }
}

/// Understands a line; the extent must be inside `room`.
fn parse(line: &[u8], room: Range<u64>) -> Result<Extent> {
    let extent = match parse_as_written(line) {
        Some(extent) => extent,
        None => {
            let (start, length, hash): (u64, u64, Option<&str>) = serde_json::from_slice(line)?;
            let hash = hash.map(Hash::from_hex).transpose()?;
            Extent {
                start,
                length,
                hash,
            }
        }
    };
    let Extent { start, length, .. } = extent;
    let end = start.checked_add(length);
    if length == 0 || start < room.start || end.is_none_or(|end| end > room.end) {
        bail!("the extent at byte {start} of {length} bytes is out of place");
    }
    if extent.hash.is_some() && length > buffer::SIZE as u64 {
        bail!("the extent at byte {start} of {length} bytes is too long");
    }
    Ok(extent)
}

/// The same of a line as it is written here: there may be many millions.
fn parse_as_written(line: &[u8]) -> Option<Extent> {
    let rest = line.strip_prefix(b"[")?;
    let (start, rest) = number(rest)?;
    let (length, rest) = number(rest)?;
    let hash = match rest {
        b"null]\n" => None,
        _ => {
            let hex = rest.strip_prefix(b"\"")?.strip_suffix(b"\"]\n")?;
            Some(Hash::from_hex(hex).ok()?)
        }
    };
    Some(Extent {
        start,
        length,
        hash,
    })
}

/// A number, and what follows the comma behind it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let comma = text.iter().position(|&byte| byte == b',')?;
    let digits = &text[..comma];
    let mut value = 0u64;
    for &byte in digits {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    (!digits.is_empty()).then_some((value, &text[comma + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAIN: u64 = buffer::GRAIN as u64;

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
    fn lines_are_understood_however_they_are_written() {
        let room = 0..1 << 50;
        for extent in [
            Extent::of_zeros(0..1),
            Extent::of(4096, b"some data"),
            Extent::of_zeros(5..1 << 50),
        ] {
            let mut line = Vec::new();
            write_line(&mut line, &extent).unwrap();
            assert_eq!(parse_as_written(&line), Some(extent));
            assert_eq!(parse(&line, room.clone()).unwrap(), extent);
            // Another program may put spaces there.
            let spaced = String::from_utf8(line).unwrap().replace(',', " , ");
            assert_eq!(parse_as_written(spaced.as_bytes()), None);
            assert_eq!(parse(spaced.as_bytes(), room.clone()).unwrap(), extent);
        }
        for bad in [
            "",
            "[",
            "[1,2]",
            "[,2,null]\n",
            "[1,,null]\n",
            "[1,2,nul]\n",
            "[1,2,\"00\"]\n",
            "[18446744073709551616,1,null]\n",
            "[18446744073709551615,1,null]\n",
            "[1,0,null]\n",
            "[-1,1,null]\n",
        ] {
            assert!(parse(bad.as_bytes(), room.clone()).is_err(), "{bad}");
        }
    }
}
