// SPDX-License-Identifier: GPL-2.0-or-later

//! Backups dropped between others.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Backups one day after another.
fn daily(
    stored: impl Into<Stored>,
    changes: &[Option<(usize, usize, u8)>],
) -> (Store, Vec<(String, Vec<u8>)>) {
    let store = empty(stored);
    let mut data: Vec<u8> = (0..SIZE).map(|i| ((i * 5) >> 4) as u8).collect();
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (day, change) in changes.iter().enumerate() {
        store.set_time(day as u64 * 86400);
        let id = match (change, all.last()) {
            (Some((at, length, value)), Some((base, _))) => {
                data[*at..at + length].fill(*value);
                let changed = *at as u64..(at + length) as u64;
                match value {
                    6 => store.compared(base, &data, &[changed]),
                    _ => store.incremental(base, &data, &[changed]),
                }
            }
            _ => store.full(&data),
        };
        all.push((id, data.clone()));
    }
    (store, all)
}

fn weekly(weeks: usize) -> How<'static> {
    let policy = Policy {
        weekly: Some(policy::Count::of(weeks)),
        last: Some(policy::Count::of(2)),
        ..Policy::default()
    };
    How {
        policy,
        ..keeping(1)
    }
}

/// 1970 begins with a Thursday: the Sundays are the days 3, 10 and 17.
const CHANGES: [Option<(usize, usize, u8)>; 13] = [
    None,
    Some((0, 65536, 1)),
    Some((65536, 131_072, 0)),
    Some((0, 65536, 2)),
    Some((MIB, 196_608, 3)),
    Some((MIB + 65536, 65536, 0)),
    Some((131_072, 65536, 4)),
    Some((MIB, 65536, 5)),
    Some((2 * MIB, MIB, 0)),
    Some((2 * MIB + 65536, 65536, 6)),
    Some((MIB + 131_072, 131_072, 7)),
    Some((0, 131_072, 8)),
    Some((65536, 65536, 9)),
];

fn killed_between(stored: impl Into<Stored> + Copy) {
    let signals = Signals::catch().unwrap();
    for steps in 0.. {
        let (store, all) = daily(stored, &CHANGES);
        let kept: Vec<_> = [3, 10, 11, 12].map(|day| all[day].clone()).into();
        STEPS.set(steps);
        let first = killed_with(store.path(), weekly(3), &signals);
        STEPS.set(u32::MAX);
        let when = match &first {
            Ok(_) => format!("{steps} steps, done"),
            Err(error) => format!("{steps} steps, {error:#}"),
        };
        check(&store, &all, &kept, &when);
        if first.is_err() && steps % 2 == 0 {
            // Others are kept then, and it is killed elsewhere.
            STEPS.set(steps / 2);
            let _ = killed(store.path(), 3, &signals);
            STEPS.set(u32::MAX);
            check(&store, &all, &kept[1..], &format!("{when}, again"));
            prune(store.path(), keeping(2), &signals).unwrap();
            check(&store, &all, &kept[2..], &format!("{when}, fewer"));
            continue;
        }
        let report = prune(store.path(), weekly(3), &signals).unwrap();
        assert_eq!(report.kept.len(), 4);
        check(&store, &all, &kept, &format!("{when}, then done"));
        let (repository, _) = Repository::read(store.path()).unwrap();
        assert_eq!(repository.ids().unwrap(), report.kept);
        let second = repository.manifest(&kept[1].0).unwrap();
        assert_eq!(second.base.as_ref(), Some(&kept[0].0));
        for id in &report.kept {
            let names = std::fs::read_dir(repository.dir(id)).unwrap().count();
            assert_eq!(names, 3, "{when}: the data, the extents, the manifest");
        }
        if first.is_ok() {
            assert!(steps > 20, "only {steps} steps");
            return;
        }
    }
}

#[test]
fn raw_backups_between_others_go_whatever_happens() {
    killed_between(Format::Raw);
}

#[test]
fn qcow2_backups_between_others_go_whatever_happens() {
    killed_between(Format::Qcow2);
}

#[test]
fn compressed_backups_between_others_go_whatever_happens() {
    killed_between(Stored::Compressed);
}

#[test]
fn rbd_diff_backups_between_others_go_whatever_happens() {
    killed_between(Format::RbdDiff);
}

#[test]
fn an_overlay_names_its_new_base() {
    let signals = Signals::catch().unwrap();
    let (store, all) = daily(Format::Qcow2, &CHANGES);
    prune(store.path(), weekly(3), &signals).unwrap();
    let file = store.path().join(&all[10].0).join("vda.qcow2");
    let layer = blksnap_backup::format::qcow2::Layer::open(&file).unwrap();
    let base = format!("../{}/vda.qcow2", all[3].0);
    assert_eq!(layer.backing(), Some(&*base));
}

