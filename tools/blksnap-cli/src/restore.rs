// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap restore`: a backup written to devices or new files.
//!
//! Everything is looked at before the first byte is written: the chain of manifests, the lists of
//! extents, the size of each file, each target. The data is checked as it is read; what is damaged
//! is not written.

mod machine;
pub mod signature;
mod stream;
mod target;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use blksnap_backup::{Chain, Device, Manifest, Repository, Seen, Watch, pieces, read};
use serde::Serialize;

use crate::INCOMPLETE;
use crate::args;
use crate::names;
use crate::opened;
use crate::output;
use crate::progress::Progress;
use crate::rate::{Pace, Rate};
use crate::signals::Signals;
use crate::size::Size;
use target::{OpenTarget, Place, Target};

/// Restores what was asked for.
pub fn run(args: &args::Restore) -> Result<ExitCode> {
    let signals = Signals::catch()?;
    let how = How {
        force: args.force,
        dry_run: args.dry_run,
        keep_going: args.keep_going,
        machine: args.machine.then_some(Machine { grow: args.grow }),
        rate: args.rate,
    };
    if stream::run(args, how, &signals)? {
        return Ok(ExitCode::SUCCESS);
    }
    let targets = if args.machine { &args.disk } else { &args.to };
    let reports = restore(&args.backup, targets, how, &signals)?;
    let lost = reports.iter().any(|report| !report.damage.is_empty());
    let code = match lost {
        true => ExitCode::from(INCOMPLETE),
        false => ExitCode::SUCCESS,
    };
    if args.json {
        output::print_json(&reports)?;
        return Ok(code);
    }
    let would = if args.dry_run { "would be " } else { "" };
    for report in &reports {
        output::print(format!(
            "{}: {} of {} {would}restored to {}, {} {would}written",
            report.name,
            Size(report.size),
            report.backup,
            report.target.display(),
            Size(report.bytes_written)
        ))?;
        if let Some(table) = &report.table {
            table.print(&report.target)?;
        }
        remark_lost(&report.name, report.lost_bytes);
        for damage in &report.damage {
            output::print(format!(
                "{}: {} bytes at byte {} are lost, and read as zeros: {}",
                report.name, damage.length, damage.start, damage.what
            ))?;
        }
    }
    Ok(code)
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Overwrite what is on a device.
    pub force: bool,
    /// Only check, and say, what would be done.
    pub dry_run: bool,
    /// Restore what is good where something is damaged.
    pub keep_going: bool,
    /// How fast backups are read at most.
    pub rate: Option<Rate>,
    /// Lay out all disks of a machine.
    pub machine: Option<Machine>,
}

/// How to lay out the disks of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Let the last partition of each disk take what comes after it.
    pub grow: bool,
}

/// What was done with one device.
#[derive(Debug, Serialize)]
pub struct Report {
    backup: String,
    name: String,
    #[serde(serialize_with = "output::path")]
    target: PathBuf,
    size: u64,
    bytes_written: u64,
    seconds: f64,
    /// Bytes that could not be read when it was backed up, and are zeros.
    lost_bytes: u64,
    /// What could not be restored, and reads as zeros.
    damage: Vec<Damage>,
    /// What was done with the table of partitions, if the disks of a machine were laid out, and this one is
    /// larger than it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<machine::Table>,
}

/// A range that is lost.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The first byte in the device.
    start: u64,
    /// How many bytes.
    length: u64,
    /// Why, in words.
    what: String,
}

/// Restores devices of a backup to targets.
pub fn restore(
    backup: &Path,
    targets: &[String],
    how: How,
    signals: &Signals,
) -> Result<Vec<Report>> {
    let (repository, id) = Repository::read(backup)?;
    opened::remark(&repository)?;
    let manifest = repository.find(id.as_deref())?;
    let pairs = pair(&manifest, targets)?;
    if how.machine.is_some() {
        machine::check(&manifest, &pairs)?;
    }
    let mut jobs = Vec::new();
    for (device, place) in pairs {
        let target = Target::check(place, device, how.force)?;
        let chain = match how.keep_going {
            true => Chain::open_damaged(&repository, &manifest, device),
            false => Chain::open(&repository, &manifest, device),
        };
        let failed = || format!("cannot restore {}", device.name);
        let chain = chain.with_context(failed)?;
        // Bytes of data that are written.
        let bytes = chain.data_bytes().with_context(failed)?;
        jobs.push((device, chain, bytes, target));
    }
    if how.dry_run {
        let would = |(device, _, bytes, target): &(&Device, Chain, u64, Target)| Report {
            backup: manifest.id.clone(),
            name: device.name.clone(),
            target: target.path().to_owned(),
            size: device.size,
            bytes_written: *bytes,
            seconds: 0.0,
            lost_bytes: lost_bytes(device),
            damage: Vec::new(),
            table: None,
        };
        return Ok(jobs.iter().map(would).collect());
    }
    let open = |(device, chain, bytes, target): (_, _, _, Target)| {
        let device: &Device = device;
        Ok((device, chain, bytes, target.open(device.size)?))
    };
    let jobs: Vec<_> = jobs.into_iter().map(open).collect::<Result<_>>()?;
    let pace = Pace::new(how.rate);
    let mut reports = Vec::new();
    for (device, chain, bytes, mut target) in jobs {
        let what = format!("{}: restoring to {}", device.name, target.path().display());
        let progress = Progress::start(what, bytes, signals).at(&pace);
        let mut damage = Vec::new();
        let lost = how.keep_going.then_some(&mut damage);
        let mut table = None;
        write(&chain, &target, &progress, lost)
            .and_then(|()| {
                if let Some(Machine { grow }) = how.machine {
                    table = machine::lay_out(&target, device.size, grow)?;
                }
                target.finish()
            })
            .map_err(|error| target.in_part(error))?;
        match how.machine {
            Some(_) => machine::show_partitions(&target),
            None => target
                .misplaced_header(device.size)
                .iter()
                .for_each(output::remark),
        }
        reports.push(Report {
            backup: manifest.id.clone(),
            name: device.name.clone(),
            target: target.path().to_owned(),
            size: device.size,
            bytes_written: bytes - damage.iter().map(|one| one.length).sum::<u64>(),
            seconds: progress.finish(),
            lost_bytes: lost_bytes(device),
            damage,
            table,
        });
    }
    if how.machine.is_some() {
        machine::remark_boot(&manifest);
    }
    Ok(reports)
}

