// SPDX-License-Identifier: MIT OR Apache-2.0

//! The thread that listens to a snapshot, appends storage and notes its loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::SessionOptions;
use super::health::{Health, SessionEvent};
use super::supply::{Given, Supply};
use crate::control::Control;
use crate::error::Result;
use crate::event::EventKind;
use crate::id::{DevId, SnapshotId};
use crate::state::SnapshotState;
use crate::storage::{Extents, StorageFile};
use crate::units::ByteSet;

/// How long one wait for an event is; a bound on how late a stop is seen when the snapshot can't be
/// destroyed.
const WAIT: Duration = Duration::from_millis(500);
/// What is appended first when the module, against its contract, does not ask.
const FALLBACK: u64 = 64 << 20;

/// What the thread and the session both see.
#[derive(Debug)]
pub(super) struct Shared {
    stop: AtomicBool,
    storage: Mutex<Storage>,
    /// How the snapshot is.
    pub(super) health: Health,
}

/// The storage.
#[derive(Debug, Default)]
struct Storage {
    /// The files, from before the module knows of them: they are removed only after the snapshot.
    files: Vec<StorageFile>,
    /// Bytes allocated before the take, if that was needed.
    reserved: Option<u64>,
    /// What was appended.
    given: Vec<Extents>,
}

/// Locks. A panic elsewhere leaves the values whole: each change is one assignment or push.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            stop: AtomicBool::new(false),
            storage: Mutex::default(),
            health: Health::new()?,
        })
    }

    /// From now on, the end of the snapshot is no news.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn reserved(&self) -> Option<u64> {
        lock(&self.storage).reserved
    }

    pub(super) fn storage_bytes(&self) -> u64 {
        let storage = lock(&self.storage);
        let sizes = storage
            .given
            .iter()
            .map(|extents| extents.sectors().bytes());
        sizes.sum()
    }

    pub(super) fn portions(&self) -> usize {
        lock(&self.storage).given.len()
    }

    /// Why files could not be made immutable; of the last one that could not.
    pub(super) fn changeable(&self) -> Option<Errno> {
        let storage = lock(&self.storage);
        storage.files.iter().rev().find_map(StorageFile::changeable)
    }

    pub(super) fn storage_on(&self, device: DevId) -> ByteSet {
        let storage = lock(&self.storage);
        let mut set = ByteSet::default();
        for extents in &storage.given {
            let base = |id: DevId| id.partition_of().unwrap_or((id, 0));
            let ((disk, start), (other, from)) = (base(extents.device), base(device));
            if disk != other {
                continue;
            }
            for range in &extents.ranges {
                let range = range.bytes();
                let place = |byte: u64| (byte + start).saturating_sub(from);
                set.insert(place(range.start)..place(range.end));
            }
        }
        set
    }

    /// Removes all files; goes on after an error and gives the first.
    pub(super) fn remove_files(&self) -> Result<()> {
        let files = std::mem::take(&mut lock(&self.storage).files);
        let results: Vec<_> = files.into_iter().map(StorageFile::remove).collect();
        results.into_iter().collect()
    }
}

/// Appends storage to one snapshot.
pub(super) struct Feeder {
    control: Control,
    id: SnapshotId,
    options: SessionOptions,
    supply: Supply,
    /// Bytes that the module was promised and has not got.
    owed: u64,
    shared: Arc<Shared>,
}

impl Feeder {
    /// Prepares the storage of a snapshot of `devices`, which was not taken yet.
    pub(super) fn new(
        control: Control,
        id: SnapshotId,
        devices: &[DevId],
        options: SessionOptions,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let (supply, file) = Supply::new(&control, id, devices, &options)?;
        if let Some(file) = file {
            let mut storage = lock(&shared.storage);
            storage.reserved = Some(file.extents().sectors().bytes());
            storage.files.push(file);
        }
        Ok(Self {
            control,
            id,
            options,
            supply,
            owed: 0,
            shared,
        })
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
                Ok(None) => {
                    self.settle();
                    continue;
                }
                Err(error) => match error.errno() {
                    Some(Errno::INTR) => continue,
                    // Destroyed.
                    Some(Errno::SRCH) => {
                        if !self.shared.stop.load(Ordering::Relaxed) {
                            self.shared.health.tell(SessionEvent::Gone);
                        }
                        return;
                    }
                    // Of a newer module; there may be others behind it.
                    None => {
                        self.trouble(error.to_string());
                        continue;
                    }
                    Some(_) => {
                        self.trouble(error.to_string());
                        return;
                    }
                },
            };
            match event.kind {
                EventKind::LowFreeSpace { requested } => {
                    match self.append(requested.bytes()) {
                        // Destroyed meanwhile: the next look says so.
                        Err(error) if error.errno() == Some(Errno::SRCH) => {}
                        Err(error) => self.trouble(error.to_string()),
                        Ok(()) => {}
                    }
                }
                EventKind::Corrupted { device, errno } => {
                    let event = SessionEvent::Corrupted { device, errno };
                    self.shared.health.tell(event);
                }
            }
        }
    }

    /// Gives more of what is owed when half of what there is has been used.
    fn settle(&mut self) {
        let owed = self.owed;
        let used = SnapshotState::read(self.id).filled_bytes();
        if owed == 0 || used.is_some_and(|used| used < self.shared.storage_bytes() / 2) {
            return;
        }
        // If it fails, that is told once, and not tried again before the module asks again.
        self.owed = 0;
        if let Err(error) = self.give(owed) {
            self.trouble(error.to_string());
        }
    }

    /// Appends as much as is asked for, or a portion if that is more; less at the limit, and less at
    /// a time where little is free.
    fn append(&mut self, requested: u64) -> Result<()> {
        self.give(requested.max(self.options.portion))
    }

    fn give(&mut self, wanted: u64) -> Result<()> {
        let next = self
            .supply
            .next(&self.control, self.id, wanted, &self.options);
        let Some(Given {
            extents,
            file,
            owed,
        }) = next?
        else {
            return Ok(());
        };
        self.owed = owed;
        // Locked until the module has it: whoever asks where storage is finds it marked as changed.
        let mut storage = lock(&self.shared.storage);
        storage.files.extend(file);
        self.control
            .snapshot_append_storage(self.id, extents.device, &extents.ranges)?;
        storage.given.push(extents);
        Ok(())
    }

    fn trouble(&self, why: String) {
        self.shared.health.tell(SessionEvent::Trouble(why));
    }
}
