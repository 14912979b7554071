// SPDX-License-Identifier: GPL-2.0-or-later

//! What a prune has done, or would do.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use blksnap_backup::{Kind, Manifest};
use serde::Serialize;

use super::policy::Reason;
use crate::output;
use crate::size::Size;

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(serialize_with = "output::path")]
    directory: PathBuf,
    pub dry_run: bool,
    pub kept: Vec<String>,
    /// Which rules keep each of them.
    pub reasons: BTreeMap<String, Vec<Reason>>,
    /// Backups that are kept because no newer one has a device.
    pub last: Vec<Last>,
    pub dropped: Vec<String>,
    pub merged: Vec<Merged>,
}

/// The last backup of a device.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Last {
    pub backup: String,
    pub device: String,
}

/// A device of a backup that took over what it needs of dropped ones.
#[derive(Debug, Serialize)]
pub struct Merged {
    pub backup: String,
    pub device: String,
    /// What it is now.
    pub kind: Kind,
    /// Whether a file that was there became the one of this backup, or was it already.
    pub in_place: bool,
    /// Bytes written.
    pub bytes: u64,
}

impl Report {
    /// Of what was chosen: nothing is dropped or merged yet.
    pub fn new(
        directory: &Path,
        dry_run: bool,
        good: &[&Manifest],
        reasons: Vec<Vec<Reason>>,
        last: Vec<Last>,
    ) -> Self {
        let ids = good.iter().map(|manifest| manifest.id.clone());
        let reasons = ids.zip(reasons).filter(|(_, why)| !why.is_empty());
        let reasons: BTreeMap<_, _> = reasons.collect();
        Self {
            directory: directory.to_owned(),
            dry_run,
            kept: reasons.keys().cloned().collect(),
            reasons,
            last,
            dropped: Vec::new(),
            merged: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { "would be " } else { "" };
        if self.dry_run {
            let mut all: Vec<_> = self.kept.iter().chain(&self.dropped).collect();
            all.sort();
            for id in all {
                match self.reasons.get(id) {
                    Some(why) => {
                        let why: Vec<_> = why.iter().map(Reason::to_string).collect();
                        writeln!(f, "{id}  {would}kept     {}", why.join(", "))?;
                    }
                    None => writeln!(f, "{id}  {would}dropped")?,
                }
            }
        }
        for Last { backup, device } in &self.last {
            writeln!(
                f,
                "{backup}: {would}kept as the last backup of {device}: --forget {device} lets it go"
            )?;
        }
        for id in self.dropped.iter().filter(|_| !self.dry_run) {
            writeln!(f, "{id}: dropped")?;
        }
        for merged in &self.merged {
            let how = match merged.in_place {
                true => "in place",
                false => "into a new file",
            };
            let what = match merged.kind {
                Kind::Full => format!("{would}made full"),
                Kind::Incremental | Kind::Compared => format!("{would}based on an older backup"),
            };
            writeln!(
                f,
                "{}: {} {what}: {} {would}merged {how}",
                merged.backup,
                merged.device,
                Size(merged.bytes)
            )?;
        }
        writeln!(f, "{} backups {would}kept", self.kept.len())
    }
}
