// SPDX-License-Identifier: GPL-2.0-or-later

//! What is copied, an image, and the pieces in which that is done.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use blksnap::ByteSet;

use crate::buffer;
use crate::device::{logical_block, open_direct, size_of};
use crate::format::Reader;

/// A device or file that is read, past the page cache where that can be done.
pub struct Source<'a> {
    path: &'a Path,
    direct: File,
    cached: File,
    size: u64,
    block: u64,
}

impl<'a> Source<'a> {
    /// Opens it.
    pub fn open(path: &'a Path) -> Result<Self> {
        let direct = open_direct(path)?;
        let cached = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let size = size_of(&direct, path)?;
        // Files on 4 KiB devices want that much; for a device its own block is enough.
        let block = match logical_block(&direct) {
            1 => 4096,
            block => block,
        };
        Ok(Self {
            path,
            direct,
            cached,
            size,
            block,
        })
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Reader for Source<'_> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        let aligned = |number: u64| number % self.block == 0;
        let file = match aligned(offset) && aligned(data.len() as u64) {
            true => &self.direct,
            false => &self.cached,
        };
        file.read_exact_at(data, offset).with_context(|| {
            let (length, path) = (data.len(), self.path.display());
            format!("cannot read {length} bytes at byte {offset} of {path}")
        })
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
pub fn pieces(
    ranges: impl Iterator<Item = Range<u64>> + Clone,
) -> impl Iterator<Item = Range<u64>> + Clone {
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

    #[test]
    fn all_of_a_file_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut source = Source::open(&path).unwrap();
        assert_eq!(source.size(), 100_000);
        let mut buffer = buffer::Buffer::new();
        for range in [0..8192, 98_304..100_000, 5..6] {
            let part = &mut buffer.bytes_mut()[..range.len()];
            source.read(range.start as u64, part).unwrap();
            assert!(part == &bytes[range]);
        }
        let error = source.read(99_999, &mut [0; 2]).unwrap_err();
        assert!(error.to_string().contains("at byte 99999"), "{error}");
    }
}
