// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a session's difference storage comes from.
//!
//! On a device that is captured, all of it is allocated before the take: see
//! [`storage`](crate::storage#storage-on-a-captured-device). Elsewhere a file is made for each
//! portion when it is asked for.

use rustix::io::Errno;

use super::SessionOptions;
use super::sizes::{
    MIB, device_of, explained, free_bytes, is_captured, most, reserve_size, too_large_blocks,
    too_little,
};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::state::{self, SnapshotState};
use crate::storage::{Extents, Portions, StorageFile};
use crate::topology::Relation;

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
        let captured = is_captured(device, &dir, devices)?;
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
    // Those of the other interface are in its list only, and here.
    for other in state::snapshots().into_iter().filter(|&other| other != id) {
        let state = SnapshotState::read(other);
        if state.phase() != Some("created") {
            captured.extend(state.originals());
        }
    }
    Ok(captured)
}

/// How large a portion is where so much is free: what is wanted, or half of what is free; 1 MiB at
/// least, to say what is missing.
fn portion(wanted: u64, free: u64) -> u64 {
    wanted.min((free / 2 / MIB * MIB).max(MIB))
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
    }
}
