// SPDX-License-Identifier: MIT OR Apache-2.0

//! A block device, and the commands that the second interface has for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::call::{count_of, failed, raw_ranges};
use crate::cbt::{CbtInfo, ChangeMap};
use crate::error::{Command, Error, Result};
use crate::id::{DevId, GenerationId, SnapshotId};
use crate::sys::{self, v2};
use crate::units::SectorRange;

/// What is read of a change map at a time, at most.
const PIECE: usize = 1 << 20;

/// An open block device. It may be mounted, or in use otherwise.
#[derive(Debug)]
pub struct Device {
    file: File,
    id: DevId,
}

/// The image of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Why it is lost; `None` if it is good, or there is none.
    pub error: Option<Errno>,
    /// Its path; `None` while the device is in no snapshot that was taken.
    pub image: Option<PathBuf>,
}

/// Counters of a device. Sizes are in bytes; what concerns a snapshot is 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Memory of the change map.
    pub map_memory: u64,
    /// Writes that wait for a copy at the moment.
    pub writes_held: u64,
    /// Copies under way.
    pub copies_in_flight: u64,
    /// Memory of the copies, and of what is known of chunks.
    pub copy_memory: u64,
    /// Reads of the image that a write overtook.
    pub reads_retried: u64,
    /// What was copied for the snapshot, of all its devices.
    pub bytes_copied: u64,
    /// Storage of the snapshot.
    pub storage_size: u64,
    /// How much of it is in use.
    pub storage_used: u64,
    /// When tracking began, in seconds since 1970.
    pub since: u64,
}

