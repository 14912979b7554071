// SPDX-License-Identifier: GPL-2.0-or-later

//! A directory of backups.
//!
//! ```text
//! DIR/
//!   20261124T201629Z-0a1b2c3d/     a backup: the time of it (UTC), the beginning of the snapshot's id
//!     manifest.json                see [`manifest`](crate::manifest)
//!     vda.raw                      see [`format`](crate::format)
//!     vda.extents.jsonl            see [`extents`](crate::extents)
//!   .partial-…/                    one being made or removed
//!   .lock, .readers                held by who changes DIR, and by who reads from it
//!   .failed, .verified             what is noted for who monitors it
//! ```
//!
//! A backup comes and goes by the rename of its directory, so it is there whole or not at all; what
//! an interrupted program has left is removed by the next one that holds the lock. The names of
//! backups are in the order of their making, also if the clock was turned back.

mod draft;
mod lock;
mod notes;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};
use uuid::Uuid;

use crate::manifest::{self, Manifest, State};
use crate::private;
pub use draft::Draft;
use lock::{is_held, is_readonly, lock};
pub use notes::{Failed, Verified, unix_s};

/// The lock of who changes a directory of backups, by which it is known to be one.
const LOCK: &str = ".lock";
/// What directories that are no backups begin with.
pub const PARTIAL: &str = ".partial-";
/// The first part of the name of a backup.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");
/// Characters in the name of a backup.
const ID_LENGTH: usize = 16 + 1 + 8;

/// A directory of backups, locked.
pub struct Repository {
    path: PathBuf,
    _locks: Vec<File>,
}

impl Repository {
    /// Makes a directory one of backups, if it is none yet.
    pub fn create(path: &Path) -> Result<Self> {
        private::create_dir_all(path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        Self::locked(path)
    }

    /// To add a backup. The directory must be one of backups: where the disk for them is not mounted
    /// there is none, and a copy of everything in its place would fill another disk.
    pub fn add(path: &Path) -> Result<Self> {
        Self::ensure(path)?;
        Self::locked(path)
    }

    fn locked(path: &Path) -> Result<Self> {
        let locks = vec![lock(path, LOCK, true)?];
        let repository = Self::at(path, locks)?;
        repository.sweep()?;
        Ok(repository)
    }

    /// Whether a directory is one of backups: it was made one, or has some (copied without what
    /// begins with a dot).
    pub fn is_one(path: &Path) -> bool {
        let is_backup = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_str().is_some_and(is_id) && entry.path().join(manifest::NAME).exists()
        };
        path.join(LOCK).exists()
            || fs::read_dir(path).is_ok_and(|entries| entries.flatten().any(is_backup))
    }

    /// Fails if a directory is not one of backups.
    fn ensure(path: &Path) -> Result<()> {
        ensure!(
            Self::is_one(path),
            "{0} is no directory of backups; if the disk for it is mounted, `blksnap init {0}` makes it one",
            path.display()
        );
        Ok(())
    }

    /// To change or remove backups.
    pub fn change(path: &Path) -> Result<Self> {
        Self::ensure(path)?;
        let locks = vec![lock(path, LOCK, true)?, lock(path, ".readers", true)?];
        let repository = Self::at(path, locks)?;
        repository.sweep()?;
        Ok(repository)
    }

    /// To read from backups. `path` is the directory of them all, or of one, whose name is given
    /// then.
    pub fn read(path: &Path) -> Result<(Self, Option<String>)> {
        let path = path
            .canonicalize()
            .with_context(|| format!("there is no backup {}", path.display()))?;
        let (dir, id) = match (
            path.parent(),
            path.file_name().and_then(|name| name.to_str()),
        ) {
            (Some(parent), Some(name)) if is_id(name) => (parent, Some(name.to_owned())),
            _ => (&*path, None),
        };
        Self::ensure(dir)?;
        // Where nothing can be written, nothing can change either.
        let locks = match lock(dir, ".readers", false) {
            Err(error) if is_readonly(&error) => Vec::new(),
            locked => vec![locked?],
        };
        Ok((Self::at(dir, locks)?, id))
    }

    /// Whether somebody makes a backup in a directory now, or prunes it.
    pub fn is_being_changed(path: &Path) -> bool {
        is_held(&path.join(LOCK))
    }

    /// When the newest backup was made, as its name says, which is known without a lock.
    pub fn last_time(path: &Path) -> Result<Option<SystemTime>> {
        let unlocked = Self::at(path, Vec::new())?;
        let last = unlocked.ids()?.pop();
        let time = |id: String| {
            let time = PrimitiveDateTime::parse(&id[..16], TIME).context(id.clone())?;
            Ok(time.assume_utc().into())
        };
        last.map(time).transpose()
    }

