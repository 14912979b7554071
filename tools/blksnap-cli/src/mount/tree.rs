// SPDX-License-Identifier: GPL-2.0-or-later

//! The names: a directory for each backup, with a file for each device.
//!
//! Nothing is read before it is asked for, and only names, sizes and times are remembered, of what was
//! seen: it stays as it is, since no prune can run. What is damaged is looked for each time anew.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use blksnap_backup::{Chain, Device, Manifest, Repository, State, is_id, parts};

use super::tell;

/// The number of the directory of all backups.
pub const ROOT: u64 = 1;

/// A directory or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u64,
    /// Its name; `..` of the directory of all.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// When the backup was taken.
    pub time: SystemTime,
}

/// What is in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All backups.
    Root,
    /// One.
    Backup,
    /// A device of one.
    Device { backup: String, size: u64 },
}

/// Everything that was seen yet.
pub struct Tree {
    repository: Repository,
    /// The only backup that is shown.
    only: Option<String>,
    seen: Mutex<Seen>,
    told: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Seen {
    /// The one with the number N is at N - 2.
    nodes: Vec<Node>,
    /// By the number of the directory, and the name.
    numbers: HashMap<(u64, String), u64>,
}

impl Seen {
    fn node(&self, number: u64) -> Option<&Node> {
        let at = number.checked_sub(ROOT + 1)?;
        self.nodes.get(usize::try_from(at).ok()?)
    }

    fn find(&self, parent: u64, name: &str) -> Option<&Node> {
        let number = self.numbers.get(&(parent, name.to_owned()))?;
        self.node(*number)
    }

    fn add(&mut self, parent: u64, name: String, kind: Kind, time: SystemTime) -> Node {
        // Two threads may have looked for the same.
        if let Some(node) = self.find(parent, &name) {
            return node.clone();
        }
        let number = ROOT + 1 + self.nodes.len() as u64;
        self.numbers.insert((parent, name.clone()), number);
        let node = Node {
            number,
            name,
            kind,
            time,
        };
        self.nodes.push(node.clone());
        node
    }
}

impl Tree {
    /// Of all backups of a directory, or of one.
    pub fn new(repository: Repository, only: Option<String>) -> Self {
        Self {
            repository,
            only,
            seen: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// The directory of the backups.
    pub fn path(&self) -> &Path {
        self.repository.path()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something once, however often it is found.
    pub fn tell_once(&self, what: String, text: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(what) {
            tell(text);
        }
    }

    /// What has a number.
    pub fn node(&self, number: u64) -> Option<Node> {
        if number != ROOT {
            return self.seen().node(number).cloned();
        }
        let changed = self.path().metadata().and_then(|meta| meta.modified());
        Some(Node {
            number: ROOT,
            name: "..".into(),
            kind: Kind::Root,
            time: changed.unwrap_or(UNIX_EPOCH),
        })
    }

    /// What has a name in a directory; `None` if there is no such.
    pub fn find(&self, parent: &Node, name: &OsStr) -> Option<Node> {
        let name = name.to_str()?;
        if let Some(node) = self.seen().find(parent.number, name) {
            return Some(node.clone());
        }
        match parent.kind {
            Kind::Root => self.backup(name),
            Kind::Backup => {
                let (manifest, device) = self.manifest(&parent.name)?.of(name)?;
                self.device(parent, &manifest, &device)
            }
            Kind::Device { .. } => None,
        }
    }

    /// All that is in a directory.
    pub fn list(&self, parent: &Node) -> Result<Vec<Node>> {
        match &parent.kind {
            Kind::Root => {
                let ids = self.repository.ids()?.into_iter();
                Ok(ids.filter_map(|id| self.backup(&id)).collect())
            }
            Kind::Backup => {
                let Some(Known(manifest)) = self.manifest(&parent.name) else {
                    return Ok(Vec::new());
                };
                let devices = manifest.devices.iter();
                let devices = devices.filter_map(|device| self.device(parent, &manifest, device));
                Ok(devices.collect())
            }
            Kind::Device { .. } => Ok(Vec::new()),
        }
    }

    /// Opens all that is needed to read a device.
    pub fn chain(&self, node: &Node) -> Result<Chain> {
        let Kind::Device { backup, .. } = &node.kind else {
            anyhow::bail!("{} is a directory", node.name);
        };
        let manifest = self.repository.manifest(backup)?;
        let (manifest, device) = Known(manifest)
            .of(&node.name)
            .with_context(|| format!("{backup} has no {} any more", node.name))?;
        Chain::open(&self.repository, &manifest, &device)
    }

    /// The directory of a backup; `None` if there is no such, or only its data is needed. One that is
    /// damaged is a directory without devices.
    fn backup(&self, id: &str) -> Option<Node> {
        if !is_id(id) || self.only.as_ref().is_some_and(|only| only != id) {
            return None;
        }
        if let Some(node) = self.seen().find(ROOT, id) {
            return Some(node.clone());
        }
        // A directory that is none does not become one.
        let meta = self.repository.dir(id).metadata().ok()?;
        let time = match self.manifest(id) {
            Some(Known(manifest)) if manifest.state == State::Dropped => return None,
            Some(Known(manifest)) => taken(&manifest),
            None => meta.modified().unwrap_or(UNIX_EPOCH),
        };
        let id = id.to_owned();
        Some(self.seen().add(ROOT, id, Kind::Backup, time))
    }

    /// The file of a device; `None` if it cannot be read.
    fn device(&self, parent: &Node, manifest: &Manifest, device: &Device) -> Option<Node> {
        let name = device.file_name();
        if let Some(node) = self.seen().find(parent.number, &name) {
            return Some(node.clone());
        }
        let check = || {
            let odd = name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']);
            ensure!(!odd, "damaged manifest: `{name}` is no name of a device");
            parts(&self.repository, manifest, device)
        };
        if let Err(error) = check() {
            let id = &manifest.id;
            self.tell_once(
                format!("{id}/{name}"),
                format!("{name} of {id} is not shown: {error:#}"),
            );
            return None;
        }
        let kind = Kind::Device {
            backup: manifest.id.clone(),
            size: device.size,
        };
        let mut seen = self.seen();
        Some(seen.add(parent.number, name, kind, taken(manifest)))
    }

    /// What a backup is; `None`, and said, if that cannot be read.
    fn manifest(&self, id: &str) -> Option<Known> {
        let manifest = self.repository.manifest(id);
        let say = |error: anyhow::Error| {
            let text = format!("the devices of {id} are not shown: {error:#}");
            self.tell_once(id.to_owned(), text);
        };
        manifest.map_err(say).ok().map(Known)
    }
}

/// A manifest that could be read.
struct Known(Manifest);

impl Known {
    /// The device whose file has a name.
    fn of(self, name: &str) -> Option<(Manifest, Device)> {
        let mut devices = self.0.devices.iter();
        let device = devices.find(|device| device.file_name() == name)?.clone();
        Some((self.0, device))
    }
}

/// When a backup was taken.
fn taken(manifest: &Manifest) -> SystemTime {
    // There are so many nanoseconds in 584 years.
    UNIX_EPOCH + Duration::from_nanos(manifest.taken_unix_ns[0])
}
