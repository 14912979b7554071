// SPDX-License-Identifier: MIT OR Apache-2.0

//! The thread that listens to a snapshot, appends storage and notes its loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::SessionOptions;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::event::EventKind;
use crate::id::{DevId, SnapshotId};
use crate::storage::StorageFile;
use crate::units::{ByteSet, Sectors};

/// How long one wait for an event is; a bound on how late a stop is seen when the snapshot can't be
/// destroyed.
const WAIT: Duration = Duration::from_millis(500);
/// What is appended first when the module, against its contract, does not ask.
const FALLBACK: u64 = 64 << 20;

/// What the thread and the session both see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<StorageFile>,
    corrupted: Option<(DevId, Errno)>,
    trouble: Option<String>,
}

impl Shared {
    /// The state. A panic elsewhere leaves it whole: each change is one assignment or push.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn corrupted(&self) -> Option<(DevId, Errno)> {
        self.state().corrupted
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    pub(super) fn storage_bytes(&self) -> u64 {
        let state = self.state();
        let sizes = state.files.iter().map(|file| file.extents().sectors());
        sizes.map(Sectors::bytes).sum()
    }

    pub(super) fn storage_on(&self, device: DevId) -> ByteSet {
        let state = self.state();
        let mut set = ByteSet::default();
        for extents in state.files.iter().map(StorageFile::extents) {
            let shift = if extents.device == device {
                0
            } else {
                match extents.device.partition_of() {
                    Some((disk, start)) if disk == device => start,
                    _ => continue,
                }
            };
            for range in &extents.ranges {
                let range = range.bytes();
                set.insert(range.start + shift..range.end + shift);
            }
        }
        set
    }

    /// Removes all files; goes on after an error and gives the first.
    pub(super) fn remove_files(&self) -> Result<()> {
        let files = std::mem::take(&mut self.state().files);
        let results: Vec<_> = files.into_iter().map(StorageFile::remove).collect();
        results.into_iter().collect()
    }
}

/// Appends storage to one snapshot.
pub(super) struct Feeder {
    control: Control,
    id: SnapshotId,
    options: SessionOptions,
    shared: std::sync::Arc<Shared>,
    next_file: u32,
}

impl Feeder {
    pub(super) fn new(
        control: Control,
        id: SnapshotId,
        options: SessionOptions,
        shared: std::sync::Arc<Shared>,
    ) -> Self {
        Self {
            control,
            id,
            options,
            shared,
            next_file: 0,
        }
    }

    /// Answers the event that a new snapshot has for its first portion.
    pub(super) fn first_portion(&mut self) -> Result<()> {
        let event = self.control.wait_event(self.id, WAIT)?;
        let requested = match event.map(|event| event.kind) {
            Some(EventKind::LowFreeSpace { requested }) => requested.bytes(),
            _ => FALLBACK,
        };
        self.append(requested)
    }

    /// Listens until the snapshot is gone.
    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let event = match self.control.wait_event(self.id, WAIT) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) => match error.errno() {
                    Some(Errno::INTR) => continue,
                    // Destroyed.
                    Some(Errno::SRCH) => return,
                    _ => {
                        self.note(error.to_string());
                        return;
                    }
                },
            };
            match event.kind {
                EventKind::LowFreeSpace { requested } => {
                    if let Err(error) = self.append(requested.bytes()) {
                        self.note(error.to_string());
                    }
                }
                EventKind::Corrupted { device, errno } => {
                    self.shared.state().corrupted.get_or_insert((device, errno));
                }
            }
        }
    }

    /// Makes a file of the size asked for, or a portion if that is more, and appends it; less at
    /// the limit.
    fn append(&mut self, requested: u64) -> Result<()> {
        let given = self.shared.storage_bytes();
        let size = allowance(
            requested.max(self.options.portion),
            given,
            self.options.limit,
        );
        let path = self.options.place.file(self.id, self.next_file);
        let Some(size) = size else {
            let limit = self.options.limit.unwrap_or(0) >> 20;
            return Err(Error::Storage {
                path,
                reason: format!("the limit of {limit} MiB is reached"),
            });
        };
        self.next_file += 1;
        let file = StorageFile::create(&path, size)?;
        let extents = file.extents().clone();
        // Kept from before the module knows of it: whatever happens from here on, it is removed
        // only after the snapshot.
        self.shared.state().files.push(file);
        self.control
            .snapshot_append_storage(self.id, extents.device, &extents.ranges)
    }

    /// Keeps the first thing that went wrong.
    fn note(&self, trouble: String) {
        self.shared.state().trouble.get_or_insert(trouble);
    }
}

/// How many bytes may be appended when so many are wanted: whole MiB up, none past the limit.
fn allowance(wanted: u64, given: u64, limit: Option<u64>) -> Option<u64> {
    const UNIT: u64 = 1 << 20;
    let wanted = wanted.max(1).checked_next_multiple_of(UNIT)?;
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(given)) / UNIT * UNIT;
    Some(wanted.min(left)).filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::allowance;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_is_never_exceeded() {
        assert_eq!(allowance(16 * MIB, 0, None), Some(16 * MIB));
        assert_eq!(allowance(16 * MIB - 1, 99, None), Some(16 * MIB));
        assert_eq!(allowance(0, 0, None), Some(MIB));
        assert_eq!(
            allowance(16 * MIB, 16 * MIB, Some(32 * MIB)),
            Some(16 * MIB)
        );
        assert_eq!(
            allowance(16 * MIB, 20 * MIB, Some(32 * MIB)),
            Some(12 * MIB)
        );
        assert_eq!(allowance(16 * MIB, 32 * MIB, Some(32 * MIB)), None);
        assert_eq!(allowance(16 * MIB, 40 * MIB, Some(32 * MIB)), None);
        assert_eq!(allowance(u64::MAX, 0, None), None);
    }
}
