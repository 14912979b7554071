// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap prune`: some backups are kept, by the rules of [`policy`], and what they need of those
//! that are not.
//!
//! ```text
//! full ← dropped ← dropped ← kept ← dropped ← dropped ← kept ← …        before
//! └─────── merged: full ────┘      └─── merged: incremental ──┘
//!                     kept, full ←────────────────────── kept ← …        after
//! ```
//!
//! A kept backup takes over what it needs of the dropped ones below it, down to the next kept one, on
//! which it is based then. Where one of the dropped ones is full, so is the kept one then; so the oldest
//! kept one always is. Devices of one backup may have different chains: each is merged by itself, and
//! one manifest tells of all.
//!
//! # Where to
//!
//! - A full file may be as large as the device, so it is not copied: what is newer is written into it,
//!   and it is moved to the kept backup.
//! - A raw file of an incremental backup gets what it lacks, at places that are in no list of it.
//! - Otherwise, or where a file can't have two names, or if another backup needs the same full file, a
//!   new file is written: that of qcow2 names the new base as its backing file, that of rbd-diff as the
//!   snapshot it starts from.
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
//!    is removed. Either is one rename. Then, for each kept backup, the oldest first:
//! 2. The list of extents of a full file that will be changed is replaced by one of what is still seen
//!    of it, by a new manifest. Parts of extents get checksums of their own. Nobody can tell the
//!    difference: what is hidden is not read, but as a part of an extent of which another part is seen.
//! 3. What is merged is written: into the full file, or the raw one of the kept backup, to places that
//!    are in no list of this file, and it is still in the other files; so the merged view stays the
//!    same, and its checksums right, however much was written. Or into a new file, that no one knows.
//! 4. The full file gets a second name (a link), that of a full file of the kept backup. If its own file
//!    has that name, as with qcow2, it takes its place by a rename: its own extents are in the full file
//!    too, at the same places, and overlays name it so. The same holds for a new file.
//! 5. A new manifest says what this backup is based on, and has the list of the merged extents.
//! 6. The dropped directories that nobody needs any more are removed.
//!
//! Space is needed for manifests, for lists of extents, and for what is merged to places that have
//! none. Backups that no other needs are removed first, which gives some; then, if it is not enough,
//! nothing is dropped. What a failed merge has written to new files is removed.
//!
//! A prune that finds dropped backups begins with 2, for those that need them; what was done already is
//! done again, with the same result.

mod merge;
pub mod policy;
mod report;
mod room;
mod staying;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use blksnap_backup::{Device, Manifest, Repository, State, parts_above};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::args;
use crate::opened;
use crate::output;
use crate::signals::Signals;
use crate::verify;
use policy::{Policy, Reason, Rule};
use report::{Last, Merged, Report};
use staying::Staying;

/// Prunes as asked for.
pub fn run(args: &args::Prune) -> Result<()> {
    let signals = Signals::catch()?;
    let how = How {
        policy: args.policy(),
        dry_run: args.dry_run,
        verify: args.verify,
        forget: &args.forget,
    };
    let report = prune(&args.directory, how, &signals)?;
    match args.json {
        true => output::print_json(&report),
        false => output::print(report.to_string().trim_end()),
    }
}

/// How to prune.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Which backups to keep.
    pub policy: Policy,
    /// Only say, and check, what would be done.
    pub dry_run: bool,
    /// Read all that the kept backups need, not only what is merged.
    pub verify: bool,
    /// The devices of which no backup need be left.
    pub forget: &'a [String],
}

