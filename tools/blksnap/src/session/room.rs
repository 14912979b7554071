// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where the kernel is to hold difference storage, and how large that may become.
//!
//! In a directory it makes a file without a name, and lets it grow. If the file system is captured,
//! or is to be prepared for that, we make that file, and allocate all of it: it must not grow after
//! the instant, and whoever has no space for it learns that before. A file or a device that is named
//! is used as it is.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::SessionOptions;
use super::sizes::{
    MIB, device_of, explained, free_bytes, is_captured, most, reserve_size, too_large_blocks,
    too_little,
};
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::units::Sectors;
use crate::v2::Control;

/// A place for storage.
#[derive(Debug)]
pub(super) struct Room {
    /// The directory, the file or the device.
    path: PathBuf,
    /// The directory that a file would be made in, or that the file is in.
    dir: PathBuf,
    /// Bytes that are not exceeded.
    limit: u64,
    /// Whether the limit is what can ever be needed.
    enough: bool,
    /// Whether all of it is to be allocated by us.
    reserve: bool,
    /// Whether it is a whole device.
    device: bool,
}

/// What of a device is wiped, at both ends.
const WIPED: usize = 1 << 20;

impl Room {
    /// Looks at how the place for storage and the devices stand to each other.
    pub(super) fn find(options: &SessionOptions, devices: &[DevId]) -> Result<Self> {
        let prefix = options.place.prefix();
        let dir = options.place.directory();
        let meta = fs::metadata(prefix);
        let total = devices.iter().filter_map(|device| device.size()).sum();
        let most = most(total);
        if meta
            .as_ref()
            .is_ok_and(|meta| meta.file_type().is_block_device())
        {
            let device = DevId::resolve(prefix)?;
            is_captured(device, prefix, devices)?;
            return Ok(Self {
                path: prefix.to_owned(),
                dir,
                limit: device.size().unwrap_or(most),
                enough: true,
                reserve: false,
                device: true,
            });
        }
        let file = meta.ok().filter(|meta| meta.is_file());
        let under = device_of(&dir)?;
        // The kernel does not see what a loop device is on.
        let captured = is_captured(under, &dir, devices)?;
        if let (Some(reason), None) = (too_large_blocks(under, devices), &file) {
            return Err(Error::Storage { path: dir, reason });
        }
        let free = free_bytes(&dir)?;
        let has = file.as_ref().map_or(0, |meta| meta.len());
        let limit = match options.limit {
            limit @ Some(_) => reserve_size(limit, total, free),
            None if captured => has.saturating_add(reserve_size(None, total, free)),
            None => has.saturating_add(most.saturating_sub(has).min(free / 2) / MIB * MIB),
        };
        if limit == 0 {
            return Err(Error::Storage {
                path: dir,
                reason: too_little(options.limit).unwrap_or_else(|| {
                    "there is no space left for it (at least 1 MiB is needed)".into()
                }),
            });
        }
        Ok(Self {
            path: if file.is_some() {
                prefix.to_owned()
            } else {
                dir.clone()
            },
            dir,
            limit,
            enough: limit >= most / MIB * MIB,
            reserve: file.is_none() && (captured || options.reserve),
            device: false,
        })
    }