/// Says that a backup has zeros where its device could not be read.
fn remark_lost(name: &str, bytes: u64) {
    if bytes > 0 {
        output::remark(format!(
            "{name}: {bytes} bytes could not be read when it was backed up, and are zeros: `lost` in its manifest has them"
        ));
    }
}

fn lost_bytes(device: &Device) -> u64 {
    device.lost.iter().map(|[_, length]| length).sum()
}

/// Writes what is seen of a chain. What is damaged is an error, or zeros, if what is lost is to be
/// listed.
fn write(
    chain: &Chain,
    target: &OpenTarget,
    progress: &Progress<'_>,
    mut lost: Option<&mut Vec<Damage>>,
) -> Result<()> {
    let write = |seen: &Seen, bytes: &[u8]| {
        let mut parts = seen.parts.iter().filter(|_| !seen.is_zeros());
        parts.try_for_each(|part| {
            let inside = |at: u64| (at - seen.extent.start) as usize;
            target.write(part.start, &bytes[inside(part.start)..inside(part.end)])
        })
    };
    let (all, wanted) = (chain.all(), |_: &Seen| true);
    let seen = chain.seen(&all);
    read(
        &chain.layers,
        seen,
        wanted,
        progress,
        write,
        |seen, _, good| {
            if seen.is_zeros() {
                // In pieces: a device may take long for a large range.
                return pieces(seen.parts.into_iter()).try_for_each(|piece| {
                    progress.check()?;
                    target.zero(piece)
                });
            }
            progress.advance(seen.bytes());
            let (Err(error), Some(lost)) = (&good, &mut lost) else {
                return good;
            };
            for part in &seen.parts {
                // What a device had there must not be taken for what was backed up.
                target.zero(part.clone())?;
                lost.push(Damage {
                    start: part.start,
                    length: part.end - part.start,
                    what: format!("{error:#}"),
                });
            }
            Ok(())
        },
    )
}

/// Splits `NAME=TARGET`, where the name is that of a device. Both may have a `=` in them.
fn named<'a, 'b>(manifest: &'a Manifest, text: &'b str) -> Option<(&'a Device, &'b str)> {
    let mut places = text.rmatch_indices('=');
    places.find_map(|(at, _)| Some((manifest.device(&text[..at])?, &text[at + 1..])))
}

/// Finds which device is meant, and where it goes.
fn which<'a, 'b>(manifest: &'a Manifest, text: &'b str) -> Result<(&'a Device, &'b str)> {
    Ok(match (named(manifest, text), manifest.devices.as_slice()) {
        (Some(pair), _) => pair,
        // What looks like a name and is none must not become the name of a file.
        (None, _) if text.contains('=') && !names::is_tag(text) => bail!(
            "`{text}`: the backup has no such device, but {}: write NAME=TARGET",
            manifest.names()
        ),
        (None, [device]) => (device, text),
        (None, _) => bail!(
            "which device goes to `{text}`? Write NAME=TARGET; the backup has {}",
            manifest.names()
        ),
    })
}

/// Finds which device goes where.
fn pair<'a>(manifest: &'a Manifest, targets: &[String]) -> Result<Vec<(&'a Device, Place)>> {
    let mut pairs: Vec<(&Device, Place)> = Vec::new();
    for text in targets {
        let (device, target) = which(manifest, text)?;
        match target {
            "" => bail!("`{text}` names no target"),
            "-" => bail!("only one device can be written to standard output (./- is a file)"),
            _ => {}
        }
        if pairs.iter().any(|(other, _)| other.name == device.name) {
            bail!("{} is given two targets", device.name);
        }
        let place = Place::named(target)?;
        if pairs.iter().any(|(_, other)| other.is(&place)) {
            bail!("{} is the target of two devices", place.path().display());
        }
        pairs.push((device, place));
    }
    Ok(pairs)
}
