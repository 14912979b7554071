// SPDX-License-Identifier: GPL-2.0-or-later

//! The backups that stay, and who needs which of the others.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use blksnap_backup::{Manifest, Repository};

/// The backups that stay.
pub struct Staying<'a> {
    /// Where they are.
    pub repository: &'a Repository,
    ids: BTreeSet<String>,
}

impl<'a> Staying<'a> {
    /// These.
    pub fn of(repository: &'a Repository, ids: impl IntoIterator<Item = String>) -> Self {
        let ids = ids.into_iter().collect();
        Self { repository, ids }
    }

    /// Whether a backup stays.
    pub fn has(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// All of them, the oldest first.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.ids.iter()
    }

    /// Whether a backup is based on none, or on one that stays.
    pub fn is_based_well(&self, manifest: &Manifest) -> bool {
        manifest.base.as_ref().is_none_or(|base| self.has(base))
    }

    /// Whether another backup that stays needs the dropped one in `dir`: with two based on the same
    /// one, neither may change it.
    pub fn shared(&self, manifest: &Manifest, dir: &Path) -> Result<bool> {
        let base_of = |id: &str| {
            let one = self.repository.whole_manifest(id)?;
            Ok::<_, anyhow::Error>(one.and_then(|one| one.base))
        };
        for id in self.ids.iter().filter(|id| **id != manifest.id) {
            let mut next = base_of(id)?;
            while let Some(id) = next.filter(|id| !self.has(id)) {
                if self.repository.dir(&id) == dir {
                    return Ok(true);
                }
                // Names only go down, so this ends.
                next = base_of(&id)?;
            }
        }
        Ok(false)
    }
}
