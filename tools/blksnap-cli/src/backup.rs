// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap backup`: the devices as they are at one instant, in raw files; later, only what has
//! changed.
//!
//! ```text
//! lock the directory → create, take → plan each device → copy → compare → commit (rename) → destroy
//! ```

mod directory;
mod plan;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use blksnap::{CbtInfo, DevId, Session};

use crate::args;
use crate::compare::compare;
use crate::copy::{Source, Target, copy};
use crate::hold;
use crate::manifest::{self, Manifest, State};
use crate::output;
use crate::progress::Progress;
use crate::signals::Signals;
use directory::{Directory, Draft};
use plan::Plan;
use report::{DeviceReport, Kind, Report};

/// A device that was named.
struct Given {
    path: PathBuf,
    id: DevId,
    name: String,
}

/// Makes a backup.
pub fn run(args: &args::Backup) -> Result<()> {
    let signals = Signals::catch()?;
    let start = Instant::now();
    let devices = resolve(&args.devices)?;
    let directory = Directory::lock(&args.to)?;
    let base = base(&directory, args.full)?;
    if let Some(base) = &base {
        same_devices(base, &devices, directory.path())?;
    }
    let ids: Vec<DevId> = devices.iter().map(|device| device.id).collect();
    let mut session = Session::create(&ids, hold::options(&args.storage, directory.path()))?;
    let taken = session.take()?;
    signals.check()?;
    if let Some(command) = &args.exec_after_take {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(command);
        hold::run_command(shell, &session, &signals)?.success()?;
    }

    let work = Work {
        args,
        session: &session,
        signals: &signals,
        base: base.as_ref(),
        directory: &directory,
    };
    let (drafts, mut reports) = work
        .copy_all(&devices)
        .map_err(|error| explain(error, &session))?;
    if args.verify {
        for (index, draft) in drafts.iter().enumerate() {
            let left_out = work
                .verify(index, draft)
                .map_err(|error| explain(error, &session))?;
            reports[index].verified = true;
            reports[index].bytes_not_compared = left_out;
        }
    }
    session.check()?;
    let state = session.state();
    let storage_bytes = session.storage_bytes();
    let snapshot = session.id();
    let times = [unix_ns(taken.before.wall), unix_ns(taken.after.wall)];
    let entries = drafts.iter().map(|draft| draft.entry.clone()).collect();
    directory.commit(
        drafts,
        &Manifest::new(snapshot.0, times, entries),
        base.as_ref(),
    )?;
    session.destroy()?;

    let report = Report {
        directory: directory.path().to_owned(),
        snapshot: snapshot.0,
        taken: taken.into(),
        devices: reports,
        storage_bytes,
        copied_to_storage: state.copied_bytes(),
        stopped_ns: state.stopped_ns(),
        state: state
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        output::print_json(&report)
    } else {
        output::print(report.to_string().trim_end())
    }
}

/// What all devices of one backup share.
struct Work<'a> {
    args: &'a args::Backup,
    session: &'a Session,
    signals: &'a Signals,
    base: Option<&'a Manifest>,
    directory: &'a Directory,
}

