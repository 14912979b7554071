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
        /// Bytes that are of use: more than the devices have is not.
        most: u64,
    },
    /// One file that was made before the take.
    Reserve {
        /// What was not given yet.
        left: Portions,
        /// Bytes there were.
        size: u64,
        /// Bytes that are of use.
        most: u64,
    },
}

/// Why a device cannot be storage of these: what is read from their images, in their blocks, could
/// not be read from there.
fn too_large_blocks(storage: DevId, devices: &[DevId]) -> Option<String> {
    let block = storage.block_size()?;
    let smaller =
        |&device: &DevId| Some((device, device.block_size()?)).filter(|one| one.1 < block);
    let (device, size) = devices.iter().find_map(smaller)?;
    Some(format!(
        "the blocks of {}, where it lies, have {block} bytes, and those of {} only {size}: choose a file system on a \
         device whose blocks are no larger",
        storage.describe(),
        device.describe()
    ))
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
        if let Some(reason) = too_large_blocks(device, devices) {
            return Err(Error::Storage { path: dir, reason });
        }
        let total = devices.iter().filter_map(|device| device.size()).sum();
        if !captured && !options.reserve {
            let files = Self::Files {
                next: 0,
                made: 0,
                most: most(total),
            };
            return Ok((files, None));
        }
        let size = reserve_size(options.limit, total, free_bytes(&dir)?);
        let path = options.place.file(id, 0);
        if size == 0 {
            return Err(Error::Storage {
                path,
                reason: too_little(options.limit).unwrap_or_else(|| {
                    "there is no space left for it (at least 1 MiB is needed)".into()
                }),
            });
        }
        let file = StorageFile::create(&path, size).map_err(|error| {
            explained(error, &path, &dir, |free| {
                format!(
                    "all of its {} MiB is allocated before the take, and {free} MiB are free there: give a smaller \
                     --limit, or choose another file system by --storage",
                    size / MIB
                )
            })
        })?;
        let file = safe(control, id, file)?;
        let left = Portions::new(file.extents().clone());
        Ok((
            Self::Reserve {
                left,
                size,
                most: most(total),
            },
            Some(file),
        ))
    }

    /// Gives storage of about the size wanted; `None` if more than was given is of no use.
    pub(super) fn next(
        &mut self,
        control: &Control,
        id: SnapshotId,
        wanted: u64,
        options: &SessionOptions,
    ) -> Result<Option<Given>> {
        match self {
            Self::Reserve { left, size, most } => match left.next(wanted) {
                Some(extents) => Ok(Some(Given {
                    extents,
                    file: None,
                    owed: 0,
                })),
                None if *size >= *most / MIB * MIB => Ok(None),
                None => Err(Error::Storage {
                    path: options.place.file(id, 0),
                    reason: format!(
                        "the {} MiB that were reserved before the take are all given, and no space may be added on a \
                         captured file system: set a higher limit, or choose another file system",
                        *size / MIB
                    ),
                }),
            },
            Self::Files { next, made, most } => {
                let path = options.place.file(id, *next);
                let dir = options.place.directory();
                let limit = options.limit.filter(|limit| limit < most);
                let Some(wanted) = allowance(wanted, *made, Some(limit.unwrap_or(*most))) else {
                    let Some(limit) = limit else {
                        return Ok(None);
                    };
                    let reason = too_little(Some(limit))
                        .unwrap_or_else(|| format!("the limit of {} MiB is reached", limit / MIB));
                    return Err(Error::Storage { path, reason });
                };
                let size = portion(wanted, free_bytes(&dir)?);
                *next += 1;
                let file = StorageFile::create(&path, size).map_err(|error| {
                    explained(error, &path, &dir, |free| {
                        format!(
                            "{} MiB more are needed, and {free} MiB are free there ({} MiB were given before): free \
                             some space, choose another file system by --storage, or set a --limit",
                            wanted / MIB,
                            *made / MIB
                        )
                    })
                })?;
                let file = safe(control, id, file)?;
                *made += size;
                Ok(Some(Given {
                    extents: file.extents().clone(),
                    file: Some(file),
                    owed: wanted - size,
                }))
            }
        }
    }
}

/// A portion of storage.
pub(super) struct Given {
    /// Where it is.
    pub(super) extents: Extents,
    /// The file that was made for it.
    pub(super) file: Option<StorageFile>,
    /// Bytes that were asked for and are not given yet, as little is free. The module does not ask
    /// again before it has all, so they follow when what there is fills up.
    pub(super) owed: u64,
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

/// Says of a lack of space how much there is; `why` is told the MiB.
fn explained(error: Error, path: &Path, dir: &PathBuf, why: impl Fn(u64) -> String) -> Error {
    match error {
        Error::File { cause, .. } if Errno::from_io_error(&cause) == Some(Errno::NOSPC) => {
            Error::Storage {
                path: path.to_owned(),
                reason: why(free_bytes(dir).unwrap_or(0) / MIB),
            }
        }
        error => error,
    }
}

/// What is wrong with a limit that gives nothing.
fn too_little(limit: Option<u64>) -> Option<String> {
    let limit = limit.filter(|&limit| limit < MIB)?;
    Some(format!(
        "the limit of {limit} bytes is less than 1 MiB, and no less is given"
    ))
}

/// The most that devices of so many bytes together can ever need.
fn most(captured: u64) -> u64 {
    captured.saturating_add(SLACK)
}

/// How large a portion is where so much is free: what is wanted, or half of what is free; 1 MiB at
/// least, to say what is missing.
fn portion(wanted: u64, free: u64) -> u64 {
    wanted.min((free / 2 / MIB * MIB).max(MIB))
}

fn look_at(dir: &Path, source: std::io::Error) -> Error {
    Error::file("look at the place for storage,", dir, source)
}

/// How many bytes are allocated before the take, in whole MiB: the limit if there is one, but no
/// more than the devices, `captured` bytes together, can ever need. Without a limit a fifth of the
/// devices, or all of small ones, but no more than half of what is free.
fn reserve_size(limit: Option<u64>, captured: u64, free: u64) -> u64 {
    let most = most(captured);
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
    fn a_portion_is_no_larger_than_of_use() {
        const GIB: u64 = 1 << 30;
        // 2 GiB are asked for, for a device of 32 MiB.
        let limit = Some(most(32 * MIB));
        assert_eq!(allowance(2 * GIB, 0, limit), Some(48 * MIB));
        assert_eq!(allowance(2 * GIB, 48 * MIB, limit), None);
        assert_eq!(most(u64::MAX), u64::MAX);
        assert_eq!(portion(2 * GIB, 100 * GIB), 2 * GIB);
        assert_eq!(portion(2 * GIB, GIB), GIB / 2);
        assert_eq!(portion(2 * GIB, MIB), MIB);
        assert_eq!(portion(2 * GIB, 0), MIB);
        assert!(too_little(Some(4096)).unwrap().contains("4096 bytes"));
        assert_eq!(too_little(Some(MIB)), None);
        assert_eq!(too_little(None), None);
    }

    #[test]
    fn a_lack_of_space_is_told_with_numbers() {
        let dir = PathBuf::from("/");
        let full = Error::file("allocate", Path::new("/x"), Errno::NOSPC);
        let told = explained(full, Path::new("/x"), &dir, |free| {
            format!("{free} MiB are free")
        });
        assert!(told.to_string().contains(" MiB are free"), "{told}");
        let other = Error::file("allocate", Path::new("/x"), Errno::IO);
        let told = explained(other, Path::new("/x"), &dir, |_| "wrong".into());
        assert!(!told.to_string().contains("wrong"), "{told}");
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
