// SPDX-License-Identifier: GPL-2.0-or-later

//! The backups that stay, and who needs which of the others.

use std::collections::BTreeSet;
use std::path::Path;

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
    pub fn shared(&self, manifest: &Manifest, dir: &Path) -> bool {
        let others = self.ids.iter().filter(|id| **id != manifest.id);
        others.into_iter().any(|id| {
            let mut next = self.repository.manifest(id).ok().and_then(|one| one.base);
            while let Some(id) = next.filter(|id| !self.has(id)) {
                if self.repository.dir(&id) == dir {
                    return true;
                }
                // Names only go down, so this ends.
                next = self.repository.manifest(&id).ok().and_then(|one| one.base);
            }
            false
        })
    }
}
