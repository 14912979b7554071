// SPDX-License-Identifier: GPL-2.0-or-later

//! The directory of a backup: files being made, made valid all at once, and replaced ones removed.
//!
//! A file being made has a name ending in `.partial`, and is removed when it does not come to be
//! part of the backup, by this process or by the next one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::copy::Zeros;
use crate::manifest::{self, Manifest};

/// The directory, locked against other backups.
pub struct Directory {
    path: PathBuf,
    /// Holds the lock.
    file: File,
}

impl Directory {
    /// Makes the directory if need be, locks it, and removes what an interrupted backup has left.
    pub fn lock(path: &Path) -> Result<Self> {
        let failed = |what| format!("cannot {what} the directory {}", path.display());
        fs::create_dir_all(path).with_context(|| failed("make"))?;
        let file = File::open(path).with_context(|| failed("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                bail!("another backup to {} is running", path.display())
            }
            locked => locked.with_context(|| failed("lock"))?,
        }
        for entry in fs::read_dir(path)
            .with_context(|| failed("read"))?
            .flatten()
        {
            let name = entry.file_name();
            let ours = |end: &[u8]| OsStr::as_bytes(&name).ends_with(end);
            if ours(b".raw.partial") || ours(b"manifest.json.partial") {
                fs::remove_file(entry.path()).with_context(|| failed("clean up"))?;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file of an earlier backup is there and has its size; or why it can't be
    /// continued.
    pub fn check(&self, old: &manifest::Device) -> Result<(), String> {
        match fs::metadata(self.path.join(&old.file)) {
            Err(error) => Err(format!("its file {}: {error}", old.file)),
            Ok(meta) if meta.len() != old.size => Err(format!(
                "its file {} has {} bytes in place of {}",
                old.file,
                meta.len(),
                old.size
            )),
            Ok(_) => Ok(()),
        }
    }

    /// A new file with only zeros.
    pub fn create(&self, entry: manifest::Device) -> Result<Draft> {
        let path = self.partial(&entry);
        let make = || {
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.set_len(entry.size)?;
            Ok::<_, std::io::Error>(file)
        };
        let file = make().with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Draft {
            path,
            file,
            entry,
            zeros: Zeros::Skip,
            partial: true,
        })
    }

    /// A copy of the old file that shares its blocks, where the file system can do that; elsewhere
    /// the old file itself.
    pub fn update(&self, old: &manifest::Device, mut entry: manifest::Device) -> Result<Draft> {
        let old_path = self.path.join(&old.file);
        let failed = || format!("cannot open {}", old_path.display());
        let old_file = File::options().read(true).write(true).open(&old_path);
        let old_file = old_file.with_context(failed)?;
        if entry.file != old.file {
            let mut draft = self.create(entry.clone())?;
            if rustix::fs::ioctl_ficlone(&draft.file, &old_file).is_ok() {
                draft.zeros = Zeros::Punch;
                return Ok(draft);
            }
        }
        entry.file.clone_from(&old.file);
        Ok(Draft {
            path: old_path,
            file: old_file,
            entry,
            zeros: Zeros::Punch,
            partial: false,
        })
    }

    /// Makes the files the backup, and removes those of the backup before.
    pub fn commit(
        &self,
        drafts: Vec<Draft>,
        manifest: &Manifest,
        before: Option<&Manifest>,
    ) -> Result<()> {
        for mut draft in drafts {
            let path = self.path.join(&draft.entry.file);
            if draft.partial {
                fs::rename(&draft.path, &path)
                    .with_context(|| format!("cannot rename {}", draft.path.display()))?;
                draft.partial = false;
            }
        }
        self.file
            .sync_all()
            .with_context(|| format!("cannot write back {}", self.path.display()))?;
        manifest.write(&self.path)?;
        for old in before.iter().flat_map(|before| &before.devices) {
            if manifest.devices.iter().all(|new| new.file != old.file) {
                let path = self.path.join(&old.file);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        eprintln!("blksnap: cannot remove {}: {error}", path.display());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The path of a file being made.
    fn partial(&self, entry: &manifest::Device) -> PathBuf {
        self.path.join(format!("{}.partial", entry.file))
    }
}

/// A file being made or changed.
pub struct Draft {
    path: PathBuf,
    file: File,
    /// What the manifest will say of it.
    pub entry: manifest::Device,
    zeros: Zeros,
    partial: bool,
}

impl Draft {
    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The opened file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What is to be done with zeros in it.
    pub fn zeros(&self) -> Zeros {
        self.zeros
    }

    /// Whether it is the file of the earlier backup itself.
    pub fn in_place(&self) -> bool {
        !self.partial
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.partial {
            // If this fails, the next backup removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(file: &str) -> manifest::Device {
        manifest::Device {
            name: "vda".into(),
            path: "/dev/vda".into(),
            file: file.into(),
            size: 8192,
            generation: Uuid::nil(),
            number: 1,
            block_size: 4096,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_becomes_valid_at_its_end_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |file| Manifest::new(Uuid::nil(), [0, 0], vec![entry(file)]);
        let first = manifest("vda-1.raw");
        {
            let directory = Directory::lock(dir.path()).unwrap();
            assert!(Directory::lock(dir.path()).is_err());
            let draft = directory.create(entry("vda-1.raw")).unwrap();
            assert_eq!(names(dir.path()), ["vda-1.raw.partial"]);
            directory.commit(vec![draft], &first, None).unwrap();
            assert_eq!(names(dir.path()), ["manifest.json", "vda-1.raw"]);
        }
        let directory = Directory::lock(dir.path()).unwrap();
        drop(directory.create(entry("vda-2.raw")).unwrap());
        assert_eq!(names(dir.path()), ["manifest.json", "vda-1.raw"]);

        directory.check(&entry("vda-1.raw")).unwrap();
        let draft = directory.update(&entry("vda-1.raw"), entry("vda-2.raw"));
        let draft = draft.unwrap();
        let (file, in_place) = (draft.entry.file.clone(), draft.in_place());
        assert_eq!(file == "vda-1.raw", in_place);
        let second = manifest(&file);
        directory
            .commit(vec![draft], &second, Some(&first))
            .unwrap();
        assert_eq!(names(dir.path()), ["manifest.json", &file]);
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(second));
    }

    #[test]
    fn what_was_interrupted_is_removed_and_a_damaged_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vda-1.raw.partial", "manifest.json.partial", "other"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let directory = Directory::lock(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["other"]);
        assert!(directory.check(&entry("vda-1.raw")).is_err());
        assert!(
            directory
                .check(&entry("other"))
                .unwrap_err()
                .contains("0 bytes")
        );
    }
}