/// Keeps some of the backups in a directory.
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
    let path = repository.path();
    let backups = repository.backups()?;
    check_read(&backups).with_context(|| format!("{}: nothing was dropped", path.display()))?;
    let good: Vec<&Manifest> = backups
        .iter()
        .filter_map(|(_, read)| read.as_ref().ok())
        .collect();
    if good.is_empty() {
        bail!("there is no backup in {}", path.display());
    }
    let (reasons, last) = choose(&good, how)?;
    let chosen = good.iter().zip(&reasons);
    let kept: Vec<&Manifest> = chosen
        .filter(|(_, why)| !why.is_empty())
        .map(|(manifest, _)| *manifest)
        .collect();
    let Some(oldest) = kept.first() else {
        bail!("nothing would be kept in {}", path.display());
    };
    let staying = Staying::of(repository, kept.iter().map(|manifest| manifest.id.clone()));
    // One with a damaged manifest goes if all that are kept are newer: none can need it. There are no other errors.
    let goes = |(id, read): &(String, Result<Manifest>)| match read {
        Ok(_) => !staying.has(id),
        Err(_) => *id < oldest.id,
    };
    let dropped = backups.iter().filter(|one| goes(one));
    let mut report = Report::new(repository.path(), how.dry_run, &good, reasons, last);
    report.dropped = dropped.map(|(id, _)| id.clone()).collect();
    let check = || -> Result<Vec<Merged>> {
        if how.verify {
            check_all(repository, &kept, signals)?;
        }
        check_merges(&staying, &kept, signals)
    };
    let plans = check().with_context(|| format!("{}: nothing was dropped", path.display()))?;
    if how.dry_run {
        report.merged = plans;
        return Ok(report);
    }
    let alone = alone(&staying, &report.dropped)
        .with_context(|| format!("{}: nothing was dropped", path.display()))?;
    room::check(&staying, &kept, &alone)
        .with_context(|| format!("{}: nothing was dropped", path.display()))?;
    let interrupted = !dropped_ids(repository)?.is_empty();
    for id in &alone {
        signals.check()?;
        step("removing what nobody needs")?;
        repository.remove(id)?;
    }
    report
        .merged
        .extend(go_on(&staying, &backups, &alone, signals)?);
    let rest = report.dropped.iter().filter(|id| !alone.contains(id));
    drop_backups(&staying, &kept, rest, signals)?;
    for manifest in &kept {
        let merged = merge::into(&staying, &manifest.id, signals)?;
        if interrupted || !merged.is_empty() || manifest.id == oldest.id {
            merge::tidy(repository, &manifest.id)?;
        }
        let some = !merged.is_empty();
        report.merged.extend(merged);
        if some {
            remove_merged(repository)?;
        }
    }
    remove_merged(repository)?;
    Ok(report)
}

/// Fails if a backup may be one though its manifest can't be used: it may be one to keep, or need others.
fn check_read(backups: &[(String, Result<Manifest>)]) -> Result<()> {
    let errors = backups
        .iter()
        .filter_map(|(id, read)| Some((id, read.as_ref().err()?)));
    for (id, error) in errors {
        ensure!(
            Manifest::is_damage(error),
            "{id} may have to be kept, and is not known: {error:#}; if it is lost, remove its directory"
        );
    }
    Ok(())
}

/// Why each backup is kept, with none if it is not, and the last ones of devices.
fn choose(good: &[&Manifest], how: How<'_>) -> Result<(Vec<Vec<Reason>>, Vec<Last>)> {
    let time = |manifest: &&Manifest| {
        Timestamp::from_nanosecond(manifest.taken_unix_ns[0].into())
            .with_context(|| format!("{}: the time it was taken", manifest.id))
    };
    let times: Vec<_> = good.iter().map(time).collect::<Result<_>>()?;
    let mut reasons = how.policy.reasons(&times, &TimeZone::system());
    let (mut seen, mut last) = (Vec::<&Device>::new(), Vec::new());
    for (manifest, reasons) in good.iter().zip(&mut reasons).rev() {
        let forget: Vec<_> = how
            .forget
            .iter()
            .filter_map(|name| manifest.device(name))
            .collect();
        let kept = !reasons.is_empty();
        for device in &manifest.devices {
            if seen.iter().any(|other| device.is_of_same(other)) {
                continue;
            }
            seen.push(device);
            if kept || forget.iter().any(|other| other.name == device.name) {
                continue;
            }
            last.push(Last {
                backup: manifest.id.clone(),
                device: device.name.clone(),
            });
            if reasons.is_empty() {
                reasons.push(Reason {
                    rule: Rule::LastOfDevice,
                    oldest: false,
                });
            }
        }
    }
    Ok((reasons, last))
}

/// Reads all that the merges will read, and gives what they mean for each device.
fn check_merges(
    staying: &Staying<'_>,
    kept: &[&Manifest],
    signals: &Signals,
) -> Result<Vec<Merged>> {
    let mut plans = Vec::new();
    for (index, manifest) in kept.iter().enumerate() {
        if index > 0 && staying.is_based_well(manifest) {
            continue;
        }
        for device in &manifest.devices {
            let run = merge::Run::open(staying, manifest, device)
                .with_context(|| format!("{} would be of no use alone", manifest.id))?;
            if let Some(run) = run {
                merge::check(&run, signals)
                    .with_context(|| format!("{} cannot be merged with others", manifest.id))?;
                plans.push(run.plan(manifest, device)?);
            }
        }
    }
    Ok(plans)
}

