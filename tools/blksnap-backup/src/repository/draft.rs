// SPDX-License-Identifier: GPL-2.0-or-later

//! A backup while it is made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{PARTIAL, Repository};
use crate::manifest::Manifest;
use crate::private;

/// A backup being made. What does not come to be one is removed.
pub struct Draft<'a> {
    repository: &'a Repository,
    id: String,
    path: PathBuf,
    committed: bool,
}

impl<'a> Draft<'a> {
    /// Makes a directory for it.
    pub fn new(repository: &'a Repository, id: String) -> Result<Self> {
        let path = repository.path().join(format!("{PARTIAL}{id}"));
        private::create_dir(&path)
            .with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self {
            repository,
            id,
            path,
            committed: false,
        })
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name it will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes it a backup. Its files are durable.
    pub fn commit(mut self, manifest: &Manifest) -> Result<()> {
        manifest.write(&self.path)?;
        let path = self.repository.dir(&self.id);
        fs::rename(&self.path, &path)
            .with_context(|| format!("cannot rename {}", self.path.display()))?;
        self.committed = true;
        self.repository.sync()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // If this fails, the next backup removes it.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
