// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module shows of its snapshots, for people and measurements.
//!
//! This is the one place that knows where and how: in the directory of the snapshot in sysfs, with
//! one value a file. An older module has none, so everything here is optional.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::control::Image;
use crate::id::{DevId, SnapshotId};

/// Where the snapshots' directories are.
const CLASS: &str = "/sys/class/blksnap";

/// The directory of a snapshot.
pub(crate) fn directory(id: SnapshotId) -> PathBuf {
    Path::new(CLASS).join(format!("snapshot-{id}"))
}

/// All snapshots that the module shows, whichever interface they were made by; in no order.
pub(crate) fn snapshots() -> Vec<SnapshotId> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("snapshot-")?.parse().ok())
        .collect()
}

/// Whether a snapshot that was there is no more; `false` if the module shows nothing.
pub(crate) fn has_gone(id: SnapshotId) -> bool {
    Path::new(CLASS).exists() && !directory(id).exists()
}

/// The values the module shows of a snapshot, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotState(BTreeMap<String, String>);

impl SnapshotState {
    /// Reads what there is now; empty if the module shows nothing.
    pub fn read(id: SnapshotId) -> Self {
        Self::read_from(&directory(id))
    }

    /// Reads the files of a directory, but for what all devices have in sysfs.
    fn read_from(directory: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let pairs = files.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            (name != "uevent").then(|| (name, text.trim_end().to_owned()))
        });
        Self(pairs.collect())
    }

    /// All values: names and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&**name, &**text))
    }

    /// A value that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.parse().ok()
    }

    /// In words: created, taken, corrupted.
    pub fn phase(&self) -> Option<&str> {
        self.0.get("state").map(String::as_str)
    }

    /// The devices, in the order in which they were given.
    pub fn originals(&self) -> impl Iterator<Item = DevId> {
        self.devices("originals")
    }

    /// The images, in the same order; none before the take.
    pub fn images(&self) -> Vec<Image> {
        let pairs = self.originals().zip(self.devices("images"));
        let image = |(original, device): (DevId, DevId)| Image {
            original,
            device,
            path: device.path(),
        };
        pairs.map(image).collect()
    }

    /// The device numbers in a value.
    fn devices(&self, name: &str) -> impl Iterator<Item = DevId> {
        let list = self.0.get(name).map_or("", String::as_str);
        list.split_whitespace().filter_map(|id| id.parse().ok())
    }

    /// How long the devices were stopped when the snapshot was taken, in nanoseconds.
    pub fn stopped_ns(&self) -> Option<u64> {
        self.number("stopped_us")?.checked_mul(1000)
    }

    /// Bytes of old data that were copied from the devices to the difference storage.
    pub fn copied_bytes(&self) -> Option<u64> {
        self.number("bytes_copied")
    }

    /// Bytes of difference storage in use: what was copied, rounded up, and what was written to
    /// images.
    pub fn filled_bytes(&self) -> Option<u64> {
        self.number("storage_used")
    }

    /// Bytes of difference storage that were given.
    pub fn storage_bytes(&self) -> Option<u64> {
        self.number("storage_size")
    }
}

/// What the module shows of a tracker beside [`CbtInfo`](crate::CbtInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackerState {
    /// When tracking began, in seconds since 1970.
    pub since: Option<u64>,
    /// Bytes of memory that the change map takes.
    pub map_memory: Option<u64>,
    /// The snapshot that the device is in.
    pub snapshot: Option<SnapshotId>,
}

impl TrackerState {
    /// Reads what there is now.
    pub fn read(device: DevId) -> Self {
        Self::read_from(&Path::new(CLASS).join(format!("tracker-{device}")))
    }

    fn read_from(directory: &Path) -> Self {
        Self {
            since: value(directory, "since"),
            map_memory: value(directory, "map_memory"),
            snapshot: value(directory, "snapshot"),
        }
    }
}

/// What the module shows of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageState {
    /// The error number since which the image is of no use, or 0.
    pub error: Option<u16>,
    /// Bytes that were told not to have been used at the instant, in whole chunks.
    pub unused: Option<u64>,
}

impl ImageState {
    /// Reads what there is now.
    pub fn read(image: &Image) -> Self {
        Self::read_from(&image.device.sysfs().join("blksnap"))
    }

    fn read_from(directory: &Path) -> Self {
        Self {
            error: value(directory, "error"),
            unused: value(directory, "unused"),
        }
    }
}

/// The value in a file, if there is one of this kind.
fn value<T: FromStr>(directory: &Path, name: &str) -> Option<T> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    text.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_directory_are_the_state() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("state", "taken\n"),
            ("stopped_us", "2\n"),
            ("storage_size", "33554432\n"),
            ("storage_used", "8192\n"),
            ("bytes_copied", "4608\n"),
            ("images", "4095:3 4095:4\n"),
            ("originals", "8:0 8:16\n"),
            ("uevent", "X=1\n"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        fs::create_dir(directory.path().join("power")).unwrap();
        let state = SnapshotState::read_from(directory.path());
        assert_eq!(state.phase(), Some("taken"));
        assert_eq!(state.stopped_ns(), Some(2000));
        assert_eq!(state.storage_bytes(), Some(32 << 20));
        assert_eq!(state.filled_bytes(), Some(8192));
        assert_eq!(state.copied_bytes(), Some(4608));
        let originals: Vec<_> = state.originals().map(|id| id.minor).collect();
        assert_eq!(originals, [0, 16]);
        let images = state.images();
        assert_eq!((images[1].original.minor, images[1].device.minor), (16, 4));
        assert_eq!(state.iter().count(), 7);
        let none = SnapshotState::read_from(&directory.path().join("nothing"));
        assert_eq!(none, SnapshotState::default());
        assert_eq!(none.stopped_ns(), None);
    }

    #[test]
    fn the_files_of_a_tracker_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(directory.path().join(name), text).unwrap();
        write("since", "1700000000\n");
        write("snapshot", "none\n");
        let state = TrackerState::read_from(directory.path());
        assert_eq!((state.since, state.snapshot), (Some(1_700_000_000), None));
        assert_eq!(state.map_memory, None);
        write("snapshot", "00112233-4455-4677-8899-aabbccddeeff\n");
        assert!(TrackerState::read_from(directory.path()).snapshot.is_some());
    }

    #[test]
    fn the_files_of_an_image_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(directory.path().join(name), text).unwrap();
        write("error", "28\n");
        let state = ImageState::read_from(directory.path());
        assert_eq!((state.error, state.unused), (Some(28), None));
        write("unused", "209715200\n");
        let state = ImageState::read_from(directory.path());
        assert_eq!(state.unused, Some(200 << 20));
    }
}
