// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control device of the first interface: one method for each command of the module.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::call::{
    bind, collect, count_of, failed, give_unused, if_there, open_control, raw_ranges,
};
use crate::cbt::{CbtInfo, ChangeMap};
use crate::error::{Command, Result};
use crate::event::Event;
use crate::id::{DevId, SnapshotId};
use crate::sys;
use crate::units::SectorRange;
use rustix::io::Errno;

/// The version of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes when programs must change.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
    /// Changes when something is mended.
    pub revision: u16,
    /// The build.
    pub build: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            revision,
            build,
        } = self;
        write!(f, "{major}.{minor}.{revision}.{build}")
    }
}

impl From<sys::Version> for Version {
    fn from(raw: sys::Version) -> Self {
        Self {
            major: raw.major,
            minor: raw.minor,
            revision: raw.revision,
            build: raw.build,
        }
    }
}

/// An original device and its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The device that was captured.
    pub original: DevId,
    /// The device that shows it as it was.
    pub device: DevId,
    /// The path of that device.
    pub path: PathBuf,
}

/// The opened control device. Any number may be open at once, and threads may share one.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens `/dev/blksnap`. Needs root, and the module loaded.
    pub fn open() -> Result<Self> {
        Self::open_at(sys::CONTROL_PATH)
    }

    /// Opens the control device at another path.
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self> {
        let file = open_control(path.as_ref())?;
        Ok(Self { file })
    }

    /// Opens it if there is one.
    pub fn open_if_there() -> Result<Option<Self>> {
        if_there(Self::open())
    }

    /// Binds the snapshots that this value creates from now on to it: they end when it is dropped, or
    /// the process ends. `false` if the module does not know that.
    pub fn bind(&self) -> Result<bool> {
        bind(&self.file)
    }

    /// Gets the version of the module.
    pub fn version(&self) -> Result<Version> {
        let mut raw = sys::Version::default();
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, sys::VERSION, &mut raw) }
            .map_err(|errno| failed(Command::Version, "", errno))?;
        Ok(raw.into())
    }

    /// Stops tracking a device. Its change map is lost; the next backup of it must be a full one.
    pub fn tracker_remove(&self, device: DevId) -> Result<()> {
        let mut raw = sys::TrackerRemove {
            dev_id: device.into(),
        };
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, sys::TRACKER_REMOVE, &mut raw) }
            .map_err(|errno| failed(Command::TrackerRemove, device.describe(), errno))?;
        Ok(())
    }

    /// Lists the tracked devices, in the order in which tracking began.
    pub fn trackers(&self) -> Result<Vec<CbtInfo>> {
        let found = collect(Errno::NOBUFS, |count, array| {
            let mut raw = sys::TrackerCollect {
                count,
                cbt_info_array: array,
            };
            // SAFETY: The number is that of this structure, whose array is null or has room for
            // `count`.
            unsafe { sys::call(&self.file, sys::TRACKER_COLLECT, &mut raw) }
                .map(|_| raw.count)
                .map_err(|errno| (errno, raw.count))
        });
        let found = found.map_err(|errno| failed(Command::TrackerCollect, "", errno))?;
        Ok(found.into_iter().map(CbtInfo::from).collect())
    }

    /// What is known of one tracked device; `None` if it is not tracked.
    pub fn tracker(&self, device: DevId) -> Result<Option<CbtInfo>> {
        Ok(self
            .trackers()?
            .into_iter()
            .find(|info| info.device == device))
    }

    /// Reads a part of the change map of a device as of its last take, from the block `offset` on,
    /// and gives how many bytes were read: one for each block, 0 at or past the end.
    pub fn read_cbt_map(&self, device: DevId, offset: u32, buffer: &mut [u8]) -> Result<usize> {
        let mut raw = sys::TrackerReadCbtBitmap {
            dev_id: device.into(),
            offset,
            length: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
            buff: buffer.as_mut_ptr(),
        };
        // SAFETY: The number is that of this structure, whose pointer is good for at least `length`
        // bytes.
        let count = unsafe { sys::call(&self.file, sys::TRACKER_READ_CBT_MAP, &mut raw) }
            .map_err(|errno| failed(Command::TrackerReadCbtMap, device.describe(), errno))?;
        Ok((count as usize).min(buffer.len()))
    }

    /// Reads the whole change map of a device as of its last take.
    pub fn cbt_map(&self, info: &CbtInfo) -> Result<ChangeMap> {
        let mut bytes = vec![0; info.block_count as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            // At most 1 MiB a call, as clients always did. The offset is below the count, a u32.
            let end = bytes.len().min(filled + (1 << 20));
            let count = self.read_cbt_map(info.device, filled as u32, &mut bytes[filled..end])?;
            if count == 0 {
                return Err(failed(
                    Command::TrackerReadCbtMap,
                    info.device.describe(),
                    Errno::IO,
                ));
            }
            filled += count;
        }
        Ok(ChangeMap::new(bytes, info.block_size, info.capacity))
    }

    /// Marks ranges of a tracked device (or of the original of an image) as changed, for this and
    /// the next increment.
    pub fn mark_dirty(&self, device: DevId, ranges: &[SectorRange]) -> Result<()> {
        let ranges = raw_ranges(ranges);
        let mut raw = sys::TrackerMarkDirtyBlocks {
            dev_id: device.into(),
            count: count_of(&ranges),
            dirty_blocks_array: ranges.as_ptr(),
        };
        // SAFETY: The number is that of this structure, whose pointer is good for `count` ranges.
        unsafe { sys::call(&self.file, sys::TRACKER_MARK_DIRTY_BLOCKS, &mut raw) }
            .map_err(|errno| failed(Command::TrackerMarkDirtyBlocks, device.describe(), errno))?;
        Ok(())
    }

    /// Prepares a snapshot of several devices. Tracking begins for those not tracked yet.
    pub fn snapshot_create(&self, devices: &[DevId]) -> Result<SnapshotId> {
        let ids: Vec<sys::DevT> = devices.iter().copied().map(Into::into).collect();
        let mut raw = sys::SnapshotCreate {
            count: count_of(&ids),
            dev_id_array: ids.as_ptr(),
            id: [0; 16],
        };
        // SAFETY: The number is that of this structure, whose pointer is good for `count` ids.
        unsafe { sys::call(&self.file, sys::SNAPSHOT_CREATE, &mut raw) }.map_err(|errno| {
            let names: Vec<_> = devices.iter().map(|id| id.describe()).collect();
            failed(Command::SnapshotCreate, names.join(", "), errno)
        })?;
        Ok(SnapshotId::from_raw(raw.id))
    }

    /// Ends a snapshot. When this returns, its images are gone and nothing more is written to its
    /// storage.
    pub fn snapshot_destroy(&self, id: SnapshotId) -> Result<()> {
        let mut raw = sys::SnapshotDestroy { id: id.to_raw() };
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, sys::SNAPSHOT_DESTROY, &mut raw) }
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

    /// Gives a snapshot ranges of a device to save old data in. They must stay reserved until it is
    /// destroyed.
    pub fn snapshot_append_storage(
        &self,
        id: SnapshotId,
        device: DevId,
        ranges: &[SectorRange],
    ) -> Result<()> {
        let ranges = raw_ranges(ranges);
        let mut raw = sys::SnapshotAppendStorage {
            id: id.to_raw(),
            dev_id: device.into(),
            count: count_of(&ranges),
            ranges: ranges.as_ptr(),
        };
        // SAFETY: The number is that of this structure, whose pointer is good for `count` ranges.
        unsafe { sys::call(&self.file, sys::SNAPSHOT_APPEND_STORAGE, &mut raw) }.map_err(
            |errno| {
                let subject = format!("{id} on {}", device.describe());
                failed(Command::SnapshotAppendStorage, subject, errno)
            },
        )?;
        Ok(())
    }

    /// Captures all devices of a snapshot at one instant. When this returns, the images are
    /// present.
    pub fn snapshot_take(&self, id: SnapshotId) -> Result<()> {
        let mut raw = sys::SnapshotTake { id: id.to_raw() };
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, sys::SNAPSHOT_TAKE, &mut raw) }
            .map_err(|errno| failed(Command::SnapshotTake, id, errno))?;
        Ok(())
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

    /// Lists the snapshots, in the order of their creation.
    pub fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        let found = collect(Errno::NODATA, |count, array| {
            let mut raw = sys::SnapshotCollect { count, ids: array };
            // SAFETY: The number is that of this structure, whose array is null or has room for
            // `count`.
            unsafe { sys::call(&self.file, sys::SNAPSHOT_COLLECT, &mut raw) }
                .map(|_| raw.count)
                .map_err(|errno| (errno, raw.count))
        });
        let found = found.map_err(|errno| failed(Command::SnapshotCollect, "", errno))?;
        Ok(found.into_iter().map(SnapshotId::from_raw).collect())
    }

    /// Lists the images of a taken snapshot, in the order in which its devices were given.
    pub fn images(&self, id: SnapshotId) -> Result<Vec<Image>> {
        let found = collect(Errno::NODATA, |count, array| {
            let mut raw = sys::SnapshotCollectImages {
                id: id.to_raw(),
                count,
                image_info_array: array,
            };
            // SAFETY: The number is that of this structure, whose array is null or has room for
            // `count`.
            unsafe { sys::call(&self.file, sys::SNAPSHOT_COLLECT_IMAGES, &mut raw) }
                .map(|_| raw.count)
                .map_err(|errno| (errno, raw.count))
        });
        let found = found.map_err(|errno| failed(Command::SnapshotCollectImages, id, errno))?;
        Ok(found
            .into_iter()
            .map(|raw: sys::ImageInfo| Image {
                original: raw.orig_dev_id.into(),
                device: raw.image_dev_id.into(),
                path: format!("{}{}", sys::IMAGE_PATH, raw.image_dev_id.mn).into(),
            })
            .collect())
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
        match unsafe { sys::call(&self.file, sys::SNAPSHOT_WAIT_EVENT, &mut raw) } {
            Ok(_) => Event::from_raw(&raw).map(Some),
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
