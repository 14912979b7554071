// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files made to be difference storage, and removed after.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, flock, linkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::{Extents, extents_of, fixed};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::id::SnapshotId;

/// What is allocated of a file to see how it lies.
const FIRST: u64 = 1 << 20;

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

    /// What all paths begin with.
    pub fn prefix(&self) -> &Path {
        Path::new(&self.0)
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
///
/// It is locked (flock(2)) as long as this value lives: a file that is not has lost the process
/// that made it, which is how [`remove_stale`] knows it. It is immutable until it is removed, where
/// that is possible: the module writes to its blocks, and they must stay its own.
#[derive(Debug)]
pub struct StorageFile {
    /// Kept open, for the lock, and so that a file removed by somebody else while the snapshot is
    /// held keeps its space.
    file: File,
    path: PathBuf,
    extents: Extents,
    /// Why it could not be made immutable.
    changeable: Option<Errno>,
}

impl StorageFile {
    /// Makes a file of `size` bytes, with all its space allocated, at a path where nothing is yet.
    ///
    /// The file gets its name when it is complete and locked. So nothing is left behind when this
    /// fails, or when the process is killed in the midst of it, and whoever finds a file that is
    /// not locked knows that it has no owner.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let failed = |action| move |errno: Errno| Error::file(action, path, errno);
        let file = unnamed(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(failed("lock the storage file"))?;
        let allocate = |size| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size).map_err(|errno| match errno {
                Errno::OPNOTSUPP => Error::Storage {
                    path: path.to_owned(),
                    reason: "its file system cannot allocate space for a file, as ext4 and xfs can (ext2 and ext3 \
                             cannot)"
                        .into(),
                },
                errno => failed("allocate space for the storage file")(errno),
            })
        };
        // A little tells whether the file system is of use: not all of it is filled for nothing.
        if size > FIRST {
            allocate(FIRST)?;
            extents_of(&file, path)?;
        }
        allocate(size)?;
        let extents = extents_of(&file, path)?;
        // Not by its name in /proc, which an initramfs may not have.
        linkat(&file, "", CWD, path, AtFlags::EMPTY_PATH)
            .map_err(failed("create the storage file"))?;
        // Only now: an immutable file cannot get a name.
        let changeable = fixed::set(&file, true).err();
        Ok(Self {
            file,
            path: path.to_owned(),
            extents,
            changeable,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it lies.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Why the file can be changed, moved and removed by others; `None` if it was made immutable.
    pub fn changeable(&self) -> Option<Errno> {
        self.changeable
    }

    /// Lets others change the file, for when it has to stay and nobody will be there to
    /// [remove](Self::remove) it. It is up to them not to do so while the snapshot is held.
    pub fn make_changeable(&self) -> Result<()> {
        if self.changeable.is_some() {
            return Ok(());
        }
        fixed::set(&self.file, false)
            .map_err(|errno| Error::file("undo `chattr +i` of", &self.path, errno))
    }

    /// Removes the file. The snapshot must no longer use it.
    pub fn remove(self) -> Result<()> {
        self.make_changeable()?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove the storage file", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Opens a file without a name on the file system of `path`.
fn unnamed(path: &Path) -> Result<File> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(dir);
    opened.map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::OPNOTSUPP | Errno::ISDIR) => Error::Storage {
            path: path.to_owned(),
            reason: "its file system has no unnamed files (O_TMPFILE), as ext4 and xfs have".into(),
        },
        _ => Error::file("create the storage file", path, source),
    })
}

/// Cleans up after processes that were killed: destroys the snapshots they left, and removes their
/// files at this place, which are those that nobody has locked. Gives the paths of the files.
///
/// A snapshot whose session lives is not touched, in whatever process that is.
pub fn remove_stale(place: &Place, control: &Control) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (id, files) in stale(place) {
        // The module may write to the files until then.
        control.snapshot_end(id)?;
        for (path, file) in files {
            // Whether this was needed, and has worked, is seen by removing it.
            let _ = fixed::set(&file, false);
            if fs::remove_file(&path).is_ok() {
                removed.push(path);
            }
        }
    }
    Ok(removed)
}

/// The snapshots whose sessions have died, with their files, which are locked now.
fn stale(place: &Place) -> BTreeMap<SnapshotId, Vec<(PathBuf, File)>> {
    let (dir, begin) = place.split();
    let mut stale: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut owned = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(id) = owner(&entry.file_name(), &begin) else {
            continue;
        };
        let Some(file) = open_own(&path) else {
            continue;
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => stale.entry(id).or_default().push((path, file)),
            Err(_) => {
                owned.insert(id);
            }
        }
    }
    stale.retain(|id, _| !owned.contains(id));
    stale
}

/// Opens a regular file that belongs to this user: in a directory like `/var/tmp`, nobody else
/// shall end a snapshot by making a file with its name.
fn open_own(path: &Path) -> Option<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits() as i32);
    let file = options.open(path).ok()?;
    let meta = file.metadata().ok()?;
    (meta.is_file() && meta.uid() == geteuid().as_raw()).then_some(file)
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
    fn only_files_that_nobody_has_locked_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path());
        let dead: SnapshotId = ID.parse().unwrap();
        let alive = SnapshotId(uuid::Uuid::from_u128(7));
        for id in [dead, alive] {
            fs::write(place.file(id, 0), "").unwrap();
            fs::write(place.file(id, 1), "").unwrap();
        }
        for name in ["blksnap-x-0.storage", "precious", "blksnap-.storage"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("precious", place.file(SnapshotId(uuid::Uuid::nil()), 0))
            .unwrap();
        // Locked as a live session has it; one file is enough to know.
        let lock = File::open(place.file(alive, 1)).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        let names = |files: &Vec<(PathBuf, File)>| {
            let paths = files.iter().map(|(path, _)| path.clone());
            paths.collect::<BTreeSet<_>>()
        };
        let found = stale(&place);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&dead]);
        let expected = BTreeSet::from([place.file(dead, 0), place.file(dead, 1)]);
        assert_eq!(names(&found[&dead]), expected);
        // Whoever cleans up holds the locks: no second one does the same.
        assert!(stale(&place).is_empty());
        drop((found, lock));
        assert_eq!(stale(&place).len(), 2);
    }

    #[test]
    fn a_file_is_immutable_until_it_is_removed() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("x");
        let Ok(file) = StorageFile::create(&path, 1 << 20) else {
            eprintln!("no place for difference storage here");
            return;
        };
        if let Some(errno) = file.changeable() {
            eprintln!("not allowed here: {errno}");
        } else {
            assert!(fs::remove_file(&path).is_err());
            assert!(OpenOptions::new().write(true).open(&path).is_err());
        }
        file.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        // More than any file system holds.
        assert!(StorageFile::create(&path, 1 << 62).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
