// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap backup`: the devices as they are at one instant; later, only what has changed.
//!
//! ```text
//! lock the directory → create, take → plan each device → copy → compare → commit (rename) → destroy
//! ```
//!
//! Before the comparison and after it, what has changed in the images meanwhile is copied again: see
//! [`again`]. A backup is a new directory in the [repository](blksnap_backup::Repository); those before are
//! only read.

mod again;
mod all;
mod job;
mod lvm;
mod machine;
pub mod phases;
mod pipe;
mod plan;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use blksnap::{CbtInfo, DevId, Session};
use blksnap_backup::{Device, Draft, Format, Hardware, Kind, Manifest, Recorder, Repository};

use crate::INCOMPLETE;
use crate::above;
use crate::apart;
use crate::args;
use crate::hold;
use crate::names;
use crate::opened;
use crate::output;
use crate::rate::Pace;
use crate::remembered::{Memory, Take};
use crate::signals::Signals;
use crate::trim;
use job::Job;
use phases::{Phase, Phases};
use plan::{Base, Plan};
use report::Report;

/// A device that was named.
struct Given {
    path: PathBuf,
    id: DevId,
    name: String,
}

/// Makes a backup.
pub fn run(args: &args::Backup) -> Result<ExitCode> {
    let signals = Signals::catch()?;
    let start = Instant::now();
    ensure!(
        !args.compress || args.format.can_compress() && args.to != Path::new("-"),
        "--compress is for --format qcow2 in a directory; a raw stream can be compressed by what reads it (`| zstd`)"
    );
    let all = args.all.then(|| all::find(args)).transpose()?;
    if let Some(all) = &all {
        if args.dry_run {
            return all.show(args.json).map(|()| ExitCode::SUCCESS);
        }
        all.left_out
            .iter()
            .for_each(|one| output::remark(one.to_string()));
    }
    let devices = match &all {
        Some(all) => all.given(),
        None => resolve(&args.devices)?,
    };
    if args.to == Path::new("-") {
        return pipe::run(args, &devices, &signals).map(|()| ExitCode::SUCCESS);
    }
    if args.state.is_some() {
        bail!("--state is for --to -; in a directory, the last backup tells what is known");
    }
    let repository = match args.create {
        true => Repository::create(&args.to)?,
        false => Repository::add(&args.to)?,
    };
    let made = make(args, &devices, all, &repository, start, &signals);
    let noted = match &made {
        Ok(_) => repository.forget_failed(),
        Err(error) => repository.note_failed(&format!("{error:#}")),
    };
    if let Err(error) = noted {
        // For `blksnap check-health` only. It may be for the same reason, such as a full disk.
        output::remark(format!("{error:#}"));
    }
    made
}

