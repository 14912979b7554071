// SPDX-License-Identifier: MIT OR Apache-2.0

//! Change maps: which blocks of a device were written since an earlier snapshot.
//!
//! A client keeps, with each backup, the generation and the number of the snapshot it came from. At
//! the next snapshot it compares: in another generation nothing is known, and everything must be
//! read; in the same one, exactly the blocks whose byte in the map is greater than the number kept.

use std::ops::Range;

use crate::id::{DevId, GenerationId};
use crate::sys;

/// What is known of a tracked device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CbtInfo {
    /// The device.
    pub device: DevId,
    /// Bytes in a tracking block: a power of two.
    pub block_size: u32,
    /// Bytes of the device.
    pub capacity: u64,
    /// Number of tracking blocks; the last one may be short.
    pub block_count: u32,
    /// The generation: numbers can be compared within one only.
    pub generation: GenerationId,
    /// Number of the last snapshot taken of the device, 0 if there was none.
    pub number: u8,
}

/// A point in the history of a device's changes: the snapshot that a backup was made of. It is what
/// is kept with the backup, so that the next one can continue it.
///
/// If a virtual machine is brought back to an earlier state together with its memory, numbers are
/// given again, to other snapshots. So a point that was kept elsewhere may be one of a time that
/// is lost, and nothing in it tells. Keep the session's id with the backup as well, and remember
/// it in a tmpfs, which goes back with the memory; do not continue a backup that is not
/// remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// The generation that the number belongs to.
    pub generation: GenerationId,
    /// The number of the snapshot.
    pub number: u8,
}

impl CbtInfo {
    /// The last snapshot taken of the device.
    pub fn point(&self) -> Point {
        Point {
            generation: self.generation,
            number: self.number,
        }
    }

    /// Whether the change map tells what was written since a point of this machine's past. If not,
    /// it is to be taken that everything was.
    pub fn knows_since(&self, point: Point) -> bool {
        self.generation == point.generation && point.number <= self.number
    }
}

impl From<sys::CbtInfo> for CbtInfo {
    fn from(raw: sys::CbtInfo) -> Self {
        Self {
            device: raw.dev_id.into(),
            block_size: raw.blk_size,
            capacity: raw.device_capacity,
            block_count: raw.blk_count,
            generation: GenerationId::from_raw(raw.generation_id),
            number: raw.snap_number,
        }
    }
}

/// The change map of a device as of its last take.
///
/// ```
/// let map = blksnap::ChangeMap::new(vec![0, 3, 4, 4, 1], 65536, 5 * 65536 - 512);
/// assert_eq!(map.changed_since(2).collect::<Vec<_>>(), [65536..262144]);
/// assert_eq!(map.count_since(0), 4);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeMap {
    bytes: Vec<u8>,
    block_size: u32,
    capacity: u64,
}

impl ChangeMap {
    /// From the bytes of the map, one for each block of `block_size` bytes of a device of
    /// `capacity` bytes.
    pub fn new(bytes: Vec<u8>, block_size: u32, capacity: u64) -> Self {
        Self {
            bytes,
            block_size,
            capacity,
        }
    }

    /// The bytes, one for each block.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the device in a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many blocks were written since the snapshot with this number.
    pub fn count_since(&self, number: u8) -> usize {
        self.bytes.iter().filter(|&&byte| byte > number).count()
    }

    /// The parts of the device, in bytes, that were written since the snapshot with this number:
    /// ascending, neighbours joined, the last one cut at the end of the device.
    pub fn changed_since(&self, number: u8) -> impl Iterator<Item = Range<u64>> + '_ {
        self.parts(move |block| self.bytes[block] > number)
    }

    /// The parts of the device whose blocks were marked between the reading of an earlier map of
    /// the same take and of this one: what was written to the image, and what became difference
    /// storage. (A mark on a block that has the number of this take already does not show.)
    pub fn marked_after<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = Range<u64>> + 'a {
        self.parts(|block| earlier.bytes.get(block) != Some(&self.bytes[block]))
    }

    /// The parts of the device in the blocks that fulfil a condition.
    fn parts<'a>(
        &'a self,
        wanted: impl Fn(usize) -> bool + 'a,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let count = self.bytes.len();
        let place = |block: usize| {
            let block = u64::try_from(block).unwrap_or(u64::MAX);
            block
                .saturating_mul(self.block_size.into())
                .min(self.capacity)
        };
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at..count).find(|&block| wanted(block))?;
            at = (start..count)
                .find(|&block| !wanted(block))
                .unwrap_or(count);
            Some(place(start)..place(at))
        })
        .filter(|range| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(bytes: &[u8], number: u8, capacity: u64) -> Vec<Range<u64>> {
        ChangeMap::new(bytes.to_vec(), 4096, capacity)
            .changed_since(number)
            .collect()
    }

    #[test]
    fn nothing_changed() {
        assert!(changed(&[], 0, 0).is_empty());
        assert!(changed(&[1, 2, 2], 2, 3 * 4096).is_empty());
        assert!(changed(&[255], 255, 4096).is_empty());
    }

    #[test]
    fn neighbours_are_joined_and_the_end_is_cut() {
        assert_eq!(
            changed(&[1, 0, 2, 3, 0, 1], 0, 5 * 4096 + 512),
            [0..4096, 8192..16384, 20480..20992]
        );
        assert_eq!(changed(&[9; 3], 8, 3 * 4096), [0..12288]);
    }

    #[test]
    fn what_was_marked_meanwhile_is_found() {
        let map = |bytes: &[u8]| ChangeMap::new(bytes.to_vec(), 4096, 3 * 4096 + 512);
        let (before, after) = (map(&[0, 4, 5, 0]), map(&[5, 4, 5, 5]));
        assert_eq!(
            after.marked_after(&before).collect::<Vec<_>>(),
            [0..4096, 3 * 4096..3 * 4096 + 512]
        );
        assert_eq!(after.marked_after(&after).count(), 0);
    }

    #[test]
    fn a_map_longer_than_the_device_gives_nothing_behind_it() {
        assert_eq!(changed(&[1, 1, 1], 0, 4096), [0..4096]);
        assert!(changed(&[0, 0, 1], 0, 4096).is_empty());
    }
}