/// Reads all that the kept backups need.
fn check_all(repository: &Repository, kept: &[&Manifest], signals: &Signals) -> Result<()> {
    let (mut once, mut report) = (verify::Once::default(), verify::Report::default());
    for manifest in kept {
        verify::check(repository, manifest, &mut once, &mut report, signals)?;
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
fn alone(staying: &Staying<'_>, dropped: &[String]) -> Result<Vec<String>> {
    let mut needed: BTreeSet<String> = staying.ids().cloned().collect();
    // The newest first: what one needs is older.
    let mut all: Vec<&String> = staying.ids().chain(dropped).collect();
    all.sort();
    for id in all.into_iter().rev() {
        if !needed.contains(id) {
            continue;
        }
        let Some(manifest) = staying.repository.whole_manifest(id)? else {
            continue;
        };
        // It was found to be whole: now it must be, too.
        let needs = staying.has(id) && !staying.is_based_well(&manifest);
        for device in &manifest.devices {
            // Of a broken chain nothing is needed; those of the kept ones are whole, or need none
            // that is dropped.
            let stop = |id: &str| staying.has(id);
            let names = match parts_above(staying.repository, &manifest, device, &stop) {
                Err(error) if needs => return Err(error),
                parts => parts.map(|(parts, _)| parts).unwrap_or_default(),
            };
            let names = names
                .iter()
                .filter_map(|(dir, _)| dir.file_name()?.to_str());
            needed.extend(names.map(str::to_owned));
        }
    }
    let alone = dropped.iter().rev().filter(|id| !needed.contains(*id));
    Ok(alone.cloned().collect())
}

/// Ends the merges that an interrupted prune has begun. What can't be mended of a backup does not
/// matter if that is dropped now.
fn go_on(
    staying: &Staying<'_>,
    backups: &[(String, Result<Manifest>)],
    alone: &[String],
    signals: &Signals,
) -> Result<Vec<Merged>> {
    let listed = backups
        .iter()
        .filter(|(id, read)| read.is_ok() && !alone.contains(id));
    let listed = Staying::of(staying.repository, listed.map(|(id, _)| id.clone()));
    let mut all = Vec::new();
    for id in listed.ids() {
        let manifest = staying.repository.manifest(id)?;
        let base = manifest.base.as_ref();
        let base = base.map(|base| staying.repository.whole_manifest(base));
        let base = base.transpose()?.flatten();
        if base.is_none_or(|base| base.state != State::Dropped) {
            continue;
        }
        match merge::into(&listed, id, signals) {
            Ok(merged) => all.extend(merged),
            Err(error) if staying.has(id) => return Err(error),
            Err(error) => {
                signals.check()?;
                output::remark(format!("{id} is dropped: {error:#}"));
            }
        }
    }
    Ok(all)
}

/// Drops backups: those that a kept one needs are no backups any more, the others are removed.
fn drop_backups<'a>(
    staying: &Staying<'_>,
    kept: &[&Manifest],
    dropped: impl DoubleEndedIterator<Item = &'a String>,
    signals: &Signals,
) -> Result<()> {
    let repository = staying.repository;
    let mut needed = BTreeSet::new();
    for manifest in kept {
        // As it is now.
        let manifest = repository.manifest(&manifest.id)?;
        if staying.is_based_well(&manifest) {
            continue;
        }
        for device in &manifest.devices {
            let stop = |id: &str| staying.has(id);
            let (parts, _) = parts_above(repository, &manifest, device, &stop)?;
            needed.extend(parts.into_iter().map(|(dir, _)| dir));
        }
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

/// The dropped backups whose data is still there.
fn dropped_ids(repository: &Repository) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    for id in repository.ids()? {
        let read = repository.whole_manifest(&id)?;
        dropped.extend(read.filter(|read| read.state == State::Dropped).map(|_| id));
    }
    Ok(dropped)
}

/// Removes those dropped ones that no backup is based on any more, also by way of others.
fn remove_merged(repository: &Repository) -> Result<()> {
    let dropped = dropped_ids(repository)?;
    if dropped.is_empty() {
        return Ok(());
    }
    let mut needed = BTreeSet::new();
    for id in repository.ids()?.iter().rev() {
        let listed = !dropped.contains(id) || needed.contains(id);
        if listed {
            let manifest = repository.whole_manifest(id)?;
            needed.extend(manifest.and_then(|manifest| manifest.base));
        }
    }
    for id in dropped.iter().rev().filter(|id| !needed.contains(*id)) {
        step("removing what was merged")?;
        repository.remove(id)?;
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
