// SPDX-License-Identifier: MIT OR Apache-2.0

//! How block devices lie on each other: partitions on disks, and what is built on top of others.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use crate::id::DevId;
use crate::units::Sectors;

/// How a device, such as that of difference storage, stands to devices that are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They have nothing in common.
    Separate,
    /// It has blocks in common with this one.
    Overlaps(DevId),
    /// It is built on this one: a logical volume, a loop device on a file.
    Above(DevId),
}

impl Relation {
    /// As it is now.
    pub fn of(storage: DevId, captured: &[DevId]) -> Self {
        let common = |device| {
            let mut captured = captured.iter().copied();
            captured.find(|&other| share_blocks(device, other))
        };
        if let Some(captured) = common(storage) {
            return Self::Overlaps(captured);
        }
        let mut seen = vec![storage];
        let mut at = 0;
        while let Some(&device) = seen.get(at) {
            for lower in device.below() {
                if let Some(captured) = common(lower) {
                    return Self::Above(captured);
                }
                if !seen.contains(&lower) {
                    seen.push(lower);
                }
            }
            at += 1;
        }
        Self::Separate
    }
}

/// Where a device lies: the disk, and the bytes on it.
type Span = (DevId, Range<u64>);

fn span(device: DevId) -> Option<Span> {
    let (disk, start) = device.partition_of().unwrap_or((device, 0));
    Some((disk, start..start.saturating_add(device.size()?)))
}

/// Whether a block of one device is a block of the other.
fn share_blocks(a: DevId, b: DevId) -> bool {
    match (span(a), span(b)) {
        (Some(a), Some(b)) => spans_meet(&a, &b),
        _ => a == b,
    }
}

fn spans_meet((disk_a, a): &Span, (disk_b, b): &Span) -> bool {
    disk_a == disk_b && a.start < b.end && b.start < a.end
}

impl DevId {
    /// The devices that this one is built on: the parts of an array or a volume, what a loop device is on;
    /// of a partition, those of its disk. None if it is on no other. A file of a file system without a
    /// device of its own, such as btrfs, counts as one with the major 0.
    pub fn below(self) -> Vec<Self> {
        let disk = self.partition_of().map_or(self, |(disk, _)| disk);
        let dir = disk.sysfs();
        let slaves = fs::read_dir(dir.join("slaves"))
            .into_iter()
            .flatten()
            .flatten();
        let number = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
        let mut found: Vec<Self> = slaves
            .filter_map(|entry| number(entry.path().join("dev")))
            .collect();
        // A loop device is on a file, which is on the device of its file system; or on a device.
        let backing = fs::read_to_string(dir.join("loop/backing_file"));
        if let Some(meta) = backing
            .ok()
            .and_then(|path| fs::metadata(path.trim_end()).ok())
        {
            let raw = if meta.is_file() {
                meta.dev()
            } else {
                meta.rdev()
            };
            found.push(Self::from_raw(raw));
        }
        found
    }

    /// Bytes of a logical block of the device, if it is there.
    pub(crate) fn block_size(self) -> Option<u64> {
        let disk = self.partition_of().map_or(self, |(disk, _)| disk);
        let text = fs::read_to_string(disk.sysfs().join("queue/logical_block_size")).ok()?;
        text.trim().parse().ok()
    }

    /// Bytes of the device, if it is there.
    pub fn size(self) -> Option<u64> {
        let text = fs::read_to_string(self.sysfs().join("size")).ok()?;
        Some(Sectors(text.trim().parse().ok()?).bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(minor: u32) -> DevId {
        DevId { major: 8, minor }
    }

    #[test]
    fn spans_meet_where_they_have_a_byte_in_common() {
        let disk = (id(0), 0..100);
        for (other, meet) in [
            ((id(0), 0..100), true),
            ((id(0), 99..120), true),
            ((id(0), 100..120), false),
            ((id(1), 0..100), false),
        ] {
            assert_eq!(spans_meet(&disk, &other), meet, "{other:?}");
            assert_eq!(spans_meet(&other, &disk), meet, "{other:?}");
        }
    }

    #[test]
    fn devices_that_are_not_there_are_separate() {
        let none = |minor| DevId { major: 4095, minor };
        assert_eq!(Relation::of(none(1), &[none(2)]), Relation::Separate);
        assert_eq!(Relation::of(none(1), &[]), Relation::Separate);
        assert_eq!(
            Relation::of(none(1), &[none(1)]),
            Relation::Overlaps(none(1))
        );
    }
}
