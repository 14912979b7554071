// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much difference storage there may be, and what the place for it allows.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::id::DevId;
use crate::topology::Relation;

pub(super) const MIB: u64 = 1 << 20;
/// Captured devices that are no larger than this together get storage for all their blocks, if
/// nothing else is said.
const LITTLE: u64 = 1 << 30;
/// What a device may need beside its own size: ends of ranges that are not used.
pub(super) const SLACK: u64 = 16 << 20;

/// Why a device cannot be storage of these: what is read from their images, in their blocks, could
/// not be read from there.
pub(super) fn too_large_blocks(storage: DevId, devices: &[DevId]) -> Option<String> {
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

/// The block device that the file system of a directory is on.
pub(super) fn device_of(dir: &Path) -> Result<DevId> {
    let meta = std::fs::metadata(dir).map_err(|source| look_at(dir, source))?;
    Ok(DevId::from_raw(meta.dev()))
}

/// Whether storage on a device would be on one of these itself. Fails if it is built on one.
pub(super) fn is_captured(under: DevId, dir: &Path, devices: &[DevId]) -> Result<bool> {
    match Relation::of(under, devices) {
        Relation::Separate => Ok(false),
        Relation::Overlaps(_) => Ok(true),
        Relation::Above(lower) => Err(Error::Storage {
            path: dir.to_owned(),
            reason: format!(
                "it is on {}, which is built on the captured {}: each copy stored there would have to be copied \
                 itself; choose another file system",
                under.path().display(),
                lower.path().display()
            ),
        }),
    }
}

/// Bytes that may still be allocated in a file system.
pub(super) fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(dir).map_err(|errno| look_at(dir, errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Says of a lack of space how much there is; `why` is told the MiB.
pub(super) fn explained(
    error: Error,
    path: &Path,
    dir: &Path,
    why: impl Fn(u64) -> String,
) -> Error {
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
pub(super) fn too_little(limit: Option<u64>) -> Option<String> {
    let limit = limit.filter(|&limit| limit < MIB)?;
    Some(format!(
        "the limit of {limit} bytes is less than 1 MiB, and no less is given"
    ))
}

/// The most that devices of so many bytes together can ever need.
pub(super) fn most(captured: u64) -> u64 {
    captured.saturating_add(SLACK)
}

fn look_at(dir: &Path, source: std::io::Error) -> Error {
    Error::file("look at the place for storage,", dir, source)
}

/// How many bytes are allocated before the take, in whole MiB: the limit if there is one, but no
/// more than the devices, `captured` bytes together, can ever need. Without a limit a fifth of the
/// devices, or all of small ones, but no more than half of what is free.
pub(super) fn reserve_size(limit: Option<u64>, captured: u64, free: u64) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_space_is_told_with_numbers() {
        let dir = Path::new("/");
        let full = Error::file("allocate", Path::new("/x"), Errno::NOSPC);
        let told = explained(full, Path::new("/x"), dir, |free| {
            format!("{free} MiB are free")
        });
        assert!(told.to_string().contains(" MiB are free"), "{told}");
        let other = Error::file("allocate", Path::new("/x"), Errno::IO);
        let told = explained(other, Path::new("/x"), dir, |_| "wrong".into());
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
        assert_eq!(most(u64::MAX), u64::MAX);
        assert!(too_little(Some(4096)).unwrap().contains("4096 bytes"));
        assert_eq!(too_little(Some(MIB)), None);
        assert_eq!(too_little(None), None);
    }

    #[test]
    fn a_place_that_is_not_there_is_named() {
        let error = device_of(Path::new("/nonexistent/")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/"), "{error}");
    }
}
