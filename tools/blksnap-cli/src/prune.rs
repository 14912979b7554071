// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap prune`: only the newest backups are kept, and what they need of those before.
//!
//! ```text
//! full ← incremental ← incremental ← oldest kept ← …        before
//! └──────── dropped, one by one ───┘
//! └─ file changed in place: merged ┘ → oldest kept, full ← …    after
//! ```
//!
//! The full file may be as large as the device, so it is not copied: what is newer is written into
//! it, and it is moved to the oldest backup that is kept.
//!
//! # Why it may be killed at any time
//!
//! Before the first step, all that will be merged is read, and compared with its checksums: damage is
//! found while every backup is still there, and then nothing is changed.
//!
//! Each step leaves every backup that `blksnap list` shows one that can be restored:
//!
//! 1. The backups that go are dropped, the newest first, so that no one that is still listed needs
//!    one that is not. If a kept backup needs it, its manifest says `dropped` from then on; else it
//!    is removed. Either is one rename.
//! 2. The list of extents of the full file is replaced by one of what is still seen of it, by a new
//!    manifest. Parts of extents get checksums of their own. Nobody can tell the difference: what
//!    is hidden is not read, but as a part of an extent of which another part is seen.
//! 3. What is newer is written into the full file. All of it goes to places that are in no list of
//!    this file any more, and is still in the newer files; so the merged view stays the same, and
//!    its checksums right, however much was written.
//! 4. The full file gets a second name (a link), that of a full file of the oldest kept backup. If
//!    its own file has that name, as with qcow2, it takes its place by a rename: its own extents are
//!    in the full file too, at the same places, and overlays name it so.
//! 5. A new manifest says that this backup is full, and has the list of the merged extents.
//! 6. The dropped directories are removed. Nobody needs them any more.
//!
//! Space is needed for manifests, for lists of extents, and for what is merged to places that have
//! none in the full file. Backups that no other needs are removed first, which gives some; then, if
//! it is not enough, nothing is dropped. What a failed merge has written is removed.
//!
//! A prune that finds dropped backups begins with 2; what was done already is done again, with the
//! same result. Where a format can't be changed in place, or a file can't have two names, 2 and 3
//! are the writing of a new file.

mod merge;
mod room;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use blksnap_backup::{Chain, Device, Manifest, Repository, State, parts};
use serde::Serialize;

use crate::args;
use crate::opened;
use crate::output;
use crate::signals::Signals;
use crate::size::Size;
use crate::verify;

/// Prunes as asked for.
pub fn run(args: &args::Prune) -> Result<()> {
    let signals = Signals::catch()?;
    let how = How {
        keep: args.keep as usize,
        dry_run: args.dry_run,
        verify: args.verify,
        forget: &args.forget,
    };
    let report = prune(&args.directory, how, &signals)?;
    if args.json {
        return output::print_json(&report);
    }
    let would = if args.dry_run { "would be " } else { "" };
    for Last { backup, device } in &report.last {
        output::print(format!(
            "{backup}: {would}kept, and those after it, as the last backup of {device}: --forget {device} lets it go"
        ))?;
    }
    for id in &report.dropped {
        output::print(format!("{id}: {would}dropped"))?;
    }
    for merged in &report.merged {
        let how = if merged.in_place {
            "in place"
        } else {
            "into a new file"
        };
        output::print(format!(
            "{}: {} {would}made full: {} {would}merged {how}",
            merged.backup,
            merged.device,
            Size(merged.bytes)
        ))?;
    }
    output::print(format!("{} backups {would}kept", report.kept.len()))
}

/// How to prune.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// How many of the newest backups to keep.
    pub keep: usize,
    /// Only say, and check, what would be done.
    pub dry_run: bool,
    /// Read all that the kept backups need, not only what is merged.
    pub verify: bool,
    /// The devices of which no backup need be left.
    pub forget: &'a [String],
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(serialize_with = "output::path")]
    directory: PathBuf,
    dry_run: bool,
    kept: Vec<String>,
    /// Backups that are kept, with those after them, because no newer one has a device.
    last: Vec<Last>,
    dropped: Vec<String>,
    merged: Vec<Merged>,
}

