// SPDX-License-Identifier: GPL-2.0-or-later

//! What has to be copied again, because the image changed after it was copied.
//!
//! An image shows one instant, with two exceptions. Blocks that become difference storage while the
//! snapshot is held read as zeros from then on; and who writes to an image changes it. The module
//! marks both in the change map that is being read. A mark does not show where the map says "changed
//! since the last snapshot" already; but where our own storage is, is known.

use blksnap::{ByteSet, CbtInfo, ChangeMap, Session};

/// What was known of a device at some time.
pub struct Known {
    map: ChangeMap,
    storage: ByteSet,
}

impl Known {
    /// What is known now. Whatever is read from the image later is at least as new.
    pub fn now(session: &Session, info: &CbtInfo) -> blksnap::Result<Self> {
        Ok(Self {
            storage: session.storage_on(info.device),
            map: session.change_map(info)?,
        })
    }

    /// The change map.
    pub fn map(&self) -> &ChangeMap {
        &self.map
    }

    /// Where the image of `size` bytes may have changed since `before`.
    pub fn changed_since(&self, before: &Self, size: u64) -> ByteSet {
        let marked = self.map.marked_after(&before.map);
        let storage = self.storage.inside(0..size);
        let given = storage.flat_map(|range| before.storage.outside(range));
        marked.chain(given).collect()
    }
}

/// Whether all of one set is in the other.
pub fn is_inside(inner: &ByteSet, outer: &ByteSet) -> bool {
    inner
        .iter()
        .all(|range| outer.outside(range).next().is_none())
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn set(ranges: &[Range<u64>]) -> ByteSet {
        ranges.iter().cloned().collect()
    }

    fn known(map: &[u8], storage: &[Range<u64>]) -> Known {
        Known {
            map: ChangeMap::new(map.to_vec(), 4096, 3 * 4096),
            storage: set(storage),
        }
    }

    #[test]
    fn marks_and_new_storage_are_copied_again() {
        let before = known(&[0, 2, 0], &[0..512]);
        let same = known(&[0, 2, 0], &[0..512]);
        assert!(same.changed_since(&before, 3 * 4096).is_empty());
        // The second block was marked before, so that only the storage tells.
        let later = known(&[0, 2, 2], &[0..1024, 4096..4608, 9 * 4096..10 * 4096]);
        assert_eq!(
            later
                .changed_since(&before, 3 * 4096)
                .iter()
                .collect::<Vec<_>>(),
            [512..1024, 4096..4608, 8192..12288]
        );
    }

    #[test]
    fn a_set_is_inside_another() {
        let outer = set(&[0..10, 20..30]);
        assert!(is_inside(&set(&[]), &outer));
        assert!(is_inside(&set(&[0..10, 25..26]), &outer));
        assert!(!is_inside(&set(&[9..11]), &outer));
        assert!(!is_inside(&set(&[5..25]), &outer));
    }
}
