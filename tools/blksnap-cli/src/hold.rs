// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap snapshot … -- COMMAND`: a snapshot held while a command runs.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use blksnap::storage::Place;
use blksnap::{DevId, Session, SessionOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::args;
use crate::names;
use crate::output;
use crate::signals::{Interrupted, Signals};
use crate::size::Size;

/// How often is looked at the command, the snapshot and the signals.
const PERIOD: Duration = Duration::from_millis(20);

/// Holds a snapshot while the command runs, or until a signal comes.
pub fn run(args: &args::Snapshot) -> Result<ExitCode> {
    let signals = Signals::catch()?;
    let devices = names::devices(&args.devices)?;
    let mut session = open(&devices, &args.storage, Path::new("."))?;
    session.take()?;
    let Some((program, rest)) = args.command.split_first() else {
        return hold(session, &signals);
    };
    let mut command = Command::new(program);
    command.args(rest);
    let outcome = run_command(command, &session, &signals)?;
    let lost = session.check();
    session.destroy()?;
    lost?;
    Ok(outcome.exit_code())
}

/// Says what there is, and waits for a signal.
fn hold(session: Session, signals: &Signals) -> Result<ExitCode> {
    output::print(format!("snapshot {}", session.id()))?;
    for image in session.images() {
        let original = image.original.path();
        output::print(format!("{} {}", original.display(), image.path.display()))?;
    }
    while signals.check().is_ok() {
        session.check()?;
        std::thread::sleep(PERIOD);
    }
    session.destroy()?;
    signals.check()?;
    Ok(ExitCode::SUCCESS)
}

/// Creates a snapshot that gets its storage as the options say, and says what was reserved for it.
pub fn open(devices: &[DevId], args: &args::StorageArgs, default: &Path) -> Result<Session> {
    let options = SessionOptions {
        place: Place::new(args.storage.as_deref().unwrap_or(default)),
        portion: args.portion.0,
        limit: args.limit.map(|limit| limit.0),
        reserve: args.reserve,
    };
    let place = options.place.directory();
    let session = Session::create(devices, options)?;
    if let Some(reserved) = session.reserved_bytes() {
        eprintln!(
            "difference storage: {} reserved in {}",
            Size(reserved),
            place.display()
        );
    }
    Ok(session)
}

/// How a command ended.
pub struct Outcome {
    program: OsString,
    status: ExitStatus,
}

impl Outcome {
    /// The exit code that tells the same of this process.
    pub fn exit_code(&self) -> ExitCode {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            (None, Some(signal)) => Interrupted { signal }.exit_code(),
            (None, None) => ExitCode::FAILURE,
        }
    }

    /// Fails if the command did.
    pub fn success(&self) -> Result<()> {
        if self.status.success() {
            return Ok(());
        }
        bail!("{}: {}", self.program.to_string_lossy(), self.status)
    }
}

/// Runs a command that is told of the images by its environment. Signals are passed on to it.
pub fn run_command(mut command: Command, session: &Session, signals: &Signals) -> Result<Outcome> {
    let program = command.get_program().to_owned();
    command.envs(environment(session));
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let mut warned = false;
    let status = loop {
        let status = child.try_wait();
        if let Some(status) = status.context("cannot wait for the command")? {
            break status;
        }
        let signal = signals.take().and_then(Signal::from_named_raw);
        if let (Some(pid), Some(signal)) = (pid, signal) {
            // It may have ended just now.
            let _ = kill_process(pid, signal);
        }
        if let (false, Err(lost)) = (warned, session.check()) {
            eprintln!("blksnap: {lost}");
            warned = true;
        }
        std::thread::sleep(PERIOD);
    };
    Ok(Outcome { program, status })
}

/// The variables a command finds the images by.
fn environment(session: &Session) -> Vec<(String, OsString)> {
    let images = session.images();
    let paths: Vec<_> = images
        .iter()
        .map(|image| image.path.to_string_lossy())
        .collect();
    let mut variables = vec![
        ("BLKSNAP_ID".into(), session.id().to_string().into()),
        ("BLKSNAP_IMAGES".into(), paths.join(" ").into()),
    ];
    if let [image] = images {
        variables.push(("BLKSNAP_IMAGE".into(), image.path.clone().into()));
    }
    for image in images {
        let name = image.original.kernel_name();
        let name = variable_name(&name.unwrap_or_else(|| image.original.to_string()));
        variables.push((name, image.path.clone().into()));
    }
    variables
}

/// The variable for a device: what can't be in a name becomes `_`.
fn variable_name(device: &str) -> String {
    let name = device.to_ascii_uppercase();
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("BLKSNAP_IMAGE_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_names_that_a_shell_takes() {
        assert_eq!(variable_name("vda1"), "BLKSNAP_IMAGE_VDA1");
        assert_eq!(variable_name("dm-3"), "BLKSNAP_IMAGE_DM_3");
        assert_eq!(variable_name("cciss!c0d0"), "BLKSNAP_IMAGE_CCISS_C0D0");
    }
}
