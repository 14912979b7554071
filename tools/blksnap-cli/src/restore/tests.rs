// SPDX-License-Identifier: GPL-2.0-or-later

//! Restores of chains, damaged ones, and by names.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use blksnap_backup::testing::{Store, device};
use uuid::Uuid;

use super::*;
use crate::signals::Interrupted;

const SIZE: usize = 9 << 20;

fn to(store: &Store, backup: &str, target: &str) -> Result<Vec<u8>> {
    let path = store.path().join(target);
    let targets = [format!("vda={}", path.display())];
    let from = store.path().join(backup);
    let signals = Signals::catch()?;
    let would = How {
        dry_run: true,
        ..How::default()
    };
    // What can be seen without reading is seen before; and nothing is made.
    let dry = restore(&from, &targets, would, &signals);
    assert!(!target.starts_with("out") || !path.exists());
    dry?;
    restore(&from, &targets, How::default(), &signals)?;
    let mode = path.metadata()?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for the owner alone");
    let read = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    Ok(read)
}

#[test]
fn every_backup_of_a_chain_is_restored() {
    let store = Store::new(SIZE as u64);
    let mut data: Vec<u8> = (0..SIZE).map(|i| ((i * 7) >> 3) as u8 | 1).collect();
    data[3 << 20..7 << 20].fill(0);
    let mut all = vec![(store.full(&data), data.clone())];
    for (at, value, length) in [(100, 0, 70_000), (5 << 20, 9, 65536), (5 << 20, 0, 4096)] {
        data[at..at + length].fill(value);
        let changed = at as u64..(at + length) as u64;
        let base = all.last().unwrap().0.clone();
        let id = store.incremental(&base, &data, &[changed]);
        all.push((id, data.clone()));
    }
    for (id, data) in &all {
        assert!(to(&store, id, "out").unwrap() == *data, "{id}");
    }
    // The newest, by the directory of all.
    assert!(to(&store, "", "out").unwrap() == data);
}

#[test]
fn a_restore_keeps_to_its_rate() {
    let store = Store::new(SIZE as u64);
    store.full(&vec![3; SIZE]);
    let target = store.path().join("out").display().to_string();
    let signals = Signals::catch().unwrap();
    let how = How {
        rate: Some("16M".parse().unwrap()),
        ..How::default()
    };
    let start = Instant::now();
    restore(store.path(), &[target], how, &signals).unwrap();
    // Before the last of nine pieces, eight are waited for.
    let least = Duration::from_millis(500);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

#[test]
fn a_flipped_bit_is_found_and_nothing_is_left() {
    let store = Store::new(SIZE as u64);
    let data = vec![3; SIZE];
    let full = store.full(&data);
    store.incremental(&full, &data, std::slice::from_ref(&(0..65536)));
    let raw = store.path().join(&full).join("vda.raw");
    let mut bytes = std::fs::read(&raw).unwrap();
    bytes[5 << 20] ^= 1;
    std::fs::write(&raw, bytes).unwrap();
    let error = format!("{:#}", to(&store, "", "out").unwrap_err());
    let place = format!("{full}/vda.raw is damaged: 1048576 bytes at byte 5242880");
    assert!(error.contains(&place), "{error}");
    assert!(!store.path().join("out").exists());
}

#[test]
fn what_is_good_is_restored_and_the_rest_is_named() {
    let store = Store::new(SIZE as u64);
    let mut data = vec![3; SIZE];
    let full = store.full(&data);
    data[5 << 20..(5 << 20) + 65536].fill(4);
    let changed = 5 << 20..(5 << 20) + 65536;
    let next = store.incremental(&full, &data, std::slice::from_ref(&changed));
    let raw = store.path().join(&full).join("vda.raw");
    let whole = std::fs::read(&raw).unwrap();
    let mut bytes = whole.clone();
    bytes[2 << 20] ^= 1;
    // Half of it is hidden by the newer one, which is good.
    bytes[(5 << 20) + 7] ^= 1;
    std::fs::write(&raw, bytes).unwrap();
    let signals = Signals::catch().unwrap();
    let out = store.path().join("out");
    let go = |backup: &str, keep_going| {
        let how = How {
            keep_going,
            ..How::default()
        };
        let to = [out.display().to_string()];
        restore(&store.path().join(backup), &to, how, &signals)
    };
    assert!(go(&next, false).is_err() && !out.exists());
    let mut reports = go(&next, true).unwrap();
    let lost = |report: &Report| -> Vec<_> {
        let damage = report.damage.iter();
        damage.map(|one| (one.start, one.length)).collect()
    };
    let mib = 1 << 20;
    assert_eq!(
        lost(&reports[0]),
        [(2 * mib, mib), (5 * mib + 65536, mib - 65536)]
    );
    assert_eq!(reports[0].bytes_written, SIZE as u64 - 2 * mib + 65536);
    assert!(reports[0].damage[0].what.contains("vda.raw is damaged"));
    let mut expected = data.clone();
    expected[2 << 20..3 << 20].fill(0);
    expected[(5 << 20) + 65536..6 << 20].fill(0);
    assert!(std::fs::read(&out).unwrap() == expected);
    // A file that ends too early, and one that is not there.
    std::fs::write(&raw, &whole[..8 << 20]).unwrap();
    std::fs::remove_file(&out).unwrap();
    reports = go(&next, true).unwrap();
    assert_eq!(lost(&reports[0]), [(8 * mib, mib)]);
    std::fs::remove_file(&raw).unwrap();
    std::fs::remove_file(&out).unwrap();
    reports = go(&next, true).unwrap();
    assert_eq!(reports[0].bytes_written, 65536);
    // Without damage, nothing is different.
    std::fs::write(&raw, &whole).unwrap();
    std::fs::remove_file(&out).unwrap();
    reports = go(&next, true).unwrap();
    assert_eq!(reports[0].damage, []);
    assert!(std::fs::read(&out).unwrap() == data);
    std::fs::remove_file(&out).unwrap();
}

#[test]
fn a_signal_leaves_no_part_of_a_file() {
    let store = Store::new(SIZE as u64);
    store.full(&vec![3; SIZE]);
    let out = store.path().join("out");
    let targets = [out.display().to_string()];
    let signals = Signals::after(15);
    let error = restore(store.path(), &targets, How::default(), &signals).unwrap_err();
    assert_eq!(
        error.downcast_ref::<Interrupted>(),
        Some(&Interrupted { signal: 15 })
    );
    assert!(!out.exists());
}

#[test]
fn what_is_wrong_is_said_before_anything_is_written() {
    let store = Store::new(SIZE as u64);
    let data = vec![3; SIZE];
    let full = store.full(&data);
    let next = store.incremental(&full, &data, &[]);
    let (full_dir, next_dir) = (store.path().join(&full), store.path().join(&next));
    let fails = |backup: &str, target: &str, why: &str| {
        let error = format!("{:#}", to(&store, backup, target).unwrap_err());
        assert!(error.contains(why), "{why}: {error}");
        assert!(!store.path().join("out").exists());
    };
    fails("", "/dev/nonexistent", "no such device");
    fails("", "/etc/passwd", "exists and is not a block device");
    fails("", "/proc/self", "exists and is not a block device");
    fails("20200101T000000Z-00000000", "out", "there is no backup");
    let raw = full_dir.join("vda.raw");
    let whole = std::fs::read(&raw).unwrap();
    std::fs::write(&raw, &whole[..SIZE - 1]).unwrap();
    fails("", "out", "has 9437183 bytes in place of 9437184");
    std::fs::remove_file(&raw).unwrap();
    fails("", "out", "vda.raw: No such file");
    std::fs::write(&raw, &whole).unwrap();
    let manifest = next_dir.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"version\": 1", "\"version\": 3")).unwrap();
    fails("", "out", "newer blksnap");
    fails("", "out", "name an older one");
    std::fs::write(&manifest, text).unwrap();
    std::fs::rename(&full_dir, store.path().join("away")).unwrap();
    fails("", "out", &format!("its base {full} is missing"));
    let empty = tempfile::tempdir().unwrap();
    let none = restore(
        empty.path(),
        &["/tmp/x".into()],
        How::default(),
        &Signals::catch().unwrap(),
    );
    assert!(
        none.unwrap_err()
            .to_string()
            .contains("is no directory of backups")
    );
}

