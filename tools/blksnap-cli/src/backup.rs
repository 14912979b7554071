// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap backup`: the devices as they are at one instant, in raw files; later, only what has
//! changed.
//!
//! ```text
//! lock the directory → create, take → plan each device → copy → compare → commit (rename) → destroy
//! ```
//!
//! Before the comparison and after it, what has changed in the images meanwhile is copied again: see
//! [`again`].

mod again;
mod directory;
mod job;
mod plan;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use blksnap::{CbtInfo, DevId, Session};

use crate::args;
use crate::hold;
use crate::manifest::{self, Manifest, State};
use crate::names;
use crate::output;
use crate::signals::Signals;
use directory::{Directory, Draft};
use job::Job;
use plan::Plan;
use report::Report;

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
    let mut session = hold::open(&ids, &args.storage, directory.path())?;
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
    let jobs = work
        .copy_all(&devices)
        .map_err(|error| explain(error, &session))?;
    let (drafts, reports): (Vec<_>, Vec<_>) = jobs.into_iter().map(Job::finish).unzip();
    session.check()?;
    let state = session.state();
    let (storage_bytes, storage_portions) = (session.storage_bytes(), session.portions());
    let storage_reserved = session.reserved_bytes();
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
        storage_portions,
        storage_reserved,
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

impl<'a> Work<'a> {
    /// Plans, copies and compares all devices.
    fn copy_all(&self, devices: &[Given]) -> Result<Vec<Job<'a>>> {
        let trackers = self.session.control().trackers()?;
        let mut jobs = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let info = trackers
                .iter()
                .find(|info| info.device == device.id)
                .with_context(|| format!("{} is no longer tracked", device.path.display()))?;
            let plan = self.plan(device, info)?;
            if let (Plan::Full { reason }, true) = (&plan, self.args.incremental) {
                eprintln!("{}: a full backup is made: {reason}", device.path.display());
            }
            let draft = self.draft(device, info, &plan)?;
            jobs.push(Job::new(
                self.session,
                self.signals,
                index,
                *info,
                plan,
                draft,
            )?);
        }
        // From the first change in place on, the old backup is none any more.
        if let (Some(base), true) = (self.base, jobs.iter().any(Job::in_place)) {
            let mut updating = base.clone();
            updating.state = State::Updating;
            updating.write(self.directory.path())?;
        }
        jobs.iter_mut().try_for_each(Job::copy)?;
        catch_up(&mut jobs, false)?;
        if self.args.verify {
            jobs.iter_mut().try_for_each(Job::verify)?;
            catch_up(&mut jobs, true)?;
        }
        Ok(jobs)
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
            Ok(since) => Plan::Incremental { since },
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
}

/// Copies again what has changed in the images since, until nothing has.
fn catch_up(jobs: &mut [Job<'_>], verify: bool) -> Result<()> {
    loop {
        let mut done = true;
        for job in jobs.iter_mut() {
            let changed = job.copy_again()?;
            done &= changed.is_empty();
            if verify && !changed.is_empty() {
                job.verify_ranges(changed.iter().collect())?;
            }
        }
        if done {
            return Ok(());
        }
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
        let id = names::device(path)?;
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
