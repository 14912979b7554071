// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module shows of its snapshots in sysfs, for people and measurements.
//!
//! This is the one place that knows where. Each snapshot has a directory named after its id, with
//! one value a file. An older module shows nothing, so everything here is optional.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::id::SnapshotId;

/// Where a directory for each snapshot may be, the best first.
const SNAPSHOTS: &[&str] = &[
    "/sys/class/blksnap/blksnap/snapshots",
    "/sys/kernel/blksnap/snapshots",
    "/sys/kernel/debug/blksnap/snapshots",
];

/// The values the module shows of a snapshot, by the name of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotState(BTreeMap<String, String>);

impl SnapshotState {
    /// Reads what there is now; empty if the module shows nothing.
    pub fn read(id: SnapshotId) -> Self {
        SNAPSHOTS
            .iter()
            .map(|root| Path::new(root).join(id.to_string()))
            .find(|dir| dir.is_dir())
            .map(|dir| Self(read_dir(dir)))
            .unwrap_or_default()
    }

    /// All values: names and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&**name, &**text))
    }

    /// The first of these values that is there and is a number.
    fn number(&self, names: &[&str]) -> Option<u64> {
        names
            .iter()
            .find_map(|name| self.0.get(*name)?.parse().ok())
    }

    /// How long the devices were stopped when the snapshot was taken, in nanoseconds.
    pub fn stopped_ns(&self) -> Option<u64> {
        self.number(&["stopped_ns", "stop_ns", "stop_time_ns"])
    }

    /// Bytes of old data that were copied to the difference storage.
    pub fn copied_bytes(&self) -> Option<u64> {
        self.number(&["copied_bytes", "stored_bytes"])
    }

    /// Bytes of difference storage that were given.
    pub fn storage_bytes(&self) -> Option<u64> {
        self.number(&["storage_bytes", "storage_capacity_bytes"])
    }
}

/// The readable files of a directory, without the line end.
fn read_dir(dir: PathBuf) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            (name != "uevent").then(|| (name, text.trim_end().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stopped_ns"), "1234\n").unwrap();
        fs::write(dir.path().join("state"), "taken\n").unwrap();
        fs::create_dir(dir.path().join("power")).unwrap();
        let state = SnapshotState(read_dir(dir.path().to_owned()));
        assert_eq!(state.stopped_ns(), Some(1234));
        assert_eq!(state.copied_bytes(), None);
        assert_eq!(
            state.iter().collect::<Vec<_>>(),
            [("state", "taken"), ("stopped_ns", "1234")]
        );
    }
}
