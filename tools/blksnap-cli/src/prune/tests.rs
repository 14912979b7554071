// SPDX-License-Identifier: GPL-2.0-or-later

//! Prune with damage at any place, and a stop at any step.

mod devices;
mod links;
mod middle;
mod unread;

use std::cell::Cell;
use std::path::PathBuf;

use blksnap_backup::testing::Store;
use blksnap_backup::{Format, Layer};

use super::*;
use crate::restore::{self, restore};
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
        policy: Policy {
            last: Some(policy::Count::of(keep)),
            ..Policy::default()
        },
        dry_run: false,
        verify: false,
        forget: &[],
    }
}

/// A prune that may be killed: nothing is cleaned up after an error.
fn killed(path: &Path, keep: usize, signals: &Signals) -> Result<Report> {
    killed_with(path, keeping(keep), signals)
}

fn killed_with(path: &Path, how: How<'_>, signals: &Signals) -> Result<Report> {
    steps(&Repository::change(path)?, how, signals)
}

const MIB: usize = 1 << 20;
const SIZE: usize = 3 * MIB;

/// How backups are stored.
#[derive(Clone, Copy, Debug)]
enum Stored {
    As(Format),
    Compressed,
}

impl From<Format> for Stored {
    fn from(format: Format) -> Self {
        Self::As(format)
    }
}

/// An empty directory for such.
fn empty(stored: impl Into<Stored>) -> Store {
    match stored.into() {
        Stored::As(format) => Store::with(SIZE as u64, format),
        Stored::Compressed => Store::compressed(SIZE as u64),
    }
}

/// A chain of backups, and what each should be.
fn chain(stored: impl Into<Stored>) -> (Store, Vec<(String, Vec<u8>)>) {
    let store = empty(stored);
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
        let id = match value {
            8 => store.compared(&base, &data, &[changed]),
            _ => store.incremental(&base, &data, &[changed]),
        };
        all.push((id, data.clone()));
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
fn killed_anywhere(stored: impl Into<Stored> + Copy, keep: usize) {
    let signals = Signals::catch().unwrap();
    let mut steps = 0;
    loop {
        let (store, all) = chain(stored);
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
fn compressed_backups_survive_a_kill_at_any_step() {
    killed_anywhere(Stored::Compressed, 3);
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
fn directories_of_others_are_no_obstacle() {
    let (store, all) = chain(Format::Raw);
    let signals = Signals::catch().unwrap();
    for (id, _) in &all {
        for name in ["@eaDir", ".snapshot"] {
            let dir = store.path().join(id).join(name);
            std::fs::create_dir_all(dir.join("x")).unwrap();
        }
    }
    for keep in [3, 1] {
        prune(store.path(), keeping(keep), &signals).unwrap();
        check(
            &store,
            &all,
            &all[all.len() - keep..],
            "with directories of others",
        );
    }
    drop(Repository::add(store.path()).unwrap());
    let newest = store.path().join(&all[7].0);
    assert!(newest.join("@eaDir/x").exists() && newest.join(".snapshot/x").exists());
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
    let layer = Layer::open(repository.dir(id), device).unwrap();
    let extents = layer.extents.iter().map(Result::unwrap);
    let data = extents.filter(|extent| extent.hash.is_some());
    let data = data.map(|extent| extent.start + 5);
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
    let staying = Staying::of(&repository, all[6..].iter().map(|(id, _)| id.clone()));
    let alone = alone(&staying, &dropped).unwrap();
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
        assert_eq!(report.kept.len(), 2, "it, and the newest");
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
