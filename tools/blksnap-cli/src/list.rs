// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap list`: the backups in a directory.

use std::path::PathBuf;

use anyhow::Result;
use blksnap_backup::{Kind, Manifest, Repository, State, parts};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::args;
use crate::opened;
use crate::output;
use crate::size::Size;

/// Lists them, the oldest first.
pub fn run(args: &args::List) -> Result<()> {
    let report = report(args)?;
    if args.json {
        return output::print_json(&report);
    }
    if report.backups.is_empty() {
        output::print(format!("no backups in {}", report.directory.display()))?;
    }
    for backup in &report.backups {
        output::print(backup.text())?;
    }
    if !report.dropped.is_empty() {
        output::print(format!(
            "being merged into later ones; the next `blksnap prune` goes on: {}",
            report.dropped.join(", ")
        ))?;
    }
    if !report.leftovers.is_empty() {
        output::print(format!(
            "being made, or left by something interrupted; the next backup removes it then: {}",
            report.leftovers.join(", ")
        ))?;
    }
    Ok(())
}

/// What there is.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(serialize_with = "output::path")]
    directory: PathBuf,
    backups: Vec<Backup>,
    /// Directories of which only the data is still needed.
    dropped: Vec<String>,
    /// Directories that are no backups.
    leftovers: Vec<String>,
}

/// One backup.
#[derive(Debug, Serialize)]
struct Backup {
    id: String,
    /// Why it cannot be restored, as far as that can be seen without reading the data.
    damaged: Option<String>,
    taken_unix_ns: Option<u64>,
    kind: Option<Kind>,
    base: Option<String>,
    devices: Vec<Device>,
}

/// One device of a backup.
#[derive(Debug, Serialize)]
struct Device {
    name: String,
    path: PathBuf,
    kind: Kind,
    format: &'static str,
    size: u64,
    /// What this backup itself has.
    data_bytes: u64,
}

fn report(args: &args::List) -> Result<Report> {
    let (repository, _) = Repository::read(&args.directory)?;
    opened::remark(&repository)?;
    let mut report = Report {
        directory: repository.path().to_owned(),
        backups: Vec::new(),
        dropped: Vec::new(),
        leftovers: repository.leftovers()?,
    };
    for id in repository.ids()? {
        match repository.manifest(&id) {
            Ok(manifest) if manifest.state == State::Dropped => report.dropped.push(id),
            Ok(manifest) => {
                let parts = |device| parts(&repository, &manifest, device).map(|_| ());
                let whole = manifest.devices.iter().try_for_each(parts);
                let damaged = whole.err().map(|error| format!("{error:#}"));
                report.backups.push(Backup::new(manifest, damaged));
            }
            Err(error) => report.backups.push(Backup {
                id,
                damaged: Some(format!("{error:#}")),
                taken_unix_ns: None,
                kind: None,
                base: None,
                devices: Vec::new(),
            }),
        }
    }
    Ok(report)
}

impl Backup {
    fn new(manifest: Manifest, damaged: Option<String>) -> Self {
        let kind = manifest.kind();
        let devices = manifest.devices.into_iter().map(|device| Device {
            name: device.name,
            path: device.path,
            kind: device.kind,
            format: device.file_format.name(),
            size: device.size,
            data_bytes: device.data_bytes,
        });
        Self {
            id: manifest.id,
            damaged,
            taken_unix_ns: Some(manifest.taken_unix_ns[0]),
            kind: Some(kind),
            base: manifest.base,
            devices: devices.collect(),
        }
    }

    /// For people.
    fn text(&self) -> String {
        let damaged = match &self.damaged {
            Some(damaged) => format!("  DAMAGED: {damaged}"),
            None => String::new(),
        };
        if self.devices.is_empty() {
            return format!("{}{damaged}", self.id);
        }
        let time = self.taken_unix_ns.map(time_text).unwrap_or_default();
        let kind = self.kind.map(|kind| kind.to_string()).unwrap_or_default();
        let devices: Vec<_> = self.devices.iter().map(Device::text).collect();
        let base = match &self.base {
            Some(base) => format!("  since {base}"),
            None => String::new(),
        };
        format!(
            "{}  {time}  {kind:<11}  {}{base}{damaged}",
            self.id,
            devices.join(", ")
        )
    }
}

impl Device {
    fn text(&self) -> String {
        format!(
            "{} {} ({} stored)",
            self.name,
            Size(self.size),
            Size(self.data_bytes)
        )
    }
}

/// A time as people read it, UTC.
fn time_text(unix_ns: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let time = OffsetDateTime::from_unix_timestamp_nanos(unix_ns.into());
    let time = time.ok().and_then(|time| time.format(format).ok());
    time.unwrap_or_else(|| "?".into())
}

#[cfg(test)]
mod tests {
    use blksnap_backup::testing::Store;

    use super::*;

    #[test]
    fn backups_and_damage_and_leftovers_are_listed() {
        let store = Store::new(1 << 20);
        let full = store.full(&vec![1; 1 << 20]);
        let next = store.incremental(&full, &vec![1; 1 << 20], &[]);
        let bad = store.incremental(&next, &vec![1; 1 << 20], &[]);
        std::fs::write(store.path().join(&bad).join("manifest.json"), "").unwrap();
        std::fs::create_dir(store.path().join(".partial-x")).unwrap();
        let listed = || {
            report(&args::List {
                directory: store.path().into(),
                json: false,
            })
            .unwrap()
        };
        let report = listed();
        assert_eq!(report.leftovers, [".partial-x"]);
        let lines: Vec<_> = report.backups.iter().map(Backup::text).collect();
        assert_eq!(
            lines[0],
            format!("{full}  1970-01-01 00:00:00 UTC  full         vda 1.00 MiB (1.00 MiB stored)")
        );
        assert_eq!(
            lines[1],
            format!(
                "{next}  1970-01-01 00:00:00 UTC  incremental  vda 1.00 MiB (0 B stored)  since {full}"
            )
        );
        assert!(
            lines[2].starts_with(&format!("{bad}  DAMAGED: ")),
            "{}",
            lines[2]
        );
        // What is in a manifest cannot be restored without the files it is about.
        std::fs::write(store.path().join(&full).join("vda.raw"), "short").unwrap();
        let lines: Vec<_> = listed().backups.iter().map(Backup::text).collect();
        for line in &lines[..2] {
            assert!(line.contains("1.00 MiB"), "{line}");
            assert!(
                line.contains("  DAMAGED: the backup is damaged: "),
                "{line}"
            );
        }
        std::fs::remove_dir_all(store.path().join(&full)).unwrap();
        let lines: Vec<_> = listed().backups.iter().map(Backup::text).collect();
        assert!(lines[0].contains("DAMAGED: the chain of"), "{}", lines[0]);
    }
}
