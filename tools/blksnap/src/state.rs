// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module shows of its snapshots, for people and measurements.
//!
//! This is the one place that knows where and how: in the directory of the snapshot in sysfs, with
//! one value a file. An older module has none, so everything here is optional.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::id::SnapshotId;

/// Where the snapshots' directories are.
const CLASS: &str = "/sys/class/blksnap";

/// The directory of a snapshot.
pub(crate) fn directory(id: SnapshotId) -> PathBuf {
    Path::new(CLASS).join(format!("snapshot-{id}"))
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
    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.parse().ok()
    }

    /// In words: created, taken, corrupted.
    pub fn phase(&self) -> Option<&str> {
        self.0.get("state").map(String::as_str)
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
            ("images", "\n"),
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
        assert_eq!(state.iter().count(), 6);
        let none = SnapshotState::read_from(&directory.path().join("nothing"));
        assert_eq!(none, SnapshotState::default());
        assert_eq!(none.stopped_ns(), None);
    }
}
