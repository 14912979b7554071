// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories of backups that share files with others.

use std::process::Command;

use super::*;

/// A copy made of links, as people keep one of yesterday's.
fn linked(store: &Store) -> tempfile::TempDir {
    let copy = blksnap_backup::testing::test_dir();
    let linked = Command::new("cp")
        .args(["-al", "--"])
        .arg(store.path().join("."))
        .arg(copy.path())
        .status();
    assert!(linked.unwrap().success());
    copy
}

/// All that a directory has, with what is in its files.
fn content(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(content(&path)),
            false => all.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all.sort();
    all
}

#[test]
fn a_copy_made_of_links_stays_as_it_was() {
    let signals = Signals::catch().unwrap();
    for stored in [
        Stored::As(Format::Raw),
        Stored::As(Format::Qcow2),
        Stored::As(Format::RbdDiff),
        Stored::Compressed,
    ] {
        for keep in [2, 6] {
            let (store, all) = chain(stored);
            let copy = linked(&store);
            let report = verify(copy.path(), &signals).unwrap();
            assert!(report.damage.is_empty(), "{stored:?}: {report:?}");
            let before = content(copy.path());
            prune(store.path(), keeping(keep), &signals).unwrap();
            check(&store, &all, &all[all.len() - keep..], "beside a copy");
            let changed: Vec<_> = content(copy.path())
                .into_iter()
                .zip(before)
                .filter(|(now, then)| now != then)
                .map(|(now, _)| now.0)
                .collect();
            assert!(changed.is_empty(), "{stored:?}, {keep}: {changed:?}");
        }
    }
}
