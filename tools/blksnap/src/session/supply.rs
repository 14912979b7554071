// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a session's difference storage comes from.
//!
//! On a device that is captured, all of it is allocated before the take: see
//! [`storage`](crate::storage#storage-on-a-captured-device). Elsewhere a file is made for each
//! portion when it is asked for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::SessionOptions;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::storage::{Extents, Portions, StorageFile};
use crate::topology::Relation;

const MIB: u64 = 1 << 20;
/// Captured devices that are no larger than this together get storage for all their blocks, if
/// nothing else is said.
const LITTLE: u64 = 1 << 30;
/// What a device may need beside its own size: ends of ranges that are not used.
const SLACK: u64 = 16 << 20;

/// Where storage comes from.
#[derive(Debug)]
pub(super) enum Supply {
    /// New files, one a portion.
    Files {
        /// The number of the next one.
        next: u32,
        /// Bytes in those made so far.
        made: u64,
    },
    /// One file that was made before the take.
    Reserve {
        /// What was not given yet.
        left: Portions,
        /// Bytes there were.
        size: u64,
    },
}

impl Supply {
    /// Looks at how the place for storage and the devices stand to each other, and allocates all of
    /// it now if it must be; gives the file in this case.
    pub(super) fn new(
        control: &Control,
        id: SnapshotId,
        devices: &[DevId],
        options: &SessionOptions,
    ) -> Result<(Self, Option<StorageFile>)> {
        let dir = options.place.directory();
        let device = device_of(&dir)?;
        let captured = match Relation::of(device, devices) {
            Relation::Separate => false,
            Relation::Overlaps(_) => true,
            Relation::Above(lower) => {
                return Err(Error::Storage {
                    path: dir,
                    reason: format!(
                        "its file system is on {}, which is built on the captured {}: each copy stored there would \
                         have to be copied itself; choose another file system",
                        device.path().display(),
                        lower.path().display()
                    ),
                });
            }
        };
        if !captured && !options.reserve {
            return Ok((Self::Files { next: 0, made: 0 }, None));
        }
        let total = devices.iter().filter_map(|device| device.size()).sum();
        let size = reserve_size(options.limit, total, free_bytes(&dir)?);
        let path = options.place.file(id, 0);
        if size == 0 {
            return Err(Error::Storage {
                path,
                reason: "there is no space left for it (at least 1 MiB is needed)".into(),
            });
        }
        let file = StorageFile::create(&path, size).map_err(|error| match error {
            Error::File { cause, .. } if Errno::from_io_error(&cause) == Some(Errno::NOSPC) => {
                Error::Storage {
                    path: path.clone(),
                    reason: format!(
                        "all of its {} MiB is allocated before the take, and there is not as much space left: give a \
                         smaller limit, or choose another file system",
                        size / MIB
                    ),
                }
            }
            error => error,
        })?;
        let file = safe(control, id, file)?;
        let left = Portions::new(file.extents().clone());
        Ok((Self::Reserve { left, size }, Some(file)))
    }

    /// Gives storage of about the size wanted, and the file if one was made for it.
    pub(super) fn next(
        &mut self,
        control: &Control,
        id: SnapshotId,
        wanted: u64,
        options: &SessionOptions,
    ) -> Result<(Extents, Option<StorageFile>)> {
        match self {
            Self::Reserve { left, size } => match left.next(wanted) {
                Some(extents) => Ok((extents, None)),
                None => Err(Error::Storage {
                    path: options.place.file(id, 0),
                    reason: format!(
                        "the {} MiB that were reserved before the take are all given, and no space may be added on a \
                         captured file system: set a higher limit, or choose another file system",
                        *size / MIB
                    ),
                }),
            },
            Self::Files { next, made } => {
                let path = options.place.file(id, *next);
                let Some(size) = allowance(wanted, *made, options.limit) else {
                    let limit = options.limit.unwrap_or(0) / MIB;
                    return Err(Error::Storage {
                        path,
                        reason: format!("the limit of {limit} MiB is reached"),
                    });
                };
                *next += 1;
                let file = safe(control, id, StorageFile::create(&path, size)?)?;
                *made += size;
                Ok((file.extents().clone(), Some(file)))
            }
        }
    }
}