#[test]
fn each_device_has_one_target() {
    let devices = vec![device("vda"), device("vdb")];
    let manifest = Manifest::new(String::new(), Uuid::nil(), [0, 0], devices);
    let paired = |to: &[&str]| {
        let to: Vec<_> = to.iter().map(|to| (*to).to_owned()).collect();
        let pairs = pair(&manifest, &to).map_err(|error| format!("{error:#}"))?;
        Ok(pairs
            .into_iter()
            .map(|(d, to)| (d.name.clone(), to.path().to_owned()))
            .collect::<Vec<_>>())
    };
    assert_eq!(
        paired(&["/dev/vdb=/tmp/x", "vda=/tmp/y"]),
        Ok(vec![
            ("vdb".into(), "/tmp/x".into()),
            ("vda".into(), "/tmp/y".into())
        ])
    );
    assert_eq!(
        paired(&["vda=/tmp/vdb=x"]),
        Ok(vec![("vda".into(), "/tmp/vdb=x".into())])
    );
    for (to, why) in [
        (vec!["vdx=/tmp/x"], "no such device, but vda, vdb"),
        (vec!["/dev/vdx=/tmp/x"], "no such device, but vda, vdb"),
        (
            vec!["vda=-"],
            "only one device can be written to standard output",
        ),
        (vec!["vda="], "no target"),
        (vec!["UUID=x"], "which device"),
        (vec!["vda=UUID=x"], "no device `UUID=x`"),
        (vec!["/tmp/x"], "the backup has vda, vdb"),
        (vec!["vda=/tmp/x", "vda=/tmp/y"], "two targets"),
        (vec!["vda=/tmp/x", "vdb=/tmp/x"], "target of two"),
    ] {
        let error: String = paired(&to).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    // With one device, too: the name of a device is not that of a file.
    let manifest = Manifest::new(String::new(), Uuid::nil(), [0, 0], vec![device("vda")]);
    for (to, why) in [
        ("vdb=/tmp/x", "no such device, but vda"),
        ("/tmp/a=b", "no such device, but vda"),
        ("-", "only one device can be written to standard output"),
        ("UUID=x", "no device `UUID=x`"),
    ] {
        let error = format!("{:#}", pair(&manifest, &[to.into()]).err().unwrap());
        assert!(error.contains(why), "{error}");
    }
}
