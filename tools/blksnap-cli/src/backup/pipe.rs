// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap backup DEV --to -`: one device on standard output, as it is (raw) or as an rbd-diff.
//!
//! A raw stream has all of the device. For an rbd-diff, what the receiver has is not known here, so a file
//! keeps what an incremental backup needs to know: the generation and number of the last snapshot, its id, and
//! the name it has for the receiver. It is replaced after all was written. A stream that fails has no end, which
//! the receiver of an rbd-diff sees; that of a raw one has to look at its length, or at the exit code.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blksnap::CbtInfo;
use blksnap_backup::format::Writer;
use blksnap_backup::format::raw::RawStream;
use blksnap_backup::format::rbd_diff::Stream;
use blksnap_backup::{Format, Recorder, name_of, private, sync_dir};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::job::Job;
use super::phases::{Phase, Phases};
use super::plan::Plan;
use super::{Given, catch_up, explain, new_entry, plan};
use crate::above;
use crate::args;
use crate::hold;
use crate::output;
use crate::rate::Pace;
use crate::remembered::{Memory, Take};
use crate::signals::Signals;
use crate::stdout::{self, Stdout};
use crate::trim;

/// What [`State::format`] says.
const FORMAT: &str = "blksnap-state";
/// The newest version known here.
const VERSION: u32 = 1;

/// What is known of the last backup.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    format: String,
    version: u32,
    /// The name of the snapshot in the stream.
    snapshot: String,
    path: PathBuf,
    size: u64,
    generation: Uuid,
    number: u8,
    /// The id of the snapshot. Earlier versions did not keep it.
    #[serde(default)]
    snapshot_id: Uuid,
}

/// Writes a backup to standard output.
pub fn run(args: &args::Backup, devices: &[Given], signals: &Signals) -> Result<()> {
    let [device] = devices else {
        bail!("only one device can be written to standard output");
    };
    ensure!(
        args.format != Format::Qcow2,
        "only raw and rbd-diff can be written to standard output: an image of QEMU is not written in order"
    );
    ensure!(
        args.format != Format::Raw || args.state.is_none() && !args.incremental,
        "a raw stream has all of the device: --state and --incremental are for --format rbd-diff"
    );
    ensure!(
        !args.verify && !args.json && !args.skip_unreadable,
        "--verify, --json and --skip-unreadable need a directory: standard output is the backup"
    );
    let out = Stdout::open(signals)?;
    let raw = args.format == Format::Raw;
    let old = match raw {
        true => Err("as a raw stream is".into()),
        false => State::read(args.state.as_deref(), args.full)?,
    };

    let mut session = hold::open(&[device.id], &args.storage, Path::new("."))?;
    let phases = Phases::new(args.progress, Pace::new(args.rate), signals);
    let taking = phases.begin(Phase::Taking, "taking the snapshot");
    let taken = above::take(&mut session, &[device.id], signals)?;
    taking.finish();
    signals.check()?;
    hold::after_take(args.exec_after_take.as_deref(), &session, signals)?;
    let info = session.tracker(device.id)?;
    let info = info.with_context(|| format!("{} is no longer tracked", device.path.display()))?;
    let memory = Memory::open();
    let since = old.and_then(|old| {
        let number = plan::continued(old.size, old.take(), &info, &memory)?;
        Ok((number, old.snapshot))
    });
    let (plan, from) = match since {
        Ok((since, from)) => {
            let parts = Vec::new();
            (Plan::Incremental { since, parts }, Some(from))
        }
        Err(reason) => (Plan::Full { reason }, None),
    };
    if let (Plan::Full { reason }, false) = (&plan, raw) {
        output::remark(format!(
            "{}: a full backup is made: {reason}",
            device.path.display()
        ));
    }
    let to = name_of(taken.before.wall, session.id().0)?;
    let writer = writer(out, raw, &info, from.as_deref(), &to)?;
    let entry = new_entry(device, &info, &plan, args.format);
    let recorder = Recorder::with(entry, writer);
    let mut jobs = [Job::new(&session, &phases, 0, info, plan, recorder)?];
    if raw && !args.all_blocks {
        jobs[0].leave_out_unused();
    }
    phases.plan(jobs[0].expected());
    let copied = jobs[0].copy().and_then(|()| catch_up(&mut jobs, false));
    copied.map_err(|error| match signals.check() {
        // A write that was given up is no more than that.
        Err(interrupted) => interrupted.into(),
        Ok(()) => explain(error, &session),
    })?;
    let [job] = jobs;
    let (recorder, report) = job.finish();
    // The end is written only if all before it is good.
    session.check()?;
    recorder.close()?;
    // The state must not know of a backup that is not there after a power cut.
    Stdout::write_back()?;
    if let Some(path) = &args.state {
        let state = State {
            format: FORMAT.into(),
            version: VERSION,
            snapshot: to,
            path: device.path.clone(),
            size: info.capacity,
            generation: info.generation.0,
            number: info.number,
            snapshot_id: session.id().0,
        };
        state.write(path)?;
        memory.remember(device.id, &device.path, state.take());
    }
    session.destroy()?;
    if args.storage.trim {
        trim::trim(&[device.id]);
    }
    output::remark(report.to_string());
    if let Some(why) = &report.unused_unknown {
        let path = device.path.display();
        output::remark(format!("{path}: unused blocks are read, too: {why}"));
    }
    Ok(())
}