#[test]
fn what_was_compressed_stays_so() {
    let signals = Signals::catch().unwrap();
    let (store, all) = daily(Stored::Compressed, &CHANGES);
    let file = |day: usize| store.path().join(&all[day].0).join("vda.qcow2");
    let full = file(0).metadata().unwrap().blocks() * 512;
    assert!(full < SIZE as u64 / 2, "{full}");
    let report = prune(store.path(), weekly(3), &signals).unwrap();
    assert!(report.merged[0].in_place, "{report:?}");
    // The first was merged into, the second is a new file.
    for day in [3, 10] {
        let file = file(day);
        assert!(Format::Qcow2.is_compressed(&file).unwrap());
        let takes = file.metadata().unwrap().blocks() * 512;
        assert!(takes < SIZE as u64 / 2, "{day}: {takes}");
    }
    check(&store, &all, &[], "pruned");
}

#[test]
fn two_that_are_based_on_one_do_not_spoil_it() {
    let signals = Signals::catch().unwrap();
    for format in [Format::Raw, Format::Qcow2, Format::RbdDiff] {
        let (store, mut all) = daily(format, &CHANGES[..4]);
        // The newest was removed by hand, and another was made, more than once.
        let mut data = all[2].1.clone();
        data[0..MIB].fill(77);
        store.set_time(20 * 86400);
        let branch = store.incremental(&all[2].0, &data, &[0..MIB as u64]);
        all.push((branch, data));
        let report = prune(store.path(), keeping(2), &signals).unwrap();
        check(&store, &all, &all[3..], "branches");
        assert_eq!(report.merged.len(), 2);
        let (repository, _) = Repository::read(store.path()).unwrap();
        assert_eq!(repository.ids().unwrap(), report.kept);
    }
}

#[test]
fn whatever_is_kept_is_what_it_was() {
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        ..Config::default()
    });
    let grain = 65536;
    let change = (0..SIZE / grain, 1..12usize, 0..4u8).prop_map(move |(at, length, value)| {
        let at = at * grain;
        (at, (length * grain).min(SIZE - at), value)
    });
    let change = prop_oneof![1 => Just(None), 6 => change.prop_map(Some)];
    let changes = prop::collection::vec(change, 2..16);
    let rules = prop::collection::vec((1..4usize, 0..5usize, 0..4usize, 0..60u32), 1..4);
    let formats = prop_oneof![
        Just(Format::Raw.into()),
        Just(Format::Qcow2.into()),
        Just(Stored::Compressed),
        Just(Format::RbdDiff.into())
    ];
    let signals = Signals::catch().unwrap();
    let all = (changes, rules, formats);
    let result = runner.run(&all, |(changes, rules, stored)| {
        let (store, all) = daily(stored, &changes);
        for (last, weeks, months, steps) in rules {
            let some = |count| (count > 0).then(|| policy::Count::of(count));
            let policy = Policy {
                last: some(last),
                weekly: some(weeks),
                monthly: some(months),
                ..Policy::default()
            };
            let how = How {
                policy,
                ..keeping(1)
            };
            STEPS.set(steps);
            let first = killed_with(store.path(), how, &signals);
            STEPS.set(u32::MAX);
            check(&store, &all, &[], &format!("{first:?}"));
            let report = prune(store.path(), how, &signals).unwrap();
            let kept = all.iter().filter(|(id, _)| report.kept.contains(id));
            let kept: Vec<_> = kept.cloned().collect();
            assert_eq!(kept.len(), report.kept.len());
            check(&store, &all, &kept, "done");
            let (repository, _) = Repository::read(store.path()).unwrap();
            assert_eq!(repository.ids().unwrap(), report.kept);
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn what_an_older_one_has_left_out_is_still_known() {
    let signals = Signals::catch().unwrap();
    let (store, all) = daily(Format::Raw, &CHANGES[..3]);
    // Of the zeros of the full one, nothing was used.
    let dir = store.path().join(&all[0].0);
    let mut full = Manifest::read(&dir).unwrap();
    full.devices[0].unused_bytes = 65536;
    full.write(&dir).unwrap();
    prune(store.path(), keeping(1), &signals).unwrap();
    // Who compares it with the device needs to know: it may be in use again, and have anything there.
    let (repository, _) = Repository::read(store.path()).unwrap();
    let kept = repository.manifest(&all[2].0).unwrap();
    assert_eq!(kept.devices[0].unused_bytes, 65536);
}
