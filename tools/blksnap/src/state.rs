// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module shows of its snapshots, for people and measurements.
//!
//! This is the one place that knows where and how: a line for each snapshot, of words `name=value`,
//! in a file of debugfs. Without debugfs, or with an older module, there is none, so everything
//! here is optional.

use std::collections::BTreeMap;
use std::fs;

use crate::id::SnapshotId;
use crate::units::Sectors;

/// Where the lines are.
const SNAPSHOTS: &str = "/sys/kernel/debug/blksnap/snapshots";

/// The values the module shows of a snapshot, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotState(BTreeMap<String, String>);

impl SnapshotState {
    /// Reads what there is now; empty if the module shows nothing.
    pub fn read(id: SnapshotId) -> Self {
        let text = fs::read_to_string(SNAPSHOTS).unwrap_or_default();
        Self::find(&text, id).unwrap_or_default()
    }

    /// Finds the line of a snapshot.
    fn find(text: &str, id: SnapshotId) -> Option<Self> {
        let id = id.to_string();
        let mut states = text.lines().map(|line| {
            let words = line.split_whitespace();
            let pairs = words.filter_map(|word| word.split_once('='));
            Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
        });
        states.find(|state| state.0.get("id") == Some(&id))
    }

    /// All values: names and texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&**name, &**text))
    }

    /// A value that is a number.
    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.parse().ok()
    }

    /// A value that is a number of sectors, in bytes.
    fn bytes(&self, name: &str) -> Option<u64> {
        self.number(name).map(|count| Sectors(count).bytes())
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
        self.bytes("copied")
    }

    /// Bytes of difference storage in use: what was copied, rounded up, and what was written to
    /// images.
    pub fn filled_bytes(&self) -> Option<u64> {
        self.bytes("filled")
    }

    /// Bytes of difference storage that were given.
    pub fn storage_bytes(&self) -> Option<u64> {
        self.bytes("capacity")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_line_of_a_snapshot_is_found() {
        let id = |number| SnapshotId(Uuid::from_u128(number));
        let line = |number| {
            format!(
                "id={} state=taken error=0 devices=2 stopped_us={number} capacity=65536 filled=16 \
                 requested=65536 copied=9 retried=0\n",
                id(number)
            )
        };
        let text = line(1) + &line(2);
        let state = SnapshotState::find(&text, id(2)).unwrap();
        assert_eq!(state.phase(), Some("taken"));
        assert_eq!(state.stopped_ns(), Some(2000));
        assert_eq!(state.storage_bytes(), Some(32 << 20));
        assert_eq!(state.filled_bytes(), Some(8192));
        assert_eq!(state.copied_bytes(), Some(9 * 512));
        assert_eq!(state.iter().count(), 10);
        assert_eq!(SnapshotState::find(&text, id(3)), None);
        assert_eq!(SnapshotState::default().stopped_ns(), None);
    }
}