/// Makes a backup in a directory.
fn make(
    args: &args::Backup,
    devices: &[Given],
    all: Option<all::All>,
    repository: &Repository,
    start: Instant,
    signals: &Signals,
) -> Result<ExitCode> {
    opened::remark(repository)?;
    let base = plan::base(repository, args.full)?;
    // Also of a full one, and not if the newest is damaged: then nobody knows.
    if let (false, Ok(Some(last))) = (args.change_devices, repository.newest()) {
        same_devices(&last, devices, repository.path())?;
    }
    let ids: Vec<DevId> = devices.iter().map(|device| device.id).collect();
    apart::remark_backups(repository.path(), &ids);
    let machine = all.as_ref().map(|all| machine::describe(devices, all));
    let phases = Phases::new(args.progress, Pace::new(args.rate), signals);
    let mut session = hold::open(&ids, &args.storage, repository.path())?;
    let taking = phases.begin(Phase::Taking, "taking the snapshot");
    let taken = above::take(&mut session, &ids, signals)?;
    taking.finish();
    signals.check()?;
    hold::after_take(args.exec_after_take.as_deref(), &session, signals)?;

    let snapshot = session.id().0;
    let id = repository.next_id(taken.before.wall, snapshot)?;
    let draft = Draft::new(repository, id.clone())?;
    let memory = Memory::open();
    let work = Work {
        args,
        session: &session,
        phases: &phases,
        repository,
        base: &base,
        memory: &memory,
        draft: &draft,
    };
    let jobs = work
        .copy_all(devices)
        .map_err(|error| explain(error, &session))?;
    let closing = phases.begin(Phase::Closing, "writing back");
    let (recorders, reports): (Vec<_>, Vec<_>) = jobs.into_iter().map(Job::finish).unzip();
    session.check()?;
    let entries = recorders.into_iter().map(Recorder::finish);
    let entries = entries.collect::<Result<_>>()?;
    let state = session.state();
    let times = [unix_ns(taken.before.wall), unix_ns(taken.after.wall)];
    let mut manifest = Manifest::new(id.clone(), snapshot, times, entries);
    if manifest
        .devices
        .iter()
        .any(|device| device.kind != Kind::Full)
    {
        manifest.base = base.as_ref().ok().map(|base| base.id.clone());
    }
    manifest.machine = machine;
    draft.commit(&manifest)?;
    // Last of all: see there.
    for (device, entry) in devices.iter().zip(&manifest.devices) {
        memory.remember(device.id, &device.path, Take::of(&manifest, entry));
    }
    closing.finish();
    drop(phases);
    let lost = reports.iter().any(|report| !report.lost.is_empty());

    let report = Report {
        directory: repository.path().to_owned(),
        backup: id,
        base: manifest.base,
        snapshot,
        taken: taken.into(),
        devices: reports,
        left_out: all.map(|all| all.left_out).unwrap_or_default(),
        storage_bytes: session.storage_bytes(),
        storage_portions: session.portions(),
        storage_reserved: session.reserved_bytes(),
        copied_to_storage: state.copied_bytes(),
        stopped_ns: state.stopped_ns(),
        state: state
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        seconds: start.elapsed().as_secs_f64(),
    };
    session.destroy()?;
    if args.storage.trim {
        trim::trim(&ids);
    }
    let printed = match args.json {
        true => output::print_json(&report),
        false => output::print(report.to_string().trim_end()),
    };
    // Who reads the exit code wants to know whether there is a backup.
    if let Err(error) = printed {
        output::remark(format!(
            "the backup {} was made, but: {error:#}",
            report.backup
        ));
    }
    Ok(match lost {
        true => ExitCode::from(INCOMPLETE),
        false => ExitCode::SUCCESS,
    })
}

/// What all devices of one backup share.
struct Work<'a> {
    args: &'a args::Backup,
    session: &'a Session,
    phases: &'a Phases<'a>,
    repository: &'a Repository,
    base: &'a Base,
    memory: &'a Memory,
    draft: &'a Draft<'a>,
}

