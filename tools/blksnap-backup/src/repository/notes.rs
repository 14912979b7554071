// SPDX-License-Identifier: GPL-2.0-or-later

//! What is noted in a directory of backups for who monitors it: that the last backup failed, and what the
//! last verification has found. Nothing else goes by these files, and they may be missing.
//!
//! `.failed` and `.verified` are objects of JSON, replaced as a whole.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Repository;
use crate::private;

/// The names of the files.
const FAILED: &str = ".failed";
const VERIFIED: &str = ".verified";

/// A backup that failed, after which none was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// When, in seconds since 1970.
    pub unix_s: u64,
    /// Why, in words.
    pub why: String,
}

/// A verification of all backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When it began, in seconds since 1970.
    pub unix_s: u64,
    /// The newest backup that was checked.
    pub newest: String,
    /// In how many places there was damage.
    pub damaged: u64,
}

/// Seconds since 1970.
pub fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl Repository {
    /// Notes that a backup failed now.
    pub fn note_failed(&self, why: &str) -> Result<()> {
        let why = why.to_owned();
        let unix_s = unix_s(SystemTime::now());
        self.note(FAILED, &Failed { unix_s, why })
    }

    /// Notes that a backup was made.
    pub fn forget_failed(&self) -> Result<()> {
        let path = self.path().join(FAILED);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The last backup, if that failed.
    pub fn failed(&self) -> Result<Option<Failed>> {
        self.noted(FAILED)
    }

    /// Notes what a verification has found.
    pub fn note_verified(&self, verified: &Verified) -> Result<()> {
        self.note(VERIFIED, verified)
    }

    /// The last verification.
    pub fn verified(&self) -> Result<Option<Verified>> {
        self.noted(VERIFIED)
    }

    fn note(&self, name: &str, note: &impl Serialize) -> Result<()> {
        let path = self.path().join(name);
        // Another may do the same at the same time: readers are many.
        let new = self.path().join(format!("{name}.{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = private::replace(&new)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.write_all(b"\n")?;
            // Else an empty one may have its place after a power cut.
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write()
            .inspect_err(|_| drop(fs::remove_file(&new)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn noted<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path: PathBuf = self.path().join(name);
        let failed = || format!("cannot read {}", path.display());
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(failed)?,
        };
        serde_json::from_str(&text).map(Some).with_context(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_replaced_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(dir.path()).unwrap();
        assert_eq!(repository.failed().unwrap(), None);
        repository.forget_failed().unwrap();
        repository.note_failed("the disk is full").unwrap();
        repository.note_failed("it still is").unwrap();
        assert_eq!(repository.failed().unwrap().unwrap().why, "it still is");
        repository.forget_failed().unwrap();
        assert_eq!(repository.failed().unwrap(), None);
        let verified = Verified {
            unix_s: 5,
            newest: "x".into(),
            damaged: 0,
        };
        repository.note_verified(&verified).unwrap();
        assert_eq!(repository.verified().unwrap(), Some(verified));
        fs::write(dir.path().join(VERIFIED), "{").unwrap();
        assert!(repository.verified().is_err());
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2, "the lock and a note");
    }
}