/// What writes the stream, to the snapshot `to`.
fn writer(
    out: Stdout,
    raw: bool,
    info: &CbtInfo,
    from: Option<&str>,
    to: &str,
) -> Result<Box<dyn Writer>> {
    let (out, size) = (Box::new(out), info.capacity);
    Ok(match raw {
        true => Box::new(RawStream::new(out, stdout::NAME, size)),
        false => Box::new(Stream::new(out, stdout::NAME, size, from, to)?),
    })
}

impl State {
    fn take(&self) -> Take {
        Take {
            snapshot: self.snapshot_id,
            generation: self.generation,
            number: self.number,
        }
    }

    /// Reads the file; or says why a full backup is made.
    fn read(path: Option<&Path>, full: bool) -> Result<Result<Self, String>> {
        let Some(path) = path else {
            return Ok(Err("there is no --state to tell what changed since".into()));
        };
        let failed = || format!("the state {}", path.display());
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Err(format!("{} does not exist", path.display())));
            }
            text => text.with_context(failed)?,
        };
        // Also when a full backup is asked for: nothing else is overwritten.
        let state: Self = serde_json::from_str(&text).with_context(failed)?;
        ensure!(
            state.format == FORMAT && state.version <= VERSION,
            "{}: not written by this version of blksnap",
            failed()
        );
        Ok(if full {
            Err("asked for".into())
        } else {
            Ok(state)
        })
    }

    /// Replaces the file: the old one or the new one is there after a crash.
    fn write(&self, path: &Path) -> Result<()> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let write = || -> std::io::Result<()> {
            let mut file = private::replace(new.as_ref())?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        match path.parent() {
            Some(dir) if dir != Path::new("") => sync_dir(dir),
            _ => sync_dir(Path::new(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_kept_and_only_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let read = |full| State::read(Some(&path), full);
        assert!(
            State::read(None, false)
                .unwrap()
                .unwrap_err()
                .contains("--state")
        );
        assert!(read(false).unwrap().unwrap_err().contains("does not exist"));
        let state = |version| State {
            format: FORMAT.into(),
            version,
            snapshot: "20261124T201629Z-00000001".into(),
            path: "/dev/vda".into(),
            size: 4096,
            generation: Uuid::from_u128(1),
            number: 3,
            snapshot_id: Uuid::from_u128(2),
        };
        state(1).write(&path).unwrap();
        assert_eq!(read(false).unwrap(), Ok(state(1)));
        assert_eq!(read(true).unwrap(), Err("asked for".into()));
        // An earlier version wrote no id: that is none that is remembered.
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.replace(
            ",\n  \"snapshot_id\": \"00000000-0000-0000-0000-000000000002\"",
            "",
        );
        assert_ne!(lines, text);
        fs::write(&path, lines).unwrap();
        let earlier = read(false).unwrap().unwrap();
        assert_eq!((earlier.number, earlier.snapshot_id), (3, Uuid::nil()));
        state(2).write(&path).unwrap();
        assert!(read(false).is_err());
        fs::write(&path, "root:x:0:0").unwrap();
        assert!(read(true).is_err(), "no other file is replaced");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
