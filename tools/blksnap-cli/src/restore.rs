// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap restore`: a backup written to devices or new files.
//!
//! Everything is looked at before the first byte is written: the chain of manifests, the lists of
//! extents, the size of each file, each target. The data is checked as it is read; what is damaged
//! is not written.

mod machine;
pub mod signature;
mod target;

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
    };
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
        if report.lost_bytes > 0 {
            output::remark(format!(
                "{}: {} bytes could not be read when it was backed up, and are zeros: `lost` in its manifest has them",
                report.name, report.lost_bytes
            ));
        }
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
    let mut reports = Vec::new();
    for (device, chain, bytes, mut target) in jobs {
        let what = format!("{}: restoring to {}", device.name, target.path().display());
        let progress = Progress::start(what, bytes, signals);
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

/// Finds which device goes where.
fn pair<'a>(manifest: &'a Manifest, targets: &[String]) -> Result<Vec<(&'a Device, Place)>> {
    let mut pairs: Vec<(&Device, Place)> = Vec::new();
    for text in targets {
        let (device, target) = match (named(manifest, text), manifest.devices.as_slice()) {
            (Some(pair), _) => pair,
            // What looks like a name and is none must not become the name of a file.
            (None, _) if text.contains('=') && !names::is_tag(text) => bail!(
                "`{text}`: the backup has no such device, but {}: write NAME=TARGET",
                manifest.names()
            ),
            (None, [device]) => (device, text.as_str()),
            (None, _) => bail!(
                "which device goes to `{text}`? Write NAME=TARGET; the backup has {}",
                manifest.names()
            ),
        };
        match target {
            "" => bail!("`{text}` names no target"),
            "-" => bail!("restore needs a device or a file, not standard output (./- is a file)"),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
            (vec!["vda=-"], "not standard output"),
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
            ("-", "not standard output"),
            ("UUID=x", "no device `UUID=x`"),
        ] {
            let error = format!("{:#}", pair(&manifest, &[to.into()]).err().unwrap());
            assert!(error.contains(why), "{error}");
        }
    }
}
