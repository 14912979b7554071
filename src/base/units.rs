// SPDX-License-Identifier: GPL-2.0

//! Units: sectors, chunks and units of difference storage.

use core::ops::Range;

/// log2 of the number of bytes in a sector.
pub(crate) const SECTOR_SHIFT: u32 = kernel::block::SECTOR_SHIFT;

/// log2 of the number of sectors in a unit of difference storage.
pub(crate) const UNIT_SECTORS_SHIFT: u32 = 3;

/// Sectors in a unit of difference storage: 4 KiB. The chunks of a device with larger blocks are of
/// several units.
pub(crate) const UNIT_SECTORS: u64 = 1 << UNIT_SECTORS_SHIFT;

/// log2 of the number of bytes in a unit of difference storage.
pub(crate) const UNIT_SHIFT: u32 = UNIT_SECTORS_SHIFT + SECTOR_SHIFT;

/// The largest number of a unit, so that a chunk's word in the map can tell of it.
pub(crate) const MAX_UNIT: u32 = (1 << 31) - 4;

/// What is copied at once at the most, in bytes, if chunks are smaller; a power of two.
pub(crate) const COPY_WINDOW: u64 = 256 << 10;

/// log2 of the size of the largest chunk in bytes: what one bio transfers.
pub(crate) const MAX_CHUNK_SHIFT: u32 = 20;

/// How a device is divided into chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// The size of the device in sectors.
    pub(crate) sectors: u64,
    /// log2 of the number of sectors in a chunk; a chunk is at least a unit.
    pub(crate) chunk_shift: u32,
}

impl Geometry {
    /// Divides `sectors` sectors into chunks of `1 << min_shift` bytes, or as many times two as it
    /// takes to need no more than `max_count`, but not beyond `1 << max_shift` bytes; never more
    /// than [`MAX_CHUNK_SHIFT`].
    pub(crate) fn new(sectors: u64, min_shift: u32, max_shift: u32, max_count: u64) -> Self {
        let most = MAX_CHUNK_SHIFT - SECTOR_SHIFT;
        let mut chunk_shift = min_shift.saturating_sub(SECTOR_SHIFT);
        chunk_shift = chunk_shift.clamp(UNIT_SECTORS_SHIFT, most);
        let most = max_shift.saturating_sub(SECTOR_SHIFT).min(most);
        while chunk_shift < most && sectors.div_ceil(1 << chunk_shift) > max_count {
            chunk_shift += 1;
        }
        Self {
            sectors,
            chunk_shift,
        }
    }

    /// The number of chunks; the last one may be short.
    pub(crate) fn chunks(&self) -> u64 {
        self.sectors.div_ceil(1 << self.chunk_shift)
    }

    /// The chunk of a sector.
    pub(crate) fn chunk(&self, sector: u64) -> u64 {
        sector >> self.chunk_shift
    }

    /// The first sector of a chunk.
    pub(crate) fn sector(&self, chunk: u64) -> u64 {
        chunk << self.chunk_shift
    }

    /// The sectors in `count` chunks from `first` on, without what the last one lacks.
    pub(crate) fn sectors_in(&self, first: u64, count: u64) -> u64 {
        let end = self.sector(first + count).min(self.sectors);
        end.saturating_sub(self.sector(first))
    }

    /// The chunks all of whose sectors are from `start` to before `end`.
    pub(crate) fn chunks_inside(&self, start: u64, end: u64) -> Range<u64> {
        let first = start.div_ceil(1 << self.chunk_shift);
        let last = if end >= self.sectors {
            self.chunks()
        } else {
            self.chunk(end)
        };
        first..last.max(first)
    }

    /// The units in a chunk that is not short.
    pub(crate) fn units_per_chunk(&self) -> u64 {
        1 << (self.chunk_shift - UNIT_SECTORS_SHIFT)
    }

    /// The bytes in a chunk that is not short.
    pub(crate) fn chunk_bytes(&self) -> usize {
        1 << (self.chunk_shift + SECTOR_SHIFT)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kernel::macros::kunit_tests(blksnap_units)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_the_device() {
        assert_eq!(Geometry::new(1 << 35, 14, 63, 1 << 31).chunk_shift, 5);
        assert_eq!(Geometry::new(1 << 35, 14, 63, 1 << 29).chunk_shift, 6);
        assert_eq!(Geometry::new(1 << 35, 0, 63, 1 << 40).chunk_shift, 3);
        assert_eq!(Geometry::new(1 << 35, 63, 63, 1 << 40).chunk_shift, 11);
        assert_eq!(Geometry::new(u64::MAX, 12, 63, 1).chunk_shift, 11);
        assert_eq!(Geometry::new(u64::MAX, 12, 14, 1).chunk_shift, 5);
        assert_eq!(Geometry::new(u64::MAX, 16, 14, 1).chunk_shift, 7);
    }

    #[test]
    fn the_last_chunk_is_short() {
        let g = Geometry::new(100, 14, 63, 1 << 31);
        assert_eq!(g.chunks(), 4);
        assert_eq!(g.sectors_in(0, 4), 100);
        assert_eq!(g.sectors_in(3, 1), 4);
        assert_eq!(g.sectors_in(1, 2), 64);
    }

    #[test]
    fn chunks_inside_of_a_range() {
        let g = Geometry::new(100, 14, 63, 1 << 31);
        assert_eq!(g.chunks_inside(0, 100), 0..4);
        assert_eq!(g.chunks_inside(1, 99), 1..3);
        assert_eq!(g.chunks_inside(64, 96), 2..3);
        assert_eq!(g.chunks_inside(97, 100), 4..4);
        assert_eq!(g.chunks_inside(33, 63), 2..2);
        assert_eq!(g.chunks_inside(40, 50), 2..2);
        assert_eq!(g.chunks_inside(96, u64::MAX), 3..4);
    }
}
