// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which process holds a snapshot, and whether it still lives.
//!
//! The module does not know: a snapshot belongs to nobody. So a [`Session`](crate::Session) has a
//! file in `/run/blksnap` with the id of its snapshot, locked (flock(2)) as long as its process
//! lives. Of a snapshot that was made in another way, nothing is known.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::control::Control;
use crate::id::SnapshotId;
use crate::storage::Place;
use crate::v2;

/// Where the files are. Gone after a reboot, as the snapshots are.
const DIRECTORY: &str = "/run/blksnap";

/// The process that made a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Whether it lives, or a process that it has made by fork(2) alone.
    pub alive: bool,
    /// What the paths of its difference files begin with.
    pub storage: PathBuf,
}

impl Owner {
    /// That of a snapshot; `None` if it is not known.
    pub fn of(id: SnapshotId) -> Option<Self> {
        Self::find(Path::new(DIRECTORY), id)
    }

    fn find(directory: &Path, id: SnapshotId) -> Option<Self> {
        let mut file = File::open(directory.join(id.to_string())).ok()?;
        let alive = !is_free(&file);
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let (pid, storage) = text.split_at(text.iter().position(|&byte| byte == b' ')?);
        Some(Self {
            pid: std::str::from_utf8(pid).ok()?.parse().ok()?,
            alive,
            storage: OsStr::from_bytes(&storage[1..]).into(),
        })
    }
}

/// Whether nobody has locked a file; shared, so that those who ask do not see each other.
fn is_free(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockShared).is_ok()
}

/// Says that this process holds a snapshot, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: File,
    path: PathBuf,
}

impl Claim {
    /// Where this cannot be said (there may be no `/run`), the owner is not known, and nothing
    /// else is different.
    pub(crate) fn new(id: SnapshotId, place: &Place) -> Option<Self> {
        Self::make(Path::new(DIRECTORY), id, place).ok()
    }

    fn make(directory: &Path, id: SnapshotId, place: &Place) -> io::Result<Self> {
        if !directory.exists() {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        let path = directory.join(id.to_string());
        // It gets its name when it is locked: nobody sees it without its owner.
        let new = directory.join(format!(".{id}"));
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let prefix = std::path::absolute(place.prefix())?;
        write!(file, "{} ", std::process::id())?;
        file.write_all(prefix.as_os_str().as_bytes())?;
        fs::rename(&new, &path)?;
        Ok(Self { _lock: file, path })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what killed processes have left of snapshots that are no more.
pub(crate) fn forget_ended() -> crate::Result<()> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let claims: Vec<_> = entries
        .filter_map(|entry| {
            let id: SnapshotId = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry.path()))
        })
        .collect();
    // Asked for after the names were read, and so without those that are just made.
    let snapshots = snapshots()?;
    for (id, path) in claims {
        if !snapshots.contains(&id) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// The snapshots of both interfaces, as far as the module has them.
fn snapshots() -> crate::Result<Vec<SnapshotId>> {
    let mut snapshots = match Control::open_if_there()? {
        Some(control) => control.snapshots()?,
        None => Vec::new(),
    };
    if let Some(control) = v2::Control::open_if_there()? {
        snapshots.extend(control.snapshots()?);
    }
    Ok(snapshots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_known_alive_and_after_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("run");
        let id = SnapshotId(uuid::Uuid::from_u128(7));
        assert_eq!(Owner::find(&directory, id), None);
        let place = Place::new("/nonexistent/my place-");
        let claim = Claim::make(&directory, id, &place).unwrap();
        let owner = Owner::find(&directory, id).unwrap();
        assert_eq!(owner.pid, std::process::id());
        assert!(owner.alive);
        assert_eq!(owner.storage, Path::new("/nonexistent/my place-"));
        // As when the process was killed: the lock goes, the file stays.
        flock(&claim._lock, FlockOperation::Unlock).unwrap();
        assert!(!Owner::find(&directory, id).unwrap().alive);
        drop(claim);
        assert_eq!(Owner::find(&directory, id), None);
    }
}
