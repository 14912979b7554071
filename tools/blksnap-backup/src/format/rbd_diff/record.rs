// SPDX-License-Identifier: GPL-2.0-or-later

//! One record.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

/// The longest name of a snapshot that is accepted.
pub const MAX_NAME: usize = 4096;
/// Bytes in the longest record, without name and data.
pub const HEAD: usize = 17;

/// A record; the name or the data that follow it are not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The length of the name of the snapshot it starts from.
    From(usize),
    /// The length of the name of the snapshot it leads to.
    To(usize),
    /// Bytes in the device.
    Size(u64),
    /// Where the data that follows belongs.
    Data(Range<u64>),
    /// What reads as zeros.
    Zeros(Range<u64>),
    /// The end.
    End,
}

impl Record {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Names are no longer than MAX_NAME.
        let name = |tag, length: usize| [&[tag][..], &(length as u32).to_le_bytes()].concat();
        let range = |tag, range: &Range<u64>| {
            let length = range.end - range.start;
            let bytes = [range.start.to_le_bytes(), length.to_le_bytes()];
            [&[tag][..], &bytes.concat()].concat()
        };
        match self {
            Self::From(length) => name(b'f', *length),
            Self::To(length) => name(b't', *length),
            Self::Size(size) => [&b"s"[..], &size.to_le_bytes()].concat(),
            Self::Data(at) => range(b'w', at),
            Self::Zeros(at) => range(b'z', at),
            Self::End => b"e".to_vec(),
        }
    }

    /// Understands the beginning of `bytes`, and says how many of them it was.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize)> {
        const SHORT: &str = "it ends early; it is not whole";
        let number = |at: usize| -> Result<u64> {
            let bytes = bytes.get(at..at + 8).context(SHORT)?;
            Ok(u64::from_le_bytes(bytes.try_into()?))
        };
        let name = || -> Result<usize> {
            let bytes = bytes.get(1..5).context(SHORT)?;
            let length = u32::from_le_bytes(bytes.try_into()?) as usize;
            ensure!(length <= MAX_NAME, "damaged: a name of {length} bytes");
            Ok(length)
        };
        let range = || -> Result<Range<u64>> {
            let (start, length) = (number(1)?, number(9)?);
            let end = start
                .checked_add(length)
                .with_context(|| format!("damaged: {length} bytes at byte {start}"))?;
            Ok(start..end)
        };
        Ok(match bytes.first().context(SHORT)? {
            b'f' => (Self::From(name()?), 5),
            b't' => (Self::To(name()?), 5),
            b's' => (Self::Size(number(1)?), 9),
            b'w' => (Self::Data(range()?), HEAD),
            b'z' => (Self::Zeros(range()?), HEAD),
            b'e' => (Self::End, 1),
            tag => bail!("damaged: no record begins with byte {tag:#04x}"),
        })
    }
}