impl<'a> Work<'a> {
    /// Plans, copies and compares all devices.
    fn copy_all(&self, devices: &[Given]) -> Result<Vec<Job<'a>>> {
        let mut jobs = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let info = self.session.tracker(device.id)?;
            let info =
                info.with_context(|| format!("{} is no longer tracked", device.path.display()))?;
            let format = self.args.format;
            let plan = Plan::new(
                self.repository,
                self.base,
                device,
                &info,
                format,
                self.memory,
            );
            let path = device.path.display();
            match &plan {
                Plan::Full { reason } if self.args.incremental => {
                    output::remark(format!("{path}: a full backup is made: {reason}"));
                }
                Plan::Compared { reason, .. } => output::remark(format!(
                    "{path}: all is read, and compared with the last backup: {reason}"
                )),
                _ => {}
            }
            let recorder = self.recorder(device, &info, &plan)?;
            jobs.push(Job::new(
                self.session,
                self.phases,
                index,
                info,
                plan,
                recorder,
            )?);
        }
        if !self.args.all_blocks {
            jobs.iter_mut().for_each(Job::leave_out_unused);
        }
        for job in &jobs {
            let verified = if self.args.verify { job.size() } else { 0 };
            self.phases.plan(job.expected() + verified);
        }
        jobs.iter_mut().try_for_each(Job::copy)?;
        catch_up(&mut jobs, false)?;
        if self.args.verify {
            jobs.iter_mut().try_for_each(Job::verify)?;
            catch_up(&mut jobs, true)?;
        }
        Ok(jobs)
    }

    /// Makes the file that a device is copied to.
    fn recorder(&self, device: &Given, info: &CbtInfo, plan: &Plan) -> Result<Recorder> {
        let entry = new_entry(device, info, plan, self.args.format);
        let mut recorder = Recorder::create(
            self.draft.path(),
            self.draft.id(),
            entry,
            plan.base().as_ref(),
            self.args.compress,
        )?;
        recorder.skip_unreadable = self.args.skip_unreadable;
        recorder.unused = plan.left_out()?;
        // A comparison reads all anew.
        if let Plan::Incremental { parts, .. } = plan {
            let lost = parts.first().map(|(_, base)| &base.lost);
            recorder.lost = lost
                .into_iter()
                .flatten()
                .map(|&[start, length]| start..start + length)
                .collect();
        }
        Ok(recorder)
    }
}

/// What a manifest will say of a device, but for what is known only when it was copied.
fn new_entry(device: &Given, info: &CbtInfo, plan: &Plan, format: Format) -> Device {
    let (kind, reason) = match plan {
        Plan::Full { reason } => (Kind::Full, reason.as_str()),
        Plan::Incremental { .. } => (Kind::Incremental, ""),
        Plan::Compared { reason, .. } => (Kind::Compared, reason.as_str()),
    };
    let entry = Device {
        name: device.name.clone(),
        path: device.path.clone(),
        stable: names::stable(device.id),
        hardware: Hardware::of(device.id),
        size: info.capacity,
        generation: info.generation.0,
        number: info.number,
        block_size: info.block_size,
        kind,
        reason: reason.into(),
        base_device: match plan {
            Plan::Compared { parts, .. } => parts.first().map(|(_, base)| base.name.clone()),
            _ => None,
        },
        file_format: format,
        file: String::new(),
        file_size: 0,
        extents: String::new(),
        extents_blake3: String::new(),
        data_bytes: 0,
        zero_bytes: 0,
        lost: Vec::new(),
        unused_bytes: 0,
        unused: Vec::new(),
    };
    entry.stored_as(format)
}

/// Copies again what has changed in the images since, until nothing has.
fn catch_up(jobs: &mut [Job<'_>], verify: bool) -> Result<()> {
    loop {
        let mut done = true;
        for job in jobs.iter_mut() {
            let changed = job.copy_again()?;
            done &= changed.is_empty();
            if verify && !changed.is_empty() {
                job.verify_places(changed)?;
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
        // Manifests are UTF-8: the kernel's name stands for one that is not.
        let utf8 = path.to_str().is_some();
        devices.push(Given {
            path: if utf8 { path.clone() } else { id.path() },
            id,
            name: id
                .kernel_name()
                .with_context(|| format!("there is no device {}", path.display()))?,
        });
    }
    Ok(devices)
}

/// A directory holds one set of devices: a run that names others would silently drop some.
fn same_devices(base: &Manifest, devices: &[Given], dir: &Path) -> Result<()> {
    let here = |old: &&Device| devices.iter().any(|given| plan::is_same(old, given));
    let missing = base.devices.iter().find(|old| !here(old));
    let Some(missing) = missing else {
        return Ok(());
    };
    bail!(
        "the last backup in {} also holds {}: name all its devices, use another directory, or leave it out from now on \
         with --change-devices",
        dir.display(),
        missing.path.display()
    )
}

/// Nanoseconds since 1970.
fn unix_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