/// The last backup of a device.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Last {
    backup: String,
    device: String,
}

/// A device of a backup that was made full.
#[derive(Debug, Serialize)]
pub struct Merged {
    backup: String,
    device: String,
    /// Whether the full file of an earlier backup became the one of this.
    in_place: bool,
    /// Bytes written.
    bytes: u64,
}

/// Keeps the newest backups in a directory.
pub fn prune(path: &Path, how: How<'_>, signals: &Signals) -> Result<Report> {
    if how.dry_run {
        let (repository, _) = Repository::read(path)?;
        opened::remark(&repository)?;
        return steps(&repository, how, signals);
    }
    let repository = Repository::change(path)?;
    opened::remark(&repository)?;
    steps(&repository, how, signals).inspect_err(|_| {
        // A half-written file may be why the disk is full. If this fails, too, the next one does it.
        let _ = repository.sweep();
    })
}

/// All of it, in a directory that is locked.
fn steps(repository: &Repository, how: How<'_>, signals: &Signals) -> Result<Report> {
    let How { keep, dry_run, .. } = how;
    let path = repository.path();
    let backups = repository.backups()?;
    let good: Vec<&Manifest> = backups
        .iter()
        .filter_map(|(_, read)| read.as_ref().ok())
        .collect();
    let Some(oldest_listed) = good.first() else {
        bail!("there is no backup in {}", path.display());
    };
    let mut from = good.len().saturating_sub(keep);
    let last = last_ones(&good, from, how.forget);
    if let Some(first) = last.iter().map(|last| &last.backup).min() {
        from = good.partition_point(|manifest| manifest.id < *first);
    }
    let kept = &good[from..];
    let oldest = kept[0];
    check_bases(kept)?;
    let mut report = Report {
        directory: repository.path().to_owned(),
        dry_run,
        kept: kept.iter().map(|manifest| manifest.id.clone()).collect(),
        last,
        dropped: backups
            .iter()
            .map(|(id, _)| id.clone())
            .filter(|id| *id < oldest.id)
            .collect(),
        merged: Vec::new(),
    };
    let check = || -> Result<Vec<Merged>> {
        if how.verify {
            check_all(repository, kept, signals)?;
        }
        check_merge(repository, oldest, signals)
    };
    let plans = check().with_context(|| format!("{}: nothing was dropped", path.display()))?;
    if dry_run {
        report.merged = plans;
        return Ok(report);
    }
    let alone = alone(repository, &report.dropped, oldest)?;
    room::check(repository, oldest, &alone)
        .with_context(|| format!("{}: nothing was dropped", path.display()))?;
    for id in &alone {
        signals.check()?;
        step("removing what nobody needs")?;
        repository.remove(id)?;
    }
    // One that was interrupted comes first. What it can't mend does not matter if it is dropped.
    let first = match alone.contains(&oldest_listed.id) {
        true => Ok(Vec::new()),
        false => merge::into(repository, &oldest_listed.id, signals, true),
    };
    match first {
        Ok(merged) => report.merged.extend(merged),
        Err(error) if oldest_listed.id == oldest.id => return Err(error),
        Err(error) => {
            signals.check()?;
            output::remark(format!("{} is dropped: {error:#}", oldest_listed.id));
        }
    }
    let rest = report.dropped.iter().filter(|id| !alone.contains(id));
    drop_backups(repository, rest, &oldest.id, signals)?;
    report
        .merged
        .extend(merge::into(repository, &oldest.id, signals, false)?);
    merge::tidy(repository, &oldest.id)?;
    for id in repository.ids()?.iter().rev() {
        if repository
            .manifest(id)
            .is_ok_and(|read| read.state == State::Dropped)
        {
            step("removing what was merged")?;
            repository.remove(id)?;
        }
    }
    Ok(report)
}