/// Removes a file, and fails, if another snapshot had captured its device when it was made: its
/// blocks may have been those of a file deleted since. Asked after the file was made, this leaves no
/// gap: a snapshot taken later finds the blocks to be the file's.
fn safe(control: &Control, id: SnapshotId, file: StorageFile) -> Result<StorageFile> {
    let device = file.extents().device;
    let path = file.path().to_owned();
    let result = captured_by_others(control, id).map(|captured| Relation::of(device, &captured));
    let reason = match result {
        Ok(Relation::Separate) => return Ok(file),
        Ok(Relation::Overlaps(captured) | Relation::Above(captured)) => Err(Error::Storage {
            path,
            reason: format!(
                "it was allocated on {}, which another snapshot holds as it was before: its blocks may show there as \
                 those of files deleted since; choose another file system, or reserve the storage before",
                captured.path().display()
            ),
        }),
        Err(error) => Err(error),
    };
    // The error that led here says more than a second one would.
    let _ = file.remove();
    reason
}

/// The devices of all other snapshots that were taken.
fn captured_by_others(control: &Control, id: SnapshotId) -> Result<Vec<DevId>> {
    let mut captured = Vec::new();
    for other in control
        .snapshots()?
        .into_iter()
        .filter(|&other| other != id)
    {
        match control.images(other) {
            Ok(images) => captured.extend(images.iter().map(|image| image.original)),
            // Not taken yet; or gone meanwhile.
            Err(error) if matches!(error.errno(), Some(Errno::NODEV | Errno::SRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(captured)
}

/// The block device that the file system of a directory is on.
fn device_of(dir: &Path) -> Result<DevId> {
    let meta = std::fs::metadata(dir).map_err(|source| look_at(dir, source))?;
    Ok(DevId::from_raw(meta.dev()))
}

/// Bytes that may still be allocated in a file system.
fn free_bytes(dir: &PathBuf) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).map_err(|errno| look_at(dir, errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn look_at(dir: &Path, source: std::io::Error) -> Error {
    Error::file("look at the place for storage,", dir, source)
}

/// How many bytes are allocated before the take, in whole MiB: the limit if there is one, but no
/// more than the devices, `captured` bytes together, can ever need. Without a limit a fifth of the
/// devices, or all of small ones, but no more than half of what is free.
fn reserve_size(limit: Option<u64>, captured: u64, free: u64) -> u64 {
    let most = captured.saturating_add(SLACK);
    let size = limit.unwrap_or_else(|| {
        let wanted = if captured <= LITTLE {
            most
        } else {
            LITTLE.max(captured / 5)
        };
        wanted.min(free / 2)
    });
    size.min(most) / MIB * MIB
}

/// How many bytes may be appended when so many are wanted: whole MiB up, none past the limit.
fn allowance(wanted: u64, given: u64, limit: Option<u64>) -> Option<u64> {
    let wanted = wanted.max(1).checked_next_multiple_of(MIB)?;
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(given)) / MIB * MIB;
    Some(wanted.min(left)).filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_reserved_is_enough_but_not_everything() {
        const GIB: u64 = 1 << 30;
        // Small devices: all that they can need; never more than half of what is free.
        assert_eq!(reserve_size(None, 100 * MIB, GIB), 116 * MIB);
        assert_eq!(reserve_size(None, GIB, 8 * GIB), GIB + SLACK);
        assert_eq!(reserve_size(None, GIB, 100 * MIB + 1), 50 * MIB);
        // Larger ones.
        assert_eq!(reserve_size(None, 3 * GIB, 8 * GIB), GIB);
        assert_eq!(reserve_size(None, 1000 * GIB, 800 * GIB), 200 * GIB);
        assert_eq!(reserve_size(None, 1000 * GIB, 100 * GIB), 50 * GIB);
        // A limit is taken as it is, up to what is of use.
        assert_eq!(reserve_size(Some(64 * MIB), GIB, 0), 64 * MIB);
        assert_eq!(reserve_size(Some(9 * GIB), GIB, 20 * GIB), GIB + SLACK);
        assert_eq!(reserve_size(Some(MIB - 1), GIB, GIB), 0);
        assert_eq!(reserve_size(None, u64::MAX, MIB), 0);
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let error = device_of(Path::new("/nonexistent/")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/"), "{error}");
    }
}
