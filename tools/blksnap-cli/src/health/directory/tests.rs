// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories in each state.

use std::fs;

use blksnap_backup::testing::Store;
use blksnap_backup::{Draft, Verified};
use clap::Parser;

use super::*;
use crate::args::{Args, Command};

const MIB: usize = 1 << 20;
/// When the backups are taken, in seconds since 1970.
const THEN: u64 = 1 << 30;

/// What is found so many hours after the backup.
fn found(store: &Store, options: &str, hours: u64) -> Found {
    let dir = store.path().display().to_string();
    let room = match options.contains("--min-free") {
        true => "",
        false => "--min-free 1",
    };
    let line = format!("blksnap check-health {dir} {room} {options}");
    let Ok(Command::CheckHealth(args)) =
        Args::try_parse_from(line.split_whitespace()).map(|args| args.command)
    else {
        panic!("not parsed: {line}");
    };
    let now = Timestamp::from_second((THEN + hours * 3600) as i64).unwrap();
    let mut found = Found::default();
    look(store.path(), &args, now, &mut found);
    found
}

/// How bad it is, and a text that is told with that level.
fn is(found: &Found, level: Level, text: &str) {
    let all = found.text();
    assert_eq!(found.level(), level, "{all}");
    let mut findings = found.findings.iter();
    let one = findings.any(|one| one.level == level && one.text.contains(text));
    assert!(one, "{text}: {all}");
}

fn store() -> (Store, String) {
    let store = Store::new(MIB as u64);
    store.set_time(THEN);
    let id = store.full(&vec![5; MIB]);
    (store, id)
}

#[test]
fn a_backup_gets_old() {
    let (store, _) = store();
    is(&found(&store, "", 26), Level::Ok, "last backup 26 h ago");
    is(
        &found(&store, "", 27),
        Level::Warning,
        "last backup 27 h ago",
    );
    is(
        &found(&store, "", 51),
        Level::Critical,
        "last backup 2 days ago",
    );
    is(&found(&store, "--max-age 8d", 100), Level::Ok, "4 days");
    is(
        &found(&store, "--max-age 2h", 100),
        Level::Warning,
        "4 days",
    );
    let text = found(&store, "", 1).text();
    let figure = format!("'age {}'=3600s;93600;180000", store.path().display());
    assert!(text.contains(&figure), "{text}");
    let text = found(&store, "", 1).metrics.text();
    let line = format!(
        "\nblksnap_last_backup_timestamp_seconds{{directory=\"{}\"}} {THEN}\n",
        store.path().display()
    );
    assert!(text.contains(&line), "{text}");
}

#[test]
fn where_there_is_none_that_is_critical() {
    let store = Store::new(MIB as u64);
    let none = "is no directory of backups";
    is(&found(&store, "", 0), Level::Critical, none);
    Repository::create(store.path()).unwrap();
    is(&found(&store, "", 0), Level::Critical, "there is no backup");
}

#[test]
fn a_damaged_last_backup_is_critical() {
    let (store, id) = store();
    let next = store.incremental(&id, &vec![5; MIB], &[]);
    let raw = store.path().join(&id).join("vda.raw");
    fs::write(&raw, "short").unwrap();
    let text = format!("the last backup, {next}, is damaged");
    is(&found(&store, "", 0), Level::Critical, &text);
    let manifest = store.path().join(&next).join("manifest.json");
    fs::write(manifest, "{").unwrap();
    is(&found(&store, "", 0), Level::Critical, &text);
}

#[test]
fn what_failed_is_a_warning_until_one_is_made() {
    let (store, _) = store();
    let repository = || Repository::add(store.path()).unwrap();
    repository().note_failed("the snapshot was lost").unwrap();
    let failed = "ago: the snapshot was lost";
    is(&found(&store, "", 1), Level::Warning, failed);
    repository().forget_failed().unwrap();
    is(&found(&store, "", 1), Level::Ok, "last backup");
    {
        let repository = repository();
        let id = "20261124T201629Z-00000001";
        let draft = Draft::new(&repository, id.into()).unwrap();
        is(&found(&store, "", 1), Level::Ok, "a backup is being made");
        std::mem::forget(draft);
    }
    let left = "interrupted: .partial-20261124T201629Z-00000001";
    is(&found(&store, "", 1), Level::Warning, left);
}

#[test]
fn while_it_is_pruned_the_time_is_that_of_the_name() {
    let (store, _) = store();
    let _prune = Repository::change(store.path()).unwrap();
    // Its name is made of the time when it was committed, which is the same here.
    is(&found(&store, "", 1), Level::Ok, "is being pruned");
    is(
        &found(&store, "", 27),
        Level::Warning,
        "last backup 27 h ago",
    );
}

#[test]
fn a_verification_gets_old_too() {
    let (store, id) = store();
    let repository = Repository::add(store.path()).unwrap();
    is(&found(&store, "", 1), Level::Ok, "last backup");
    let old = "--max-verify-age 30d,60d --max-age 9y";
    is(&found(&store, old, 1), Level::Warning, "was never verified");
    let note = |damaged| {
        let (unix_s, newest) = (THEN, id.clone());
        let verified = Verified {
            unix_s,
            newest,
            damaged,
        };
        repository.note_verified(&verified).unwrap();
    };
    note(0);
    is(&found(&store, old, 24), Level::Ok, "verified 24 h ago");
    is(&found(&store, old, 24 * 31), Level::Warning, "31 days ago");
    is(&found(&store, old, 24 * 61), Level::Critical, "61 days ago");
    note(2);
    is(&found(&store, "", 1), Level::Critical, "damage in 2 places");
}

#[test]
fn too_little_room_is_told() {
    let (store, _) = store();
    let full = |options| found(&store, options, 1);
    is(&full("--min-free 16383P"), Level::Warning, "are free");
    is(
        &full("--min-free 16383P,16382P"),
        Level::Critical,
        "are free",
    );
    is(&full("--min-free 0%"), Level::Ok, "are free");
}