impl Device {
    /// Opens a device by its path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error| Error::file("open the device", path, error);
        // Not what waits when it is opened, such as a FIFO.
        let meta = fs::metadata(path).map_err(failed)?;
        if !meta.file_type().is_block_device() {
            return Err(Error::NotBlockDevice(path.to_owned()));
        }
        let file = OpenOptions::new().read(true).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.file_type().is_block_device() {
            return Err(Error::NotBlockDevice(path.to_owned()));
        }
        Ok(Self {
            file,
            id: DevId::from_raw(meta.rdev()),
        })
    }

    /// Opens a device by its number.
    pub fn of(id: DevId) -> Result<Self> {
        let device = Self::open(id.path())?;
        if device.id != id {
            return Err(Error::file("open the device", id.path(), Errno::NODEV));
        }
        Ok(device)
    }

    /// Its number.
    pub fn id(&self) -> DevId {
        self.id
    }

    /// The error of a command.
    fn failed(&self, command: Command, errno: Errno) -> Error {
        failed(command, self.id.describe(), errno)
    }

    /// Begins to track the changes. `false` if they are tracked already.
    pub fn attach(&self) -> Result<bool> {
        let mut raw = v2::Attach {
            name: v2::FILTER_NAME,
            opt: 0,
            optlen: 0,
        };
        // SAFETY: The number is that of this structure, whose pointer is null.
        match unsafe { sys::call(&self.file, v2::ATTACH, &mut raw) } {
            Ok(_) => Ok(true),
            Err(Errno::ALREADY) => Ok(false),
            Err(errno) => Err(self.failed(Command::Attach, errno)),
        }
    }

    /// Stops tracking the changes. The change map is lost.
    pub fn detach(&self) -> Result<()> {
        let mut raw = v2::Detach {
            name: v2::FILTER_NAME,
        };
        // SAFETY: The number is that of this structure, which holds no pointer.
        unsafe { sys::call(&self.file, v2::DETACH, &mut raw) }
            .map_err(|errno| self.failed(Command::Detach, errno))?;
        Ok(())
    }

    /// Gives a command with its structure.
    ///
    /// # Safety
    ///
    /// `cmd` must take a `T`, and its pointers must be good for the counts beside them.
    unsafe fn ctl<T>(&self, cmd: u32, argument: &mut T) -> rustix::io::Result<()> {
        let mut raw = v2::Ctl {
            name: v2::FILTER_NAME,
            cmd,
            optlen: u32::try_from(size_of::<T>()).unwrap_or(0),
            opt: std::ptr::from_mut(argument).expose_provenance() as u64,
        };
        // SAFETY: The number is that of this structure; its pointer is to a `T`, which is exclusively
        // borrowed, and the rest is the duty of the caller.
        unsafe { sys::call(&self.file, v2::CTL, &mut raw) }.map(|_| ())
    }

    /// What is known of its changes; `None` if they are not tracked.
    pub fn cbt_info(&self) -> Result<Option<CbtInfo>> {
        let mut raw = v2::CbtInfo::default();
        // SAFETY: The command takes this structure, which holds no pointer.
        match unsafe { self.ctl(v2::CTL_CBTINFO, &mut raw) } {
            Ok(()) => Ok(Some(CbtInfo {
                device: self.id,
                block_size: raw.block_size,
                capacity: raw.device_capacity,
                block_count: raw.block_count,
                generation: GenerationId::from_raw(raw.generation_id),
                number: raw.changes_number,
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed(Command::CbtInfo, errno)),
        }
    }

    /// Reads a part of the change map as of the last take, from the block `offset` on, which must be
    /// there. What is past the end of the map stays as it was.
    pub fn read_cbt_map(&self, offset: u32, buffer: &mut [u8]) -> Result<()> {
        let mut raw = v2::CbtMap {
            offset,
            length: count_of(buffer),
            buffer: buffer.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: The command takes this structure, whose pointer is good for `length` bytes.
        unsafe { self.ctl(v2::CTL_CBTMAP, &mut raw) }
            .map_err(|errno| self.failed(Command::CbtMap, errno))
    }

    /// Reads the whole change map as of the last take.
    pub fn cbt_map(&self, info: &CbtInfo) -> Result<ChangeMap> {
        let mut bytes = vec![0; info.block_count as usize];
        for (index, piece) in bytes.chunks_mut(PIECE).enumerate() {
            // Below the number of blocks, a u32.
            self.read_cbt_map((index * PIECE) as u32, piece)?;
        }
        Ok(ChangeMap::new(bytes, info.block_size, info.capacity))
    }

    /// Marks ranges as changed, for this and the next increment.
    pub fn mark_dirty(&self, ranges: &[SectorRange]) -> Result<()> {
        let ranges = raw_ranges(ranges);
        let mut raw = v2::CbtDirty {
            count: count_of(&ranges),
            dirty_sectors: ranges.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: The command takes this structure, whose pointer is good for `count` ranges.
        unsafe { self.ctl(v2::CTL_CBTDIRTY, &mut raw) }
            .map_err(|errno| self.failed(Command::CbtDirty, errno))
    }

    /// Adds it to a snapshot that was created; it is [attached](Self::attach) before, if need be.
    pub fn snapshot_add(&self, id: SnapshotId) -> Result<()> {
        let add = || {
            let mut raw = id.to_raw();
            // SAFETY: The command takes this structure, which holds no pointer.
            unsafe { self.ctl(v2::CTL_SNAPSHOTADD, &mut raw) }
        };
        let added = match add() {
            Err(Errno::NOENT) => {
                self.attach()?;
                add()
            }
            other => other,
        };
        added.map_err(|errno| self.failed(Command::SnapshotAdd, errno))
    }

    /// Tells of its image.
    pub fn snapshot_info(&self) -> Result<Info> {
        let mut raw = v2::SnapshotInfo::default();
        // SAFETY: The command takes this structure, which holds no pointer.
        unsafe { self.ctl(v2::CTL_SNAPSHOTINFO, &mut raw) }
            .map_err(|errno| self.failed(Command::SnapshotInfo, errno))?;
        Ok(Info::from_raw(&raw))
    }

    /// Gets its counters; `None` if the module has none.
    pub fn stat(&self) -> Result<Option<Stat>> {
        let mut raw = v2::Stat::default();
        // SAFETY: The command takes this structure, which holds no pointer.
        match unsafe { self.ctl(v2::CTL_STAT, &mut raw) } {
            Ok(()) => Ok(Some(Stat::from_raw(&raw))),
            Err(Errno::NOTTY) => Ok(None),
            Err(errno) => Err(self.failed(Command::Stat, errno)),
        }
    }
}

impl Info {
    fn from_raw(raw: &v2::SnapshotInfo) -> Self {
        let name = raw.image.split(|&byte| byte == 0).next().unwrap_or(&[]);
        let name = String::from_utf8_lossy(name);
        let error = match raw.error_code {
            0 => None,
            code @ -4095..0 => Some(Errno::from_raw_os_error(-code)),
            _ => Some(Errno::IO),
        };
        Self {
            error,
            image: (!name.is_empty()).then(|| Path::new("/dev").join(&*name)),
        }
    }
}

impl Stat {
    fn from_raw(raw: &v2::Stat) -> Self {
        Self {
            map_memory: raw.map_memory,
            writes_held: raw.writes_held,
            copies_in_flight: raw.copies_in_flight,
            copy_memory: raw.copy_memory,
            reads_retried: raw.reads_retried,
            bytes_copied: raw.bytes_copied,
            storage_size: raw.storage_size,
            storage_used: raw.storage_used,
            since: raw.since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_path_and_may_be_lost() {
        let mut raw = v2::SnapshotInfo::default();
        let nothing = Info {
            error: None,
            image: None,
        };
        assert_eq!(Info::from_raw(&raw), nothing);
        raw.image[..12].copy_from_slice(b"blksnap-8-16");
        raw.error_code = -28;
        let lost = Info::from_raw(&raw);
        assert_eq!(lost.error, Some(Errno::NOSPC));
        assert_eq!(lost.image.as_deref(), Some(Path::new("/dev/blksnap-8-16")));
        raw.image = [b'x'; 32];
        raw.error_code = 7;
        assert_eq!(Info::from_raw(&raw).error, Some(Errno::IO));
    }

    #[test]
    fn what_is_no_block_device_is_not_opened() {
        let error = Device::open("/dev/null").unwrap_err();
        assert!(matches!(error, Error::NotBlockDevice(_)), "{error}");
        assert!(Device::open("/nonexistent").is_err());
    }
}
