// SPDX-License-Identifier: GPL-2.0-or-later

//! A directory of backups.

use std::path::Path;

use anyhow::Result;
use blksnap_backup::{Manifest, Repository, parts, unix_s};
use jiff::Timestamp;

use super::{Found, Level};
use crate::args::CheckHealth;
use crate::free::room;
use crate::size::Size;

/// What is looked at, and by which rules.
struct Look<'a> {
    /// As it is named in all texts.
    dir: String,
    args: &'a CheckHealth,
    now: Timestamp,
    found: &'a mut Found,
}

/// Looks at one.
pub fn look(path: &Path, args: &CheckHealth, now: Timestamp, found: &mut Found) {
    let dir = path.display().to_string();
    let mut look = Look {
        dir,
        args,
        now,
        found,
    };
    look.free(path);
    let busy = Repository::is_being_changed(path);
    match Repository::read(path) {
        Ok((repository, _)) => look.backups(&repository, busy),
        // A prune has it for itself. The newest backup stays, and its name has its time.
        Err(_) if busy => match Repository::last_time(path) {
            Ok(Some(taken)) => {
                look.add(
                    Level::Ok,
                    "is being pruned, so only the last time is looked at",
                );
                look.age(unix_s(taken));
            }
            Ok(None) => look.add(Level::Critical, "there is no backup"),
            Err(error) => look.add(Level::Unknown, format!("{error:#}")),
        },
        Err(error) => look.add(Level::Critical, format!("{error:#}")),
    }
}

