// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control device of the second interface.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::Event;
use crate::call::{bind, collect, failed, give_unused, if_there, open_control};
use crate::control::Version;
use crate::error::{Command, Result};
use crate::id::{DevId, SnapshotId};
use crate::sys::{self, v2};
use crate::units::{SectorRange, Sectors};

/// The opened control device. Any number may be open at once, and threads may share one.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens `/dev/blksnap-control`. Needs root, and the module loaded.
    pub fn open() -> Result<Self> {
        Self::open_at(v2::CONTROL_PATH)
    }

    /// Opens the control device at another path.
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self> {
        let file = open_control(path.as_ref())?;
        Ok(Self { file })
    }

    /// Opens it if there is one: an older module has only `/dev/blksnap`.
    pub fn open_if_there() -> Result<Option<Self>> {
        if_there(Self::open())
    }

    /// Gets the version of the interface.
    pub fn version(&self) -> Result<Version> {
        let mut raw = sys::Version::default();
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, v2::VERSION, &mut raw) }
            .map_err(|errno| failed(Command::Version, "", errno))?;
        Ok(raw.into())
    }

    /// Binds the snapshots that this value creates from now on to it: they end when it is dropped, or
    /// the process ends. `false` if the module does not know that.
    pub fn bind(&self) -> Result<bool> {
        bind(&self.file)
    }

    /// Prepares a snapshot without devices, with its storage at `path`: a file, which stays, a
    /// directory, in which a file without a name is made, or a whole device. It gets no larger than
    /// `limit`; a device is used as it is.
    ///
    /// What is in a file or on a device is overwritten.
    pub fn snapshot_create(&self, path: &Path, limit: Sectors) -> Result<SnapshotId> {
        let refused = |errno| failed(Command::SnapshotCreateAt, path.display(), errno);
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| refused(Errno::INVAL))?;
        let mut raw = v2::SnapshotCreate {
            diff_storage_limit_sect: limit.0,
            diff_storage_filename: name.as_ptr().expose_provenance() as u64,
            id: [0; 16],
        };
        // SAFETY: The number is that of this structure, whose pointer is to a string that lives.
        unsafe { sys::call(&self.file, v2::SNAPSHOT_CREATE, &mut raw) }.map_err(refused)?;
        Ok(SnapshotId::from_raw(raw.id))
    }

    /// Captures all devices of a snapshot at one instant. When this returns, the images are
    /// present.
    pub fn snapshot_take(&self, id: SnapshotId) -> Result<()> {
        let mut raw = id.to_raw();
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, v2::SNAPSHOT_TAKE, &mut raw) }
            .map_err(|errno| failed(Command::SnapshotTake, id, errno))?;
        Ok(())
    }

    /// Ends a snapshot. When this returns, its images are gone, and its storage is closed.
    pub fn snapshot_destroy(&self, id: SnapshotId) -> Result<()> {
        let mut raw = id.to_raw();
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, v2::SNAPSHOT_DESTROY, &mut raw) }
            .map_err(|errno| failed(Command::SnapshotDestroy, id, errno))?;
        Ok(())
    }

    /// Ends a snapshot, unless somebody else has.
    pub(crate) fn snapshot_end(&self, id: SnapshotId) -> Result<()> {
        match self.snapshot_destroy(id) {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    /// Tells a taken snapshot what of one of its devices had no meaning at the instant, such as free
    /// blocks of a file system: what is written there is not copied from then on, and the image shows
    /// zeros. That cannot be taken back. May be called any number of times. What the module keeps in
    /// one piece (a chunk, 4 KiB of small devices) must be in one range. `false` if the module does not know
    /// this command.
    pub fn snapshot_unused(
        &self,
        id: SnapshotId,
        device: DevId,
        ranges: &[SectorRange],
    ) -> Result<bool> {
        give_unused(&self.file, id, device, ranges)
    }

    /// Lists the snapshots of this interface, in the order of their creation.
    pub fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        let found = collect(Errno::NODATA, |count, array: *mut sys::RawUuid| {
            let mut raw = v2::SnapshotCollect {
                count,
                ids: array.expose_provenance() as u64,
            };
            // SAFETY: The number is that of this structure, whose array is null or has room for
            // `count`.
            unsafe { sys::call(&self.file, v2::SNAPSHOT_COLLECT, &mut raw) }
                .map(|_| raw.count)
                .map_err(|errno| (errno, raw.count))
        });
        let found = found.map_err(|errno| failed(Command::SnapshotCollect, "", errno))?;
        Ok(found.into_iter().map(SnapshotId::from_raw).collect())
    }

    /// Waits for the next event of a snapshot; `None` when `timeout` (in whole milliseconds) is
    /// over.
    ///
    /// Each event is given to one caller. The error is [`Errno::INTR`] on a signal, and
    /// [`Errno::SRCH`] when the snapshot does not exist, or is destroyed meanwhile.
    pub fn wait_event(&self, id: SnapshotId, timeout: Duration) -> Result<Option<Event>> {
        let mut raw = sys::SnapshotEvent {
            id: id.to_raw(),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            code: 0,
            time_label: 0,
            data: [0; 4064],
        };
        // SAFETY: The number is that of this structure, which holds no pointer.
        match unsafe { sys::call(&self.file, v2::SNAPSHOT_WAIT_EVENT, &mut raw) } {
            Ok(_) => Ok(Some(Event::from_raw(&raw))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(Command::SnapshotWaitEvent, id, errno)),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
