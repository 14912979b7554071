// SPDX-License-Identifier: MIT OR Apache-2.0

//! A snapshot by the first interface, which a thread of ours gives its storage.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use super::SessionOptions;
use super::engine::Engine;
use super::feeder::{Feeder, Shared};
use super::health::SessionEvent;
use crate::cbt::{CbtInfo, ChangeMap};
use crate::control::{Control, Image};
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::owner::{self, Claim};
use crate::storage::remove_stale;
use crate::units::{ByteSet, SectorRange};

/// A snapshot, its files and its thread. Dropping it does not end it.
#[derive(Debug)]
pub(super) struct Fed {
    control: Control,
    id: SnapshotId,
    shared: Arc<Shared>,
    feeder: Option<JoinHandle<()>>,
    /// Tells others that this process lives.
    _claim: Option<Claim>,
}

impl Fed {
    /// Creates a snapshot and gives it its first portion of storage.
    pub(super) fn create(
        devices: &[DevId],
        options: SessionOptions,
    ) -> Result<(SnapshotId, Box<dyn Engine>)> {
        let control = Control::open()?;
        remove_stale(&options.place, &control)?;
        owner::forget_ended()?;
        let feeder_control = Control::open()?;
        let shared = Arc::new(Shared::new()?);
        // So that nothing is left if this process is killed before there is a file that tells.
        control.bind()?;
        let id = control.snapshot_create(devices)?;
        let mut fed = Self {
            control,
            id,
            shared: shared.clone(),
            feeder: None,
            _claim: Claim::new(id, &options.place),
        };
        match fed.feed(feeder_control, devices, options) {
            Ok(()) => Ok((id, Box::new(fed))),
            Err(error) => {
                // The error that led here says more than a second one would.
                let _ = fed.finish();
                Err(error)
            }
        }
    }

    /// Gives the first portion, and starts the thread.
    fn feed(&mut self, control: Control, devices: &[DevId], options: SessionOptions) -> Result<()> {
        let shared = self.shared.clone();
        let mut feeder = Feeder::new(control, self.id, devices, options, shared)?;
        feeder.first_portion()?;
        let thread = std::thread::Builder::new().name("blksnap-feeder".into());
        let thread = thread
            .spawn(move || feeder.run())
            .map_err(|source| Error::file("start a thread for", "/dev/blksnap", source))?;
        self.feeder = Some(thread);
        Ok(())
    }
}

impl Engine for Fed {
    fn take(&self) -> Result<()> {
        self.control.snapshot_take(self.id)
    }

    fn images(&self) -> Result<Vec<Image>> {
        self.control.images(self.id)
    }

    fn give_unused(&self, device: DevId, ranges: &[SectorRange]) -> Result<bool> {
        self.control.snapshot_unused(self.id, device, ranges)
    }

    fn check(&self, patience: Duration) -> Result<()> {
        self.shared.health.check(self.id, patience)
    }

    fn wait(&self, timeout: Duration) -> Option<SessionEvent> {
        self.shared.health.wait(timeout)
    }

    fn trouble(&self) -> Option<String> {
        self.shared.health.trouble()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.health.as_fd()
    }

    fn tracker(&self, device: DevId) -> Result<Option<CbtInfo>> {
        self.control.tracker(device)
    }

    fn change_map(&self, info: &CbtInfo) -> Result<ChangeMap> {
        self.control.cbt_map(info)
    }

    fn storage_bytes(&self) -> u64 {
        self.shared.storage_bytes()
    }

    fn portions(&self) -> usize {
        self.shared.portions()
    }

    fn reserved(&self) -> Option<u64> {
        self.shared.reserved()
    }

    fn changeable(&self) -> Option<Errno> {
        self.shared.changeable()
    }

    fn storage_on(&self, device: DevId) -> ByteSet {
        self.shared.storage_on(device)
    }

    fn finish(&mut self) -> Result<()> {
        self.shared.stop();
        let destroyed = self.control.snapshot_end(self.id);
        if let Some(thread) = self.feeder.take() {
            // A panic of the thread has been printed, and there is nothing more to do about it.
            let _ = thread.join();
        }
        // While the snapshot lives, its files must stay.
        destroyed?;
        self.shared.remove_files()
    }
}
