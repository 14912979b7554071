// SPDX-License-Identifier: GPL-2.0-or-later

//! Backups of several devices, each with a chain of its own: full in one backup and incremental in
//! another, compared, added and removed.

use std::collections::BTreeMap;

use blksnap_backup::Kind;
use blksnap_backup::testing::Made;

use super::*;

const GRAIN: usize = 65536;
const SIZE: usize = 6 * GRAIN;

/// A backup: its name, and what was on each of its devices.
type Backup = (String, BTreeMap<&'static str, Vec<u8>>);

/// What each backup has of `vda` to `vdd`: full, incremental, compared, or nothing.
const KINDS: [&str; 7] = ["fff.", "iiif", "fic.", "ii.f", "ifii", "icci", "iiii"];

fn store(format: Format) -> (Store, Vec<Backup>) {
    let store = Store::with(SIZE as u64, format);
    let mut now: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut all: Vec<Backup> = Vec::new();
    for (day, kinds) in KINDS.iter().enumerate() {
        let mut changes = Vec::new();
        for (index, (name, kind)) in ["vda", "vdb", "vdc", "vdd"]
            .into_iter()
            .zip(kinds.chars())
            .enumerate()
        {
            let kind = match kind {
                'f' => Kind::Full,
                'i' => Kind::Incremental,
                'c' => Kind::Compared,
                _ => continue,
            };
            let data = now
                .entry(name)
                .or_insert_with(|| (0..SIZE).map(|at| ((at * 7) >> 3) as u8 | 1).collect());
            let known = all.last().is_some_and(|(_, last)| last.contains_key(name));
            // A device that comes back has no base.
            let kind = if known { kind } else { Kind::Full };
            let at = (day * 3 + index * 2) % 5 * GRAIN;
            let value = if (day + index) % 3 == 0 {
                0
            } else {
                (day * 8 + index) as u8
            };
            data[at..at + GRAIN + 4096].fill(value);
            let changed = vec![at as u64..(at + GRAIN + 4096) as u64];
            changes.push((name, kind, data.clone(), changed));
        }
        let made: Vec<_> = changes
            .iter()
            .map(|(name, kind, data, changed)| Made {
                name,
                kind: *kind,
                data,
                changed,
            })
            .collect();
        store.set_time(day as u64 * 86400);
        let id = store.make(all.last().map(|(id, _)| id.as_str()), &made);
        let states = changes.into_iter().map(|(name, _, data, _)| (name, data));
        all.push((id, states.collect()));
    }
    (store, all)
}

/// All devices of all backups that are listed are as they should be, and those of `kept` are there.
fn check(store: &Store, all: &[Backup], kept: &[&Backup], when: &str) {
    let signals = Signals::catch().unwrap();
    let (repository, _) = Repository::read(store.path()).unwrap();
    let listed: Vec<_> = repository.backups().unwrap();
    let has = |id: &str| listed.iter().any(|(listed, _)| listed == id);
    for (id, _) in kept {
        assert!(has(id), "{when}: {id} has gone");
    }
    for (id, read) in &listed {
        read.as_ref().unwrap();
        let (_, states) = all.iter().find(|(other, _)| other == id).unwrap();
        let out = |name: &str| store.path().join(format!(".out-{name}"));
        let to: Vec<_> = states
            .keys()
            .map(|name| format!("{name}={}", out(name).display()))
            .collect();
        let how = restore::How::default();
        restore(&store.path().join(id), &to, how, &signals).expect(when);
        for (name, data) in states {
            assert!(
                std::fs::read(out(name)).unwrap() == *data,
                "{when}: {name} of {id}"
            );
            std::fs::remove_file(out(name)).unwrap();
        }
    }
    let report = verify(store.path(), &signals).unwrap();
    assert!(report.damage.is_empty(), "{when}: {report:?}");
}

fn keeping_some(last: usize, weekly: Option<usize>) -> How<'static> {
    How {
        policy: Policy {
            last: Some(policy::Count::of(last)),
            weekly: weekly.map(policy::Count::of),
            ..Policy::default()
        },
        ..keeping(1)
    }
}

/// Kills a prune before each of its steps; then another one; then one is done.
fn killed_anywhere(format: Format, how: How<'static>, kept: &[usize]) {
    let signals = Signals::catch().unwrap();
    for steps in 0.. {
        let (store, all) = store(format);
        let kept: Vec<_> = kept.iter().map(|&index| &all[index]).collect();
        STEPS.set(steps);
        let first = killed_with(store.path(), how, &signals);
        STEPS.set(u32::MAX);
        let when = match &first {
            Ok(_) => format!("{format}, {steps} steps, done"),
            Err(error) => format!("{format}, {steps} steps, {error:#}"),
        };
        check(&store, &all, &kept, &when);
        if first.is_err() && steps % 3 == 0 {
            STEPS.set(steps / 2);
            let _ = killed_with(store.path(), how, &signals);
            STEPS.set(u32::MAX);
            check(&store, &all, &kept, &format!("{when}, again"));
        }
        let report = prune(store.path(), how, &signals).unwrap();
        let ids: Vec<_> = kept.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(report.kept, ids, "{when}");
        check(&store, &all, &kept, &format!("{when}, then done"));
        let (repository, _) = Repository::read(store.path()).unwrap();
        assert_eq!(repository.ids().unwrap(), ids, "{when}");
        for (id, states) in &kept {
            let names = std::fs::read_dir(repository.dir(id)).unwrap().count();
            assert_eq!(names, 1 + 2 * states.len(), "{when}: {id}");
        }
        if first.is_ok() {
            assert!(steps > 10, "only {steps} steps");
            return;
        }
    }
}

#[test]
fn chains_of_several_devices_are_merged_whatever_happens() {
    for format in [Format::Raw, Format::Qcow2, Format::RbdDiff] {
        killed_anywhere(format, keeping_some(2, None), &[5, 6]);
    }
}

#[test]
fn the_same_between_others() {
    // Days 3 is a Sunday, so the last of its week.
    for format in [Format::Raw, Format::Qcow2, Format::RbdDiff] {
        killed_anywhere(format, keeping_some(1, Some(2)), &[3, 6]);
    }
}
