// SPDX-License-Identifier: GPL-2.0-or-later

//! What is copied, an image, and the pieces in which that is done.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use blksnap::ByteSet;

use crate::buffer;
use crate::device::size_of;
use crate::direct::Direct;
use crate::format::Reader;

/// A device or file that is read.
pub struct Source {
    file: Direct,
    size: u64,
}

impl Source {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Direct::open(path)?;
        let size = size_of(file.file(), path)?;
        Ok(Self { file, size })
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Reader for Source {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.file.read(offset, data)
    }
}

/// Ranges made larger, to multiples of `unit` or the end of the device.
pub fn round_out(ranges: &ByteSet, unit: u64, size: u64) -> ByteSet {
    let round = |range: Range<u64>| {
        let end = range.end.checked_next_multiple_of(unit).unwrap_or(size);
        range.start / unit * unit..end.min(size)
    };
    ranges.iter().map(round).collect()
}

/// Cuts ranges at multiples of the size of a buffer.
pub fn pieces(ranges: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    const SIZE: u64 = buffer::SIZE as u64;
    ranges.flat_map(|range| {
        let first = range.start / SIZE;
        let last = range.end.div_ceil(SIZE).max(first);
        let within = move |at: u64| at.clamp(range.start, range.end);
        (first..last).map(move |number| within(number * SIZE)..within((number + 1) * SIZE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = buffer::SIZE as u64;

    #[test]
    fn pieces_are_cut_at_buffers() {
        let cut = |range| pieces(std::iter::once(range)).collect::<Vec<_>>();
        assert_eq!(cut(0..0), []);
        assert_eq!(cut(5..6), [5..6]);
        assert_eq!(
            cut(SIZE - 1..3 * SIZE),
            [SIZE - 1..SIZE, SIZE..2 * SIZE, 2 * SIZE..3 * SIZE]
        );
    }

    #[test]
    fn ranges_are_rounded_to_units() {
        let round = |ranges: &[Range<u64>]| {
            let set = ranges.iter().cloned().collect();
            round_out(&set, 4096, 10_000).iter().collect::<Vec<_>>()
        };
        assert_eq!(round(&[]), []);
        assert_eq!(
            round(&[0..10, 20..4096, 9000..9001]),
            [0..4096, 8192..10_000]
        );
        assert_eq!(round(&[4095..4097]), [0..8192]);
    }
}
