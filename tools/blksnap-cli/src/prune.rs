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
use serde::Serialize;

use crate::args;
use crate::chain::{self, Chain};
use crate::manifest::{Device, Manifest, State};
use crate::output;
use crate::repository::Repository;
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
        return steps(&Repository::read(path)?.0, how, signals);
    }
    let repository = Repository::change(path)?;
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
            let parts = chain::parts(repository, &manifest, device).unwrap_or_default();
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
        let parts = chain::parts(repository, &oldest, device)?;
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
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::format::Format;
    use crate::restore::{self, restore};
    use crate::testing::Store;
    use crate::verify::verify;

    thread_local! {
        /// How many steps may still be done.
        static STEPS: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    pub fn count(what: &str) -> Result<()> {
        let left = STEPS.get();
        STEPS.set(left.saturating_sub(1));
        if left == 0 {
            bail!("killed before {what}");
        }
        Ok(())
    }

    fn keeping(keep: usize) -> How<'static> {
        How {
            keep,
            dry_run: false,
            verify: false,
            forget: &[],
        }
    }

    /// A prune that may be killed: nothing is cleaned up after an error.
    fn killed(path: &Path, keep: usize, signals: &Signals) -> Result<Report> {
        steps(&Repository::change(path)?, keeping(keep), signals)
    }

    const MIB: usize = 1 << 20;
    const SIZE: usize = 3 * MIB;

    /// A chain of backups, and what each should be.
    fn chain(format: Format) -> (Store, Vec<(String, Vec<u8>)>) {
        let store = Store::with(SIZE as u64, format);
        let mut data: Vec<u8> = (0..SIZE).map(|i| ((i * 7) >> 3) as u8 | 1).collect();
        data[MIB..MIB + 655_360].fill(0);
        // Of a chain that is not needed by the others.
        let mut all = vec![(store.full(&data), data.clone())];
        data[0..65536].fill(4);
        all.push((
            store.incremental(&all[0].0, &data, &[0..65536]),
            data.clone(),
        ));
        data[7] = 0;
        all.push((store.full(&data), data.clone()));
        for (at, value, length) in [
            (65536, 0, 131_072),
            (MIB + 65536, 9, 65536),
            (MIB, 0, MIB + 65536),
            (2 * MIB + 65536, 8, MIB - 65536),
            (131_072, 7, 65536),
        ] {
            data[at..at + length].fill(value);
            let changed = at as u64..(at + length) as u64;
            let base = all.last().unwrap().0.clone();
            all.push((store.incremental(&base, &data, &[changed]), data.clone()));
        }
        (store, all)
    }

    /// All backups that are listed are as they should be, and those of `kept` are there.
    fn check(store: &Store, all: &[(String, Vec<u8>)], kept: &[(String, Vec<u8>)], when: &str) {
        let signals = Signals::catch().unwrap();
        let listed = {
            let (repository, _) = Repository::read(store.path()).unwrap();
            let backups = repository.backups().unwrap();
            backups
                .into_iter()
                .map(|(id, read)| {
                    read.unwrap();
                    id
                })
                .collect::<Vec<_>>()
        };
        for (id, _) in kept {
            assert!(listed.contains(id), "{when}: {id} has gone");
        }
        let out = store.path().join("out");
        for (id, data) in all.iter().filter(|(id, _)| listed.contains(id)) {
            let to = [out.display().to_string()];
            restore(
                &store.path().join(id),
                &to,
                restore::How::default(),
                &signals,
            )
            .expect(when);
            assert!(std::fs::read(&out).unwrap() == *data, "{when}: {id}");
            std::fs::remove_file(&out).unwrap();
        }
        let report = verify(store.path(), &signals).unwrap();
        assert!(report.damage.is_empty(), "{when}: {report:?}");
    }

    /// Kills a prune before each of its steps, and the next one before each of its steps.
    fn killed_anywhere(format: Format, keep: usize) {
        let signals = Signals::catch().unwrap();
        let mut steps = 0;
        loop {
            let (store, all) = chain(format);
            let kept = &all[all.len() - keep..];
            STEPS.set(steps);
            let first = killed(store.path(), keep, &signals);
            STEPS.set(u32::MAX);
            let when = match &first {
                Ok(_) => format!("{steps} steps, done"),
                Err(error) => format!("{steps} steps, {error:#}"),
            };
            check(&store, &all, kept, &when);
            if first.is_err() {
                // The second time, fewer are kept, and it is killed elsewhere.
                STEPS.set(steps / 2);
                let _ = killed(store.path(), keep - 1, &signals);
                STEPS.set(u32::MAX);
                check(&store, &all, &kept[1..], &format!("{when}, again"));
            }
            prune(store.path(), keeping(keep - 1), &signals).unwrap();
            check(&store, &all, &kept[1..], &format!("{when}, then done"));
            let mut left: Vec<_> = std::fs::read_dir(store.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| !name.starts_with('.'))
                .collect();
            left.sort();
            assert_eq!(
                left,
                kept[1..].iter().map(|(id, _)| &**id).collect::<Vec<_>>()
            );
            let oldest = store.path().join(&kept[1].0);
            let names = std::fs::read_dir(oldest).unwrap().count();
            assert_eq!(names, 3, "{when}: the data, the extents, the manifest");
            if first.is_ok() {
                assert!(steps > 1, "only {steps} steps");
                return;
            }
            steps += 1;
        }
    }

    #[test]
    fn raw_backups_survive_a_kill_at_any_step() {
        for keep in [3, 6] {
            killed_anywhere(Format::Raw, keep);
        }
    }

    #[test]
    fn qcow2_backups_survive_a_kill_at_any_step() {
        killed_anywhere(Format::Qcow2, 3);
    }

    #[test]
    fn rbd_diff_backups_survive_a_kill_at_any_step() {
        killed_anywhere(Format::RbdDiff, 3);
    }

    #[test]
    fn what_would_be_done_is_said() {
        let (store, all) = chain(Format::Raw);
        let signals = Signals::catch().unwrap();
        let report = prune(
            store.path(),
            How {
                dry_run: true,
                ..keeping(2)
            },
            &signals,
        )
        .unwrap();
        assert_eq!(report.dropped.len(), all.len() - 2);
        assert_eq!(report.merged.len(), 1);
        assert!(report.merged[0].in_place);
        let (repository, _) = Repository::read(store.path()).unwrap();
        assert_eq!(repository.ids().unwrap().len(), all.len());
        drop(repository);
        let done = prune(store.path(), keeping(2), &signals).unwrap();
        assert_eq!(report.merged[0].bytes, done.merged[0].bytes);
        let nothing = prune(store.path(), keeping(2), &signals).unwrap();
        assert!(nothing.dropped.is_empty() && nothing.merged.is_empty());
    }

    #[test]
    fn what_is_dropped_may_lack_its_base() {
        let (store, all) = chain(Format::Raw);
        let signals = Signals::catch().unwrap();
        std::fs::remove_dir_all(store.path().join(&all[0].0)).unwrap();
        prune(store.path(), keeping(2), &signals).unwrap();
        check(&store, &all, &all[all.len() - 2..], "without the first");
    }

    /// The backups that are listed, and what each gives when it is restored.
    fn restorable(store: &Store, all: &[(String, Vec<u8>)]) -> Vec<bool> {
        let signals = Signals::catch().unwrap();
        let out = store.path().join("out");
        let to = [out.display().to_string()];
        let good = all.iter().map(|(id, data)| {
            if let Err(error) = restore(
                &store.path().join(id),
                &to,
                restore::How::default(),
                &signals,
            ) {
                assert!(!out.exists(), "{error:#}");
                return false;
            }
            let same = std::fs::read(&out).unwrap() == *data;
            assert!(same, "{id} is restored, and is something else");
            std::fs::remove_file(&out).unwrap();
            true
        });
        good.collect()
    }

    /// Places in the files of a backup where damage is done, one for each extent of data, the list
    /// of extents, and the manifest.
    fn places(store: &Store, id: &str) -> Vec<(PathBuf, u64)> {
        let (repository, _) = Repository::read(store.path()).unwrap();
        let manifest = repository.manifest(id).unwrap();
        let device = &manifest.devices[0];
        let layer = chain::Layer::open(repository.dir(id), device).unwrap();
        let data = layer.extents.data().map(|extent| extent.start + 5);
        // In a raw file, each byte is at its place.
        let data = data.map(|at| (layer.file(), at));
        let others = [
            (layer.dir.join(&device.extents), 3),
            (layer.dir.join("manifest.json"), 5),
        ];
        data.chain(others).collect()
    }

    fn flip(path: &Path, at: u64) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at as usize] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn damage_at_any_place_costs_no_good_backup() {
        let signals = Signals::catch().unwrap();
        let (mut refused, mut done) = (0, 0);
        let (store, all) = chain(Format::Raw);
        let everywhere: Vec<_> = all.iter().map(|(id, _)| places(&store, id)).collect();
        for (file, at) in everywhere.into_iter().flatten() {
            let (store, all) = chain(Format::Raw);
            let inside = file.strip_prefix(file.ancestors().nth(2).unwrap());
            let file = store.path().join(inside.unwrap());
            flip(&file, at);
            let before = restorable(&store, &all);
            // Again, as an admin would: no time costs one more.
            for again in [false, true] {
                let when = format!("{} at {at}, again: {again}", file.display());
                let result = prune(store.path(), keeping(3), &signals);
                let after = restorable(&store, &all);
                match result {
                    Err(error) => {
                        assert_eq!(after, before, "{when}: {error:#}");
                        refused += 1;
                    }
                    Ok(report) => {
                        for (index, (id, _)) in all.iter().enumerate() {
                            if report.kept.contains(id) {
                                assert_eq!(after[index], before[index], "{when}: {id}");
                            }
                        }
                        done += 1;
                        break;
                    }
                }
            }
        }
        assert!(refused > 9 && done > 9, "{refused} {done}");
    }

    #[test]
    fn damage_and_a_stop_at_any_step_cost_no_kept_backup() {
        let signals = Signals::catch().unwrap();
        // Of the full one: hidden, in part and wholly seen; and of one that is kept.
        for (index, place) in [(2, 0), (2, 1), (2, 2), (7, 0)] {
            let damaged = || {
                let (store, all) = chain(Format::Raw);
                let (file, at) = places(&store, &all[index].0).swap_remove(place);
                flip(&file, at);
                (store, all)
            };
            let (store, all) = damaged();
            let kept = all.len() - 3;
            let before = restorable(&store, &all[kept..]);
            for steps in 0.. {
                let (store, all) = damaged();
                STEPS.set(steps);
                let first = killed(store.path(), 3, &signals);
                STEPS.set(u32::MAX);
                let _ = prune(store.path(), keeping(3), &signals);
                let after = restorable(&store, &all[kept..]);
                assert_eq!(after, before, "{index} {place} {steps}");
                let stopped = |error: anyhow::Error| format!("{error:#}").contains("killed");
                if !first.is_err_and(stopped) {
                    break;
                }
            }
        }
    }

    #[test]
    fn all_that_is_kept_can_be_read_before() {
        let (store, all) = chain(Format::Raw);
        let signals = Signals::catch().unwrap();
        // The last extent of the full one: seen by all, not merged.
        let (file, at) = places(&store, &all[6].0).swap_remove(0);
        flip(&file, at);
        let how = How {
            verify: true,
            ..keeping(1)
        };
        let before = restorable(&store, &all);
        for dry_run in [true, false] {
            let error = prune(store.path(), How { dry_run, ..how }, &signals).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("nothing was dropped"), "{error}");
            assert!(error.contains("vda.raw-delta is damaged"), "{error}");
            assert_eq!(restorable(&store, &all), before);
        }
    }

    /// The files whose names begin with a dot in the directories of backups.
    fn parts_left(store: &Store) -> Vec<PathBuf> {
        let (repository, _) = Repository::read(store.path()).unwrap();
        let ids = repository.ids().unwrap().into_iter();
        ids.flat_map(|id| std::fs::read_dir(repository.dir(&id)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.'))
            .collect()
    }

    #[test]
    fn a_half_written_file_is_removed() {
        let signals = Signals::catch().unwrap();
        for format in [Format::Raw, Format::RbdDiff] {
            let mut seen = 0;
            for steps in 0.. {
                let (store, all) = chain(format);
                STEPS.set(steps);
                let dead = killed(store.path(), 3, &signals);
                STEPS.set(u32::MAX);
                if dead.is_ok() {
                    break;
                }
                if parts_left(&store).is_empty() {
                    continue;
                }
                seen += 1;
                // The next program that may change anything removes it: a backup, too.
                drop(Repository::create(store.path()).unwrap());
                assert!(parts_left(&store).is_empty(), "{steps}");
                let kept = &all[all.len() - 3..];
                check(&store, &all, kept, &format!("{steps}, swept"));
                // So does one that is not killed.
                let (store, _) = chain(format);
                STEPS.set(steps);
                prune(store.path(), keeping(3), &signals).unwrap_err();
                STEPS.set(u32::MAX);
                assert!(parts_left(&store).is_empty(), "{steps}");
            }
            assert!(seen > 0, "{format}: {seen}");
        }
    }

    #[test]
    fn a_chain_that_nobody_needs_goes_first() {
        let (store, all) = chain(Format::Raw);
        let (repository, _) = Repository::read(store.path()).unwrap();
        let dropped: Vec<_> = all[..6].iter().map(|(id, _)| id.clone()).collect();
        let oldest = repository.manifest(&all[6].0).unwrap();
        let alone = alone(&repository, &dropped, &oldest).unwrap();
        assert_eq!(alone, [all[1].0.clone(), all[0].0.clone()]);
    }

    #[test]
    fn the_last_backup_of_a_device_is_kept() {
        let signals = Signals::catch().unwrap();
        let store = Store::new(MIB as u64);
        let data = vec![5; MIB];
        store.full_of("vdd", &data);
        let last = store.full_of("vdd", &data);
        for _ in 0..3 {
            store.full(&data);
        }
        let pruned = |forget: &[&str]| {
            let forget: Vec<_> = forget.iter().map(|&name| name.to_owned()).collect();
            let how = How {
                forget: &forget,
                ..keeping(1)
            };
            prune(store.path(), how, &signals).unwrap()
        };
        for forget in [vec![], vec!["vda"]] {
            let report = pruned(&forget);
            let (backup, device) = (last.clone(), "vdd".to_owned());
            assert_eq!(report.last, [Last { backup, device }]);
            assert_eq!(report.kept.len(), 4);
        }
        let report = pruned(&["/dev/vdd"]);
        assert_eq!((report.last.len(), report.kept.len()), (0, 1));
    }

    #[test]
    fn a_damaged_backup_is_not_merged() {
        let (store, all) = chain(Format::Raw);
        let signals = Signals::catch().unwrap();
        let middle = store.path().join(&all[4].0).join("vda.raw-delta");
        std::fs::remove_file(&middle).unwrap();
        let error = prune(store.path(), keeping(2), &signals).unwrap_err();
        assert!(format!("{error:#}").contains("vda.raw"), "{error:#}");
        let (repository, _) = Repository::read(store.path()).unwrap();
        assert_eq!(repository.backups().unwrap().len(), all.len());
    }
}