    /// Creates a snapshot that has its storage there.
    pub(super) fn create(&self, control: &Control) -> Result<SnapshotId> {
        let file = match self.reserve {
            true => self.allocated()?,
            false => None,
        };
        // The kernel opens the file that we have open.
        let path = match &file {
            Some(file) => in_proc(file),
            None => self.path.clone(),
        };
        let limit = Sectors::floor(self.limit);
        let created = control.snapshot_create(&path, limit);
        created.map_err(|error| match error.errno() {
            Some(Errno::NOSPC) => Error::Storage {
                path: self.path.clone(),
                reason: format!(
                    "{} MiB are free there, of which the first portion, or the limit of {} MiB, would take too much, \
                     or the file is too small and may not grow: free some space, choose another file system by \
                     --storage, or set another --limit",
                    free_bytes(&self.dir).unwrap_or(0) / MIB,
                    self.limit / MIB
                ),
            },
            Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::BUSY) if file.is_some() => {
                Error::Storage {
                    path: self.dir.clone(),
                    reason: error.to_string(),
                }
            }
            _ => error,
        })
    }

    /// A file without a name, of all the size that storage may get. None where there is no /proc to
    /// tell the kernel of it: then the kernel makes its own.
    fn allocated(&self) -> Result<Option<File>> {
        let failed = |action, error| Error::file(action, &self.dir, error);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(&self.dir);
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    // The kernel will say so.
                    Some(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(None),
                    _ => Err(failed("make the storage file in", error)),
                };
            }
        };
        // It must not be open for writing when the kernel is to hold it.
        let Ok(held) = File::open(in_proc(&file)) else {
            return Ok(None);
        };
        let allocated = fallocate(&file, FallocateFlags::empty(), 0, self.limit);
        let allocated = allocated.map_err(|errno| failed("allocate storage in", errno.into()));
        allocated.map_err(|error| {
            explained(error, &self.dir, &self.dir, |free| {
                format!(
                    "all of its {} MiB is allocated before the take, and {free} MiB are free there: give a smaller \
                     --limit, or choose another file system by --storage",
                    self.limit / MIB
                )
            })
        })?;
        file.sync_all()
            .map_err(|error| failed("write back the storage file in", error))?;
        Ok(Some(held))
    }

    /// When the snapshot has ended: takes from a device what it has of captured ones, lest udev or a
    /// user take it for one of them.
    pub(super) fn wipe(&self) -> Result<()> {
        if !self.device {
            return Ok(());
        }
        let failed = |error| Error::file("wipe the storage device", &self.path, error);
        // Not if somebody uses it by now.
        let flags = OFlags::EXCL.bits() as i32;
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(flags).open(&self.path);
        let file = file.map_err(failed)?;
        let size = usize::try_from(self.limit).unwrap_or(WIPED).min(WIPED);
        let zeros = vec![0; size];
        file.write_all_at(&zeros, 0)
            .and_then(|()| file.write_all_at(&zeros, self.limit - size as u64))
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// Bytes that were allocated before the take.
    pub(super) fn reserved(&self) -> Option<u64> {
        self.reserve.then_some(self.limit)
    }

    /// What it means that storage of this size cannot grow: nothing, if no more can be needed.
    pub(super) fn exhausted(&self, reached: Sectors) -> Option<String> {
        let limit = self.limit / MIB;
        match self.enough {
            true => None,
            false if self.reserve => Some(format!(
                "the limit of {limit} MiB, which were reserved before the take, is reached: set a higher --limit, or \
                 choose another file system by --storage"
            )),
            false if reached.bytes() < self.limit / 2 => Some(format!(
                "no more than {} MiB could be had in {}",
                reached.bytes() / MIB,
                self.dir.display()
            )),
            false => Some(format!("the limit of {limit} MiB is reached")),
        }
    }
}

/// The path of an open file.
fn in_proc(file: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(minor: u32) -> DevId {
        DevId { major: 4095, minor }
    }

    fn options(path: &Path, limit: Option<u64>) -> SessionOptions {
        let mut options = SessionOptions::in_directory(path);
        options.limit = limit;
        options
    }

    #[test]
    fn a_directory_gets_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::find(&options(dir.path(), Some(5 * MIB + 7)), &[none(1)]).unwrap();
        assert_eq!(room.limit, 5 * MIB);
        assert!(!room.enough && !room.reserve);
        assert_eq!(room.path, room.dir);
        let told = room.exhausted(Sectors(10240)).unwrap();
        assert!(told.contains("limit of 5 MiB"), "{told}");
        // The devices have no size here, so that this is what can be needed.
        let room = Room::find(&options(dir.path(), Some(99 << 30)), &[none(1)]).unwrap();
        assert!(room.enough);
        assert_eq!(room.exhausted(Sectors(1)), None);
        let error = Room::find(&options(dir.path(), Some(4096)), &[none(1)]).unwrap_err();
        assert!(error.to_string().contains("less than 1 MiB"), "{error}");
    }

    #[test]
    fn a_file_that_is_there_is_the_storage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![0; 3 << 20]).unwrap();
        let room = Room::find(&options(&path, None), &[none(1)]).unwrap();
        assert_eq!(room.path, path);
        assert!(room.limit >= 3 * MIB);
        // The beginning of names of files stands for their directory.
        let prefix = dir.path().join("fi");
        let room = Room::find(&options(&prefix, None), &[none(1)]).unwrap();
        assert_eq!(room.path, options(&prefix, None).place.directory());
    }

    #[test]
    fn what_is_reserved_has_its_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path(), Some(2 * MIB));
        options.reserve = true;
        let room = Room::find(&options, &[none(1)]).unwrap();
        assert_eq!(room.reserved(), Some(2 * MIB));
        let file = room.allocated().unwrap();
        if let Some(file) = file {
            assert_eq!(file.metadata().unwrap().len(), 2 * MIB);
            assert!(rustix::io::write(&file, &[1]).is_err(), "for reading only");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
