// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files made to be difference storage, and removed after.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::{Extents, extents_of};
use crate::error::{Error, Result};
use crate::id::SnapshotId;

/// What the names of our files end in.
const SUFFIX: &str = ".storage";

/// Where files for difference storage are made: the beginning of their paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(OsString);

impl Place {
    /// In a directory; or, if `path` is none, with names that begin so.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut prefix = path.as_os_str().to_owned();
        if path.is_dir() && !prefix.as_bytes().ends_with(b"/") {
            prefix.push("/");
        }
        Self(prefix)
    }

    /// The path of the file number `index` of a snapshot.
    pub fn file(&self, id: SnapshotId, index: u32) -> PathBuf {
        self.with(&format!("blksnap-{id}-{index}{SUFFIX}"))
    }

    /// The path that begins here and ends so.
    pub fn with(&self, end: &str) -> PathBuf {
        let mut path = self.0.clone();
        path.push(end);
        path.into()
    }

    /// The directory that the files are made in.
    pub fn directory(&self) -> PathBuf {
        self.split().0
    }

    /// The directory, and the beginning of the names in it.
    fn split(&self) -> (PathBuf, OsString) {
        let bytes = self.0.as_bytes();
        let cut = bytes
            .iter()
            .rposition(|&byte| byte == b'/')
            .map(|at| at + 1);
        let (dir, name) = bytes.split_at(cut.unwrap_or(0));
        let dir = if dir.is_empty() { b"./" } else { dir };
        (
            OsStr::from_bytes(dir).into(),
            OsStr::from_bytes(name).into(),
        )
    }
}

/// A file that was made to be difference storage. It stays when this value is dropped: see
/// [`StorageFile::remove`].
#[derive(Debug)]
pub struct StorageFile {
    /// Kept open, so that a file removed by somebody else while the snapshot is held keeps its
    /// space.
    _file: File,
    path: PathBuf,
    extents: Extents,
}

impl StorageFile {
    /// Makes a file of `size` bytes, with all its space allocated, at a path where nothing is yet.
    ///
    /// Leaves no file behind when it fails.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| Error::file("create the storage file", path, source))?;
        let made = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)
            .map_err(|errno| Error::file("allocate space for the storage file", path, errno))
            .and_then(|()| extents_of(&file, path));
        match made {
            Ok(extents) => Ok(Self {
                _file: file,
                path: path.to_owned(),
                extents,
            }),
            Err(error) => {
                // The error that led here says more than a second one would.
                let _ = fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it lies.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Removes the file. The snapshot must no longer use it.
    pub fn remove(self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove the storage file", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Removes the files that processes which were killed left at this place: those of snapshots that
/// are not alive. Gives their paths.
///
/// `alive` is asked after the files were found: a snapshot exists before its files do, so none that
/// is alive then is missed.
pub fn remove_stale(
    place: &Place,
    alive: impl FnOnce() -> Result<Vec<SnapshotId>>,
) -> Result<Vec<PathBuf>> {
    let (dir, begin) = place.split();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| Some((owner(&entry.file_name(), &begin)?, entry.path())))
        .collect();
    let alive = alive()?;
    let stale = found.into_iter().filter(|(id, _)| !alive.contains(id));
    Ok(stale
        .map(|(_, path)| path)
        .filter(|path| fs::remove_file(path).is_ok())
        .collect())
}

/// The snapshot that a file belongs to, told by its name.
fn owner(name: &OsStr, begin: &OsStr) -> Option<SnapshotId> {
    let rest = name.as_bytes().strip_prefix(begin.as_bytes())?;
    let rest = std::str::from_utf8(rest).ok()?;
    let rest = rest.strip_prefix("blksnap-")?.strip_suffix(SUFFIX)?;
    let (id, index) = rest.rsplit_once('-')?;
    index.parse::<u32>().ok()?;
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233-4455-4677-8899-aabbccddeeff";

    #[test]
    fn a_place_is_a_directory_or_a_prefix() {
        let id: SnapshotId = ID.parse().unwrap();
        let name = format!("blksnap-{ID}-3.storage");
        assert_eq!(
            Place::new("/tmp").file(id, 3),
            Path::new("/tmp").join(&name)
        );
        assert_eq!(
            Place::new("/tmp/x-").file(id, 3),
            Path::new(&format!("/tmp/x-{name}"))
        );
        assert_eq!(Place::new("x-").split(), ("./".into(), "x-".into()));
        assert_eq!(Place::new("/tmp/x-").split(), ("/tmp/".into(), "x-".into()));
    }

    #[test]
    fn only_files_of_dead_snapshots_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path());
        let dead: SnapshotId = ID.parse().unwrap();
        let alive = SnapshotId(uuid::Uuid::from_u128(7));
        for id in [dead, alive] {
            fs::write(place.file(id, 0), "").unwrap();
        }
        let others = ["blksnap-x-0.storage", "precious", "blksnap-.storage"];
        for name in others {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let removed = remove_stale(&place, || Ok(vec![alive])).unwrap();
        assert_eq!(removed, [place.file(dead, 0)]);
        assert!(place.file(alive, 0).exists());
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn a_failed_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        // More than any file system holds.
        assert!(StorageFile::create(&path, 1 << 62).is_err());
        assert!(!path.exists());
    }
}
