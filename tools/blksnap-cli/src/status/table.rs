// SPDX-License-Identifier: GPL-2.0-or-later

//! The status for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::read::{Captured, Failure, Flavour, Holder, Phase, Snapshot, Status, Tracker};
use crate::size::Size;

/// All of it, as it is at a time.
pub fn table(status: &Status, now: SystemTime) -> String {
    let flavour = match status.flavour {
        Flavour::Tree => "",
        Flavour::Stock => " (stock)",
    };
    let mut lines = vec![
        format!(
            "module version {}{flavour}, kernel {}",
            status.module, status.kernel
        ),
        String::new(),
    ];
    if status.trackers.is_empty() {
        lines.push("no device is tracked".into());
    } else {
        let head = [
            "DEVICE", "NUMBER", "SIZE", "BLOCK", "TRACKED", "LAST", "SNAPSHOT",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(status.trackers.iter().map(|tracker| row(tracker, now)));
        lines.extend(aligned(&rows));
    }
    if status.snapshots.is_empty() {
        lines.extend([String::new(), "no snapshot".into()]);
    }
    for snapshot in &status.snapshots {
        lines.push(String::new());
        lines.extend(paragraph(snapshot, now));
    }
    lines.join("\n")
}

/// The line of a tracker.
fn row(tracker: &Tracker, now: SystemTime) -> Vec<String> {
    let last = match tracker.snap_number {
        0 => "-".into(),
        number => number.to_string(),
    };
    vec![
        tracker.device.display().to_string(),
        tracker.number.clone(),
        Size(tracker.size).to_string(),
        Size(tracker.block_size.into()).to_string(),
        age(tracker.since, now),
        last,
        tracker
            .snapshot
            .map_or("-".into(), |id| short(&id.to_string())),
    ]
}

/// Enough of an id to tell it from others.
fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

/// The lines of a snapshot.
fn paragraph(snapshot: &Snapshot, now: SystemTime) -> Vec<String> {
    let state = match (snapshot.state, snapshot.taken) {
        (Phase::Created, _) => format!("created {}, not taken yet", ago(snapshot.created, now)),
        (Phase::Taken, _) => format!("taken {}", ago(snapshot.taken, now)),
        (Phase::Corrupted, None) => format!("CORRUPTED, created {}", ago(snapshot.created, now)),
        (Phase::Corrupted, taken) => format!("CORRUPTED, taken {}", ago(taken, now)),
    };
    let mut lines = vec![format!("snapshot {}: {state}", snapshot.id)];
    if let Some(error) = &snapshot.error {
        lines.extend(failure(error));
    }
    if let Some(owner) = snapshot.owner.as_ref().filter(|owner| !owner.alive) {
        lines.extend(orphan(snapshot, owner));
    }
    let storage = &snapshot.storage;
    if let (Some(used), Some(size)) = (storage.used, storage.size) {
        let mut line = format!("  storage: {} used of {}", Size(used), Size(size));
        if let Some(requested) = storage.requested.filter(|&requested| requested > size) {
            line += &format!("; waits for {} more", Size(requested - size));
        }
        lines.push(line);
    }
    if let (Some(copied), Phase::Taken | Phase::Corrupted) = (snapshot.bytes_copied, snapshot.state)
    {
        let mut parts = vec![format!("{} of old data", Size(copied))];
        parts.extend(
            snapshot
                .writes_held
                .map(|count| counted(count, "write held", "writes held")),
        );
        parts.extend(
            snapshot
                .copies_in_flight
                .map(|count| counted(count, "copy in flight", "copies in flight")),
        );
        parts.extend(
            snapshot
                .memory
                .map(|bytes| format!("{} of memory", Size(bytes))),
        );
        lines.push(format!("  copied: {}", parts.join(", ")));
    }
    let rows: Vec<_> = snapshot.devices.iter().map(place).collect();
    for (line, device) in aligned(&rows).into_iter().zip(&snapshot.devices) {
        lines.push(format!("  {line}"));
        lines.extend(device.error.iter().flat_map(failure));
    }
    lines
}

/// A number of things.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// An image and its original.
fn place(device: &Captured) -> Vec<String> {
    let image = match &device.image {
        Some(image) => image.display().to_string(),
        None => "no image yet".into(),
    };
    vec![image, format!("of {}", device.device.display())]
}

/// What it means that the process of a snapshot has ended, and what to do.
fn orphan(snapshot: &Snapshot, owner: &Holder) -> [String; 2] {
    let storage = owner.storage.display();
    [
        format!(
            "  owner gone: process {} has ended, and nobody gives it storage",
            owner.pid
        ),
        format!(
            "  to do: blksnap snapshot_destroy -i {}; its files {storage}blksnap-{0}-* (immutable: chattr -i) are \
             removed by the next blksnap with --storage {storage}, which also ends the snapshot",
            snapshot.id
        ),
    ]
}

/// What an error means, and what to do.
fn failure(error: &Failure) -> [String; 2] {
    [
        format!("  error {}: {}", error.errno, error.meaning),
        format!("  to do: {}", error.advice),
    ]
}

/// Rows with columns of one width, two spaces apart.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// How long ago a time was, in words.
fn ago(time: Option<u64>, now: SystemTime) -> String {
    match time {
        Some(_) => format!("{} ago", age(time, now)),
        None => "at an unknown time".into(),
    }
}

/// How long ago a time was, in the two largest units.
fn age(time: Option<u64>, now: SystemTime) -> String {
    let Some(time) = time else {
        return "?".into();
    };
    let then = UNIX_EPOCH + Duration::from_secs(time);
    // The clock may have been set back.
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    let units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)];
    let first = units.iter().position(|&(_, unit)| seconds >= unit);
    let Some(first) = first else {
        return "0 s".into();
    };
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (name, unit) in &units[first..(first + 2).min(units.len())] {
        if rest / unit > 0 {
            parts.push(format!("{} {name}", rest / unit));
        }
        rest %= unit;
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::read::Storage;
    use super::*;

    #[test]
    fn an_age_has_two_units() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (3 * 3600 + 62, "3 h 1 min"),
            (86400 + 59, "1 d"),
            (90000, "1 d 1 h"),
        ] {
            assert_eq!(age(Some(1_000_000 - seconds), now), text);
        }
        assert_eq!(age(Some(2_000_000), now), "0 s");
        assert_eq!(age(None, now), "?");
    }

    #[test]
    fn a_person_sees_what_is_wrong_and_what_to_do() {
        let tracker = Tracker {
            device: "/dev/vda".into(),
            number: "254:0".into(),
            since: Some(1000),
            size: 1 << 30,
            block_size: 65536,
            blocks: 16384,
            generation: Uuid::nil(),
            snap_number: 3,
            map_memory: None,
            snapshot: Some(Uuid::nil()),
        };
        let full = || Failure {
            errno: 28,
            meaning: "full".into(),
            advice: "take it again",
        };
        let snapshot = Snapshot {
            id: Uuid::nil(),
            interface: 1,
            state: Phase::Corrupted,
            error: Some(full()),
            created: Some(1000),
            taken: Some(1060),
            stopped_ns: Some(1),
            storage: Storage {
                size: Some(16 << 20),
                used: Some(16 << 20),
                requested: Some(32 << 20),
            },
            bytes_copied: Some(15 << 20),
            copies_in_flight: Some(0),
            writes_held: Some(1),
            reads_retried: Some(0),
            memory: Some(4096),
            events: Some(0),
            owner: Some(Holder {
                pid: 77,
                alive: false,
                storage: "/mnt/".into(),
            }),
            devices: vec![Captured {
                device: "/dev/vda".into(),
                number: "254:0".into(),
                image: Some("/dev/blksnap-image0".into()),
                image_number: Some("251:0".into()),
                error: Some(full()),
            }],
        };
        let status = Status {
            module: "1.0.0.0".into(),
            flavour: Flavour::Tree,
            kernel: "7.3.4".into(),
            trackers: vec![tracker],
            snapshots: vec![snapshot],
        };
        let text = table(&status, UNIX_EPOCH + Duration::from_secs(1070));
        let wanted = "\
module version 1.0.0.0, kernel 7.3.4

DEVICE    NUMBER  SIZE      BLOCK     TRACKED     LAST  SNAPSHOT
/dev/vda  254:0   1.00 GiB  64.0 KiB  1 min 10 s  3     00000000

snapshot 00000000-0000-0000-0000-000000000000: CORRUPTED, taken 10 s ago
  error 28: full
  to do: take it again
  owner gone: process 77 has ended, and nobody gives it storage
  to do: blksnap snapshot_destroy -i 00000000-0000-0000-0000-000000000000; its files \
/mnt/blksnap-00000000-0000-0000-0000-000000000000-* (immutable: chattr -i) are removed by the next blksnap with \
--storage /mnt/, which also ends the snapshot
  storage: 16.0 MiB used of 16.0 MiB; waits for 16.0 MiB more
  copied: 15.0 MiB of old data, 1 write held, 0 copies in flight, 4.00 KiB of memory
  /dev/blksnap-image0  of /dev/vda
  error 28: full
  to do: take it again";
        assert_eq!(text, wanted);
    }

    #[test]
    fn nothing_is_said_too() {
        let status = Status {
            module: "1.0.0.0".into(),
            flavour: Flavour::Stock,
            kernel: "7.3.4+deb13-amd64".into(),
            trackers: Vec::new(),
            snapshots: Vec::new(),
        };
        assert_eq!(
            table(&status, UNIX_EPOCH),
            "module version 1.0.0.0 (stock), kernel 7.3.4+deb13-amd64\n\nno device is tracked\n\nno snapshot"
        );
    }
}