/// Of the backups before the number `from`, those that are the last one of a device.
fn last_ones(good: &[&Manifest], from: usize, forget: &[String]) -> Vec<Last> {
    let (older, kept) = good.split_at(from);
    let mut seen: Vec<&Device> = kept.iter().flat_map(|one| &one.devices).collect();
    let mut last = Vec::new();
    for manifest in older.iter().rev() {
        for device in &manifest.devices {
            if seen.iter().any(|other| device.is_of_same(other)) {
                continue;
            }
            seen.push(device);
            let mut forget = forget.iter().filter_map(|name| manifest.device(name));
            if !forget.any(|other| other.name == device.name) {
                last.push(Last {
                    backup: manifest.id.clone(),
                    device: device.name.clone(),
                });
            }
        }
    }
    last
}

/// Fails if a backup other than the oldest needs one that is not kept.
fn check_bases(kept: &[&Manifest]) -> Result<()> {
    for manifest in &kept[1..] {
        let Some(base) = &manifest.base else { continue };
        if !kept.iter().any(|other| other.id == *base) {
            bail!(
                "{} is based on {base}, which is damaged or older than others that are kept: keep more, or fewer",
                manifest.id
            );
        }
    }
    Ok(())
}

/// Reads all that making a backup full will read, and gives what that means for each device.
fn check_merge(
    repository: &Repository,
    manifest: &Manifest,
    signals: &Signals,
) -> Result<Vec<Merged>> {
    let mut plans = Vec::new();
    for device in &manifest.devices {
        let chain = Chain::open(repository, manifest, device)
            .with_context(|| format!("{} would be of no use alone", manifest.id))?;
        if let Some(plan) = merge::plan(&chain, manifest) {
            merge::check(&chain, &plan, signals)
                .with_context(|| format!("{} cannot be made full", manifest.id))?;
            plans.push(plan);
        }
    }
    Ok(plans)
}

/// Reads all that the kept backups need.
fn check_all(repository: &Repository, kept: &[&Manifest], signals: &Signals) -> Result<()> {
    let (mut read, mut report) = (BTreeSet::new(), verify::Report::default());
    for manifest in kept {
        verify::check(repository, manifest, &mut read, &mut report, signals)?;
    }
    match report.damage.as_slice() {
        [] => Ok(()),
        [first, ..] => bail!(
            "what would be kept is damaged in {} places, the first: {}",
            report.damage.len(),
            first.what
        ),
    }
}

/// Those to be dropped which neither a kept backup nor another of them needs that is needed: the
/// newest first. They can go at once.
fn alone(repository: &Repository, dropped: &[String], oldest: &Manifest) -> Result<Vec<String>> {
    let mut needed = BTreeSet::from([oldest.id.clone()]);
    // The newest first: what one needs is older.
    for id in std::iter::once(&oldest.id).chain(dropped.iter().rev()) {
        if !needed.contains(id) {
            continue;
        }
        let manifest = repository.manifest(id)?;
        for device in &manifest.devices {
            // Of a broken chain nothing is needed; that of the oldest kept is whole.
            let parts = parts(repository, &manifest, device).unwrap_or_default();
            let names = parts
                .iter()
                .filter_map(|(dir, _)| dir.file_name()?.to_str());
            needed.extend(names.map(str::to_owned));
        }
    }
    let alone = dropped.iter().rev().filter(|id| !needed.contains(*id));
    Ok(alone.cloned().collect())
}

/// Drops backups: those which `oldest` needs are no backups any more, the others are removed.
fn drop_backups<'a>(
    repository: &Repository,
    dropped: impl DoubleEndedIterator<Item = &'a String>,
    oldest: &str,
    signals: &Signals,
) -> Result<()> {
    let oldest = repository.manifest(oldest)?;
    let mut needed = Vec::new();
    for device in &oldest.devices {
        let parts = parts(repository, &oldest, device)?;
        needed.extend(parts.into_iter().map(|(dir, _)| dir));
    }
    for id in dropped.rev() {
        signals.check()?;
        step("dropping")?;
        if needed.contains(&repository.dir(id)) {
            let mut manifest = repository.manifest(id)?;
            manifest.state = State::Dropped;
            manifest.write(&repository.dir(id))?;
        } else {
            repository.remove(id)?;
        }
    }
    Ok(())
}

/// Where tests pretend that the program is killed.
fn step(what: &str) -> Result<()> {
    #[cfg(test)]
    tests::count(what)?;
    let _ = what;
    Ok(())
}

#[cfg(test)]
mod tests;