impl Look<'_> {
    fn add(&mut self, level: Level, text: impl Into<String>) {
        self.found.add_of(&self.dir, level, text);
    }

    fn metric(&mut self, name: &'static str, help: &'static str, value: u64) {
        let label = ("directory", &*self.dir);
        self.found.metrics.add_of(name, help, label, value);
    }

    /// Adds a figure; a limit is such as `5` or `5:`.
    fn figure(&mut self, what: &str, value: String, warning: String, critical: String) {
        let dir = self.dir.replace(['\'', '=', '\n', '|'], "_");
        let figure = format!("'{what} {dir}'={value};{warning};{critical}");
        self.found.figures.push(figure);
    }

    fn free(&mut self, path: &Path) {
        let room = match room(path) {
            Ok(room) => room,
            Err(error) => return self.add(Level::Unknown, format!("{error:#}")),
        };
        let limits = self.args.min_free.limits(room.all);
        let level = limits.below(room.free);
        let text = format!("{} of {} are free", Size(room.free), Size(room.all));
        self.add(level, text);
        let critical = limits
            .critical
            .map_or(String::new(), |bytes| format!("{bytes}:"));
        let value = format!("{}B", room.free);
        self.figure("free", value, format!("{}:", limits.warning), critical);
        let help = "Bytes that are free in the file system of a directory of backups.";
        self.metric("directory_free_bytes", help, room.free);
        let help = "Bytes in the file system of a directory of backups.";
        self.metric("directory_size_bytes", help, room.all);
    }

    fn backups(&mut self, repository: &Repository, busy: bool) {
        if let Err(error) = self.last(repository) {
            self.add(Level::Critical, format!("{error:#}"));
        }
        if let Err(error) = self.failed(repository, busy) {
            self.add(Level::Unknown, format!("{error:#}"));
        }
        if let Err(error) = self.verified(repository) {
            self.add(Level::Unknown, format!("{error:#}"));
        }
    }

    /// The last backup.
    fn last(&mut self, repository: &Repository) -> Result<()> {
        let mut backups = repository.backups()?;
        let help = "Backups that there are.";
        self.metric("backups", help, backups.len() as u64);
        let Some((id, manifest)) = backups.pop() else {
            self.add(Level::Critical, "there is no backup");
            return Ok(());
        };
        let help =
            "Whether the last backup can be restored, as far as is seen without reading the data.";
        let whole = manifest.and_then(|manifest| {
            let parts = |device| parts(repository, &manifest, device).map(|_| ());
            manifest.devices.iter().try_for_each(parts)?;
            Ok(manifest)
        });
        self.metric("last_backup_good", help, whole.is_ok().into());
        match whole {
            Ok(manifest) => self.whole(&manifest),
            Err(error) => {
                let text = format!("the last backup, {id}, is damaged: {error:#}");
                self.add(Level::Critical, text);
            }
        }
        Ok(())
    }

    fn whole(&mut self, manifest: &Manifest) {
        self.age(manifest.taken_unix_ns[0] / 1_000_000_000);
        let lost = manifest.devices.iter().flat_map(|device| &device.lost);
        let lost: u64 = lost.map(|[_, length]| length).sum();
        if lost > 0 {
            let text = format!("the last backup lacks {lost} bytes that could not be read");
            self.add(Level::Warning, text);
        }
        let help = "Bytes that could not be read for the last backup, or those it is based on.";
        self.metric("last_backup_lost_bytes", help, lost);
        let data = manifest
            .devices
            .iter()
            .map(|device| device.data_bytes)
            .sum();
        let help = "Bytes of data that the last backup itself has.";
        self.metric("last_backup_data_bytes", help, data);
    }

    /// When the last backup was taken, in seconds since 1970.
    fn age(&mut self, taken: u64) {
        let age = self.since(taken);
        let limits = match self.args.max_age.limits(self.now) {
            Ok(limits) => limits,
            Err(error) => return self.add(Level::Unknown, format!("{error:#}")),
        };
        self.add(limits.above(age), format!("last backup {} ago", time(age)));
        let critical = limits.critical.map_or(String::new(), |age| age.to_string());
        self.figure(
            "age",
            format!("{age}s"),
            limits.warning.to_string(),
            critical,
        );
        let help = "When the last backup was taken, in seconds since 1970.";
        self.metric("last_backup_timestamp_seconds", help, taken);
    }

    /// Seconds since a time; none if it is still to come.
    fn since(&self, unix_s: u64) -> u64 {
        let now = u64::try_from(self.now.as_second()).unwrap_or(0);
        now.saturating_sub(unix_s)
    }

    /// What came after the last backup, and was none.
    fn failed(&mut self, repository: &Repository, busy: bool) -> Result<()> {
        let leftovers = repository.leftovers()?;
        let failed = repository.failed()?;
        match leftovers.as_slice() {
            [] => {}
            _ if busy => self.add(Level::Ok, "a backup is being made"),
            [one, ..] => {
                let text = format!("a backup was interrupted: {one}; the next one removes that");
                self.add(Level::Warning, text);
            }
        }
        if let Some(failed) = &failed {
            let ago = time(self.since(failed.unix_s));
            let text = format!("a backup failed {ago} ago: {}", failed.why);
            self.add(Level::Warning, text);
        }
        let bad = failed.is_some() || !leftovers.is_empty() && !busy;
        let help = "Whether the last attempt to make a backup failed, or was interrupted.";
        self.metric("last_backup_failed", help, bad.into());
        Ok(())
    }

    /// When all was verified.
    fn verified(&mut self, repository: &Repository) -> Result<()> {
        let limits = self.args.max_verify_age;
        let limits = limits.map(|bounds| bounds.limits(self.now)).transpose()?;
        let Some(verified) = repository.verified()? else {
            if limits.is_some() {
                let text = format!("was never verified: `blksnap verify {}`", self.dir);
                self.add(Level::Warning, text);
            }
            return Ok(());
        };
        let age = self.since(verified.unix_s);
        let level = limits.map_or(Level::Ok, |limits| limits.above(age));
        self.add(level, format!("verified {} ago", time(age)));
        if verified.damaged > 0 {
            let text = format!(
                "the last verification has found damage in {} places: `blksnap verify {}` tells where",
                verified.damaged, self.dir
            );
            self.add(Level::Critical, text);
        }
        let help = "When all backups were verified last, in seconds since 1970.";
        self.metric("last_verify_timestamp_seconds", help, verified.unix_s);
        let help = "In how many places the last verification has found damage.";
        self.metric("last_verify_damaged", help, verified.damaged);
        Ok(())
    }
}

/// A length of time, for people.
fn time(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..172_800 => format!("{} h", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    }
}

#[cfg(test)]
mod tests;