impl Work<'_> {
    /// Plans and copies each device.
    fn copy_all(&self, devices: &[Given]) -> Result<(Vec<Draft>, Vec<DeviceReport>)> {
        let trackers = self.session.control().trackers()?;
        let mut drafts = Vec::new();
        let mut plans = Vec::new();
        for device in devices {
            let info = trackers
                .iter()
                .find(|info| info.device == device.id)
                .with_context(|| format!("{} is no longer tracked", device.path.display()))?;
            let plan = self.plan(device, info)?;
            if let (Plan::Full { reason }, true) = (&plan, self.args.incremental) {
                eprintln!("{}: a full backup is made: {reason}", device.path.display());
            }
            drafts.push(self.draft(device, info, &plan)?);
            plans.push((plan, *info));
        }
        // From the first change in place on, the old backup is none any more.
        if let (Some(base), true) = (self.base, drafts.iter().any(Draft::in_place)) {
            let mut updating = base.clone();
            updating.state = State::Updating;
            updating.write(self.directory.path())?;
        }
        let mut reports = Vec::new();
        for (index, (plan, info)) in plans.into_iter().enumerate() {
            reports.push(self.copy(index, &devices[index], plan, &info, &drafts[index])?);
        }
        Ok((drafts, reports))
    }

    /// Decides how a device is copied.
    fn plan(&self, device: &Given, info: &CbtInfo) -> Result<Plan> {
        let base = match self.base {
            None => Err("there is no earlier backup here".into()),
            Some(base) if base.state == State::Updating => {
                Err("the last update of it was interrupted".into())
            }
            Some(base) => base
                .device(&device.path)
                .ok_or_else(|| "it was not backed up before".into()),
        };
        let since = base.and_then(|old| {
            self.directory.check(old)?;
            plan::since(old, info)
        });
        Ok(match since {
            _ if self.args.full => Plan::Full {
                reason: "asked for".into(),
            },
            Err(reason) => Plan::Full { reason },
            Ok(since) => Plan::Incremental {
                since,
                map: self.session.control().cbt_map(info)?,
            },
        })
    }

    /// Opens the file that a device is copied to.
    fn draft(&self, device: &Given, info: &CbtInfo, plan: &Plan) -> Result<Draft> {
        let id = self.session.id().to_string();
        let entry = manifest::Device {
            name: device.name.clone(),
            path: device.path.clone(),
            file: format!("{}-{}.raw", device.name.replace('!', "_"), &id[..8]),
            size: info.capacity,
            generation: info.generation.0,
            number: info.number,
            block_size: info.block_size,
        };
        match (plan, self.base.and_then(|base| base.device(&device.path))) {
            (Plan::Incremental { .. }, Some(old)) => self.directory.update(old, entry),
            _ => self.directory.create(entry),
        }
    }

    /// Copies one device.
    fn copy(
        &self,
        index: usize,
        device: &Given,
        plan: Plan,
        info: &CbtInfo,
        draft: &Draft,
    ) -> Result<DeviceReport> {
        let image = &self.session.images()[index];
        let source = Source::open(&image.path)?;
        if source.size() != info.capacity {
            bail!(
                "{} has {} bytes, its image {} has {}",
                device.path.display(),
                info.capacity,
                image.path.display(),
                source.size()
            );
        }
        let path = device.path.display();
        let mut target = Target::new(draft.path(), draft.file(), draft.zeros());
        let (kind, reason, since, ranges, changed) = match &plan {
            Plan::Full { reason } => {
                let whole = std::iter::once(0..info.capacity).collect();
                (
                    Kind::Full,
                    reason.clone(),
                    None,
                    whole,
                    info.block_count.into(),
                )
            }
            Plan::Incremental { since, map } => {
                let ranges: Vec<_> = map.changed_since(*since).collect();
                let changed = map.count_since(*since) as u64;
                (
                    Kind::Incremental,
                    String::new(),
                    Some(*since),
                    ranges,
                    changed,
                )
            }
        };
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        let what = match since {
            Some(since) => format!("{path}: copying what changed since snapshot {since}"),
            None => format!("{path}: copying everything"),
        };
        let mut progress = Progress::start(what, bytes);
        let copied = copy(
            &source,
            &mut target,
            ranges.into_iter(),
            self.signals,
            &mut progress,
        )?;
        Ok(DeviceReport {
            device: device.path.clone(),
            image: image.path.clone(),
            file: draft.entry.file.clone().into(),
            kind,
            reason,
            since,
            number: info.number,
            generation: info.generation.0,
            size: info.capacity,
            block_size: info.block_size,
            blocks: info.block_count.into(),
            blocks_changed: changed,
            bytes_copied: copied.read,
            bytes_written: copied.written,
            seconds: progress.finish(),
            verified: false,
            bytes_not_compared: 0,
        })
    }

    /// Compares one device's backup with its image. Gives what was left out, in bytes: the
    /// difference storage itself.
    fn verify(&self, index: usize, draft: &Draft) -> Result<u64> {
        let image = &self.session.images()[index];
        let source = Source::open(&image.path)?;
        let what = format!("{}: comparing", draft.entry.path.display());
        let mut progress = Progress::start(what, source.size());
        let storage = || self.session.storage_on(image.original);
        let left_out = compare(&source, draft.path(), storage, self.signals, &mut progress)?;
        progress.finish();
        Ok(left_out)
    }
}

/// Says of a failed read that the snapshot was lost, if that is why.
fn explain(error: anyhow::Error, session: &Session) -> anyhow::Error {
    let is_io = error.chain().any(|cause| cause.is::<std::io::Error>());
    match is_io.then(|| session.check_after_error()) {
        Some(Err(lost)) => error.context(lost),
        _ => error,
    }
}

/// The devices that were named: block devices, none twice.
fn resolve(paths: &[PathBuf]) -> Result<Vec<Given>> {
    let mut devices: Vec<Given> = Vec::new();
    for path in paths {
        let id = DevId::resolve(path)?;
        if let Some(other) = devices.iter().find(|other| other.id == id) {
            bail!(
                "{} and {} are the same device: name it once",
                other.path.display(),
                path.display()
            );
        }
        devices.push(Given {
            path: path.clone(),
            id,
            name: id
                .kernel_name()
                .with_context(|| format!("there is no device {}", path.display()))?,
        });
    }
    Ok(devices)
}

/// The backup that is there already. A manifest that can't be understood stands in the way only of
/// an incremental one.
fn base(directory: &Directory, full: bool) -> Result<Option<Manifest>> {
    match Manifest::read(directory.path()) {
        Err(error) if !full => Err(error).context(
            "cannot continue the backup that is there; use another directory, or --full to replace it",
        ),
        read => Ok(read.ok().flatten()),
    }
}

/// A directory holds one set of devices: a run that names others would silently drop some.
fn same_devices(base: &Manifest, devices: &[Given], dir: &Path) -> Result<()> {
    let missing = base
        .devices
        .iter()
        .find(|old| !devices.iter().any(|device| device.path == old.path));
    let Some(missing) = missing else {
        return Ok(());
    };
    bail!(
        "the backup in {} also holds {}: name all its devices, or use another directory",
        dir.display(),
        missing.path.display()
    )
}

/// Nanoseconds since 1970.
fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