    fn at(path: &Path, locks: Vec<File>) -> Result<Self> {
        ensure!(path.is_dir(), "{} is no directory", path.display());
        Ok(Self {
            path: path.to_owned(),
            _locks: locks,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a backup.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// A file that others can read: older programs have made such.
    pub fn open_to_others(&self) -> Result<Option<String>> {
        if !private::is_open(&self.path) {
            return Ok(None);
        }
        for id in self.ids()? {
            let dir = self.dir(&id);
            let files = fs::read_dir(&dir).into_iter().flatten().flatten();
            let open = |entry: &fs::DirEntry| private::is_open(&entry.path());
            if let (true, Some(file)) = (private::is_open(&dir), files.into_iter().find(open)) {
                return Ok(Some(file.path().display().to_string()));
            }
        }
        Ok(None)
    }

    /// All directories of backups, the oldest first.
    pub fn ids(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        Ok(names.into_iter().filter(|name| is_id(name)).collect())
    }

    /// What interrupted programs have left.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| name.starts_with(PARTIAL));
        Ok(names)
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = || format!("cannot read the directory {}", self.path.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).with_context(failed)? {
            let name = entry.with_context(failed)?.file_name();
            names.extend(name.into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// The manifest of a backup.
    pub fn manifest(&self, id: &str) -> Result<Manifest> {
        Manifest::read(&self.dir(id))
    }

    /// The same; `None` if that is damaged. So who asks what a backup needs can't take one that could not be read
    /// for one that needs nothing.
    pub fn whole_manifest(&self, id: &str) -> Result<Option<Manifest>> {
        match self.manifest(id) {
            Err(error) if Manifest::is_damage(&error) => Ok(None),
            read => read.map(Some),
        }
    }

    /// All backups, or why they are none, the oldest first; without those that were dropped.
    pub fn backups(&self) -> Result<Vec<(String, Result<Manifest>)>> {
        let all = self.ids()?.into_iter().map(|id| {
            let manifest = self.manifest(&id);
            (id, manifest)
        });
        Ok(all
            .filter(|(_, read)| !matches!(read, Ok(one) if one.state == State::Dropped))
            .collect())
    }

    /// The newest backup, if there is one.
    pub fn newest(&self) -> Result<Option<Manifest>> {
        match self.backups()?.pop() {
            Some((id, manifest)) => manifest
                .with_context(|| {
                    format!(
                        "the newest backup in {}, {id}, is damaged",
                        self.path.display()
                    )
                })
                .map(Some),
            None => Ok(None),
        }
    }

    /// The backup that is asked for: the one named, or the newest.
    pub fn find(&self, id: Option<&str>) -> Result<Manifest> {
        let manifest = match id {
            Some(id) => self.manifest(id)?,
            None => self
                .newest()
                .context("name an older one to use that")?
                .with_context(|| format!("there is no backup in {}", self.path.display()))?,
        };
        if manifest.state == State::Dropped {
            bail!("{} was dropped by `blksnap prune`", manifest.id);
        }
        Ok(manifest)
    }

    /// A name for a new backup, greater than all that are there.
    pub fn next_id(&self, taken: SystemTime, snapshot: Uuid) -> Result<String> {
        let mut time = OffsetDateTime::from(taken);
        if let Some(last) = self.ids()?.last() {
            let parsed = PrimitiveDateTime::parse(&last[..16], TIME).context(last.clone())?;
            let next = parsed.assume_utc().checked_add(Duration::SECOND);
            let next = next.with_context(|| {
                let path = self.path.display();
                format!("there is no name for a backup in {path} that comes after {last}: remove that directory")
            });
            time = time.max(next?);
        }
        name_of(time.into(), snapshot)
    }

    /// Makes renames and removals durable.
    pub fn sync(&self) -> Result<()> {
        sync_dir(&self.path)
    }

    /// Removes a backup, all at once.
    pub fn remove(&self, id: &str) -> Result<()> {
        let gone = self.path.join(format!("{PARTIAL}{id}"));
        fs::rename(self.dir(id), &gone).with_context(|| format!("cannot remove {id}"))?;
        self.sync()?;
        fs::remove_dir_all(&gone).with_context(|| format!("cannot remove {}", gone.display()))
    }

    /// Removes what interrupted programs have left.
    pub fn sweep(&self) -> Result<()> {
        for name in self.leftovers()? {
            let path = self.path.join(name);
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        // In a backup, files with a dot are those that a prune had not finished.
        for id in self.ids()? {
            for entry in fs::read_dir(self.dir(&id)).into_iter().flatten().flatten() {
                let path = entry.path();
                // A directory is of somebody else: storage shows its snapshots in such.
                let part = entry.file_name().as_encoded_bytes().starts_with(b".")
                    && !entry.file_type().is_ok_and(|kind| kind.is_dir());
                match part.then(|| fs::remove_file(&path)) {
                    Some(Err(error)) if error.kind() != ErrorKind::NotFound => {
                        return Err(error)
                            .with_context(|| format!("cannot remove {}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The name that says when a snapshot was taken, and which it is.
pub fn name_of(taken: SystemTime, snapshot: Uuid) -> Result<String> {
    let time = OffsetDateTime::from(taken).format(TIME);
    let time = time.context("cannot write the time")?;
    let snapshot = snapshot.simple().to_string();
    Ok(format!("{time}-{}", &snapshot[..8]))
}

/// Makes changes of a directory durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot write back {}", path.display()))
}

/// Whether a name is that of a backup.
pub fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH
        && name.is_ascii()
        && PrimitiveDateTime::parse(&name[..16], TIME).is_ok()
        && name.as_bytes()[16] == b'-'
        && name[17..].bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::testing::device;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !matches!(name.as_str(), ".lock" | ".readers"))
            .collect();
        names.sort();
        names
    }

    fn seconds(count: u64) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_secs(count)
    }

    #[test]
    fn a_backup_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(dir.path()).unwrap();
        let id = repository
            .next_id(seconds(0), Uuid::from_u128(1 << 100))
            .unwrap();
        assert_eq!(id, "19700101T000000Z-00000010");
        let draft = Draft::new(&repository, id.clone()).unwrap();
        fs::write(draft.path().join("vda.raw"), "x").unwrap();
        assert_eq!(repository.leftovers().unwrap().len(), 1);
        drop(draft);
        assert!(names(dir.path()).is_empty());

        let draft = Draft::new(&repository, id.clone()).unwrap();
        let manifest = Manifest::new(id.clone(), Uuid::nil(), [0, 0], vec![device("vda")]);
        draft.commit(&manifest).unwrap();
        assert_eq!(names(dir.path()), [&*id]);
        assert_eq!(repository.newest().unwrap(), Some(manifest.clone()));
        // The last name that there can be.
        let last = dir.path().join("99991231T235959Z-00000000");
        fs::create_dir(&last).unwrap();
        let error = repository.next_id(seconds(0), Uuid::nil()).unwrap_err();
        assert!(error.to_string().contains("remove that"), "{error}");
        fs::remove_dir(last).unwrap();
        // The clock may stand still, and be turned back.
        let next = repository.next_id(seconds(0), Uuid::nil()).unwrap();
        assert_eq!(next, "19700101T000001Z-00000000");
        assert!(is_id(&next));
        assert!(!is_id("19700101T000061Z-00000000"));

        let (same, found) = Repository::read(&dir.path().join(&id)).unwrap();
        assert_eq!(found.as_deref(), Some(&*id));
        assert_eq!(same.find(found.as_deref()).unwrap(), manifest);
        repository.remove(&id).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_directory_is_made_one_of_backups_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let refused = |path: &Path| {
            let error = Repository::add(path).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("is no directory of backups"), "{error}");
            assert!(error.contains("blksnap init /"), "{error}");
        };
        refused(&path);
        assert!(!path.exists());
        // The place where a disk would be mounted is there, and something else may be in it.
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("20261124T201629Z-00000001")).unwrap();
        refused(&path);
        let other = |result: Result<()>| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("is no directory of backups"), "{error}");
        };
        other(Repository::read(&path).map(|_| ()));
        other(Repository::change(&path).map(|_| ()));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "it is as it was");
        drop(Repository::create(&path).unwrap());
        drop(Repository::add(&path).unwrap());

        // A copy made without the lock.
        let store = crate::testing::Store::new(1 << 20);
        store.full(&vec![5; 1 << 20]);
        fs::remove_file(store.path().join(LOCK)).unwrap();
        Repository::add(store.path()).unwrap();
    }

    #[test]
    fn nobody_else_can_read_a_backup() {
        use std::os::unix::fs::PermissionsExt;
        let store = crate::testing::Store::new(1 << 20);
        let data = vec![5; 1 << 20];
        let full = store.full(&data);
        store.incremental(&full, &data, std::slice::from_ref(&(0..65536)));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let (repository, _) = Repository::read(store.path()).unwrap();
        for id in repository.ids().unwrap() {
            assert_eq!(mode(&repository.dir(&id)), 0o700);
            for entry in fs::read_dir(repository.dir(&id)).unwrap() {
                let path = entry.unwrap().path();
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
        for name in [".lock", ".readers"] {
            assert_eq!(mode(&store.path().join(name)), 0o600, "{name}");
        }
        // What older programs have made is told, unless nobody gets there.
        let allow = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let raw = repository.dir(&full).join("vda.raw");
        allow(store.path(), 0o755);
        assert_eq!(repository.open_to_others().unwrap(), None);
        allow(&raw, 0o644);
        assert_eq!(repository.open_to_others().unwrap(), None);
        allow(&repository.dir(&full), 0o755);
        let told = repository.open_to_others().unwrap();
        assert_eq!(told, Some(raw.display().to_string()));
        allow(store.path(), 0o700);
        assert_eq!(repository.open_to_others().unwrap(), None);
    }

    #[test]
    fn what_was_interrupted_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(".partial-20261124T201629Z-00000001");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("vda.raw"), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        Repository::create(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["other"]);
    }
}
