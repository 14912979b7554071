// SPDX-License-Identifier: GPL-2.0-or-later

//! A snapshot held while a command runs: `blksnap snapshot`, and the storage options of all commands
//! that hold one.
//!
//! The session destroys the snapshot when it is dropped, so whatever fails or comes from outside, the
//! snapshot ends with this process; but for SIGKILL, after which the next session at the same place
//! cleans up.

mod unused;

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use blksnap::storage::Place;
use blksnap::{DevId, Image, Session, SessionOptions, Taken};
use blksnap_backup::is_block_device;
use serde::Serialize;
use uuid::Uuid;

use crate::above;
use crate::apart;
use crate::args;
use crate::child::{self, Outcome};
use crate::names;
use crate::output;
use crate::restore::signature;
use crate::signals::Signals;
use crate::size::Size;
use crate::trim;
use unused::LeftOut;

/// How often the snapshot and the signals are looked at.
const PERIOD: Duration = Duration::from_millis(20);

/// Holds a snapshot while the command runs, or until a signal comes.
pub fn run(args: &args::Snapshot) -> Result<ExitCode> {
    // As of `-- $COMMAND` with an empty variable: nobody wants to wait for ever then.
    ensure!(
        !args.command.is_empty() || !std::env::args_os().any(|arg| arg == "--"),
        "there is no command after `--`; without `--`, the snapshot is held until a signal comes"
    );
    let signals = Signals::catch()?;
    let devices = names::devices(&args.devices)?;
    let mut session = open(&devices, &args.storage, Path::new("."))?;
    signals.check()?;
    let taken = above::take(&mut session, &devices, &signals)?;
    let left_out = match args.leave_out_unused {
        true => unused::leave_out(&session)?,
        false => vec![LeftOut::default(); devices.len()],
    };
    let Some((program, rest)) = args.command.split_first() else {
        describe(&session, taken, left_out, args.json)?;
        let code = hold(session, &signals);
        if args.storage.trim {
            trim::trim(&devices);
        }
        return code;
    };
    let mut command = Command::new(program);
    command.args(rest);
    let outcome = run_command(command, &session, &signals)?;
    let lost = session.check();
    session.destroy()?;
    if args.storage.trim {
        trim::trim(&devices);
    }
    lost?;
    Ok(outcome.exit_code())
}

/// A snapshot that is held, for scripts.
#[derive(Serialize)]
struct Description {
    id: Uuid,
    /// Seconds since 1970, just after the take.
    taken: u64,
    images: Vec<ImageDescription>,
}

/// One of its images.
#[derive(Serialize)]
struct ImageDescription {
    device: PathBuf,
    number: String,
    image: PathBuf,
    /// Bytes that are left out.
    unused: u64,
    unused_unknown: Option<String>,
}

/// Says what there is, and what is not in its images.
fn describe(session: &Session, taken: Taken, left_out: Vec<LeftOut>, json: bool) -> Result<()> {
    if json {
        let images = session.images().iter().zip(left_out);
        return output::print_json_line(&Description {
            id: session.id().0,
            taken: unix(taken.after.wall),
            images: images
                .map(|(image, left_out)| ImageDescription {
                    device: image.original.path(),
                    number: image.original.to_string(),
                    image: image.path.clone(),
                    unused: left_out.bytes,
                    unused_unknown: left_out.unknown,
                })
                .collect(),
        });
    }
    output::print(format!("snapshot {}", session.id()))?;
    for image in session.images() {
        let original = image.original.path();
        output::print(format!("{} {}", original.display(), image.path.display()))?;
    }
    Ok(())
}

/// Seconds since 1970.
fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Waits for a signal.
fn hold(session: Session, signals: &Signals) -> Result<ExitCode> {
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
    for device in devices {
        let size = std::fs::read_to_string(device.sysfs().join("size"));
        ensure!(
            !size.is_ok_and(|size| size.trim() == "0"),
            "{}: there is nothing to capture: it has no size, as a loop device without a file or an empty drive",
            device.describe()
        );
    }
    if let Some(storage) = args.storage.as_deref().filter(|path| is_block_device(path)) {
        // A slip of the pen would cost all that is there.
        if let Some(what) = signature::found(storage)? {
            bail!(
                "{}: it has {what}, and a device that is named as storage is overwritten: name a directory, or another \
                 device; if nothing there is needed, `wipefs -a {0}` removes it",
                storage.display()
            );
        }
    }
    let options = SessionOptions {
        place: Place::new(args.storage.as_deref().unwrap_or(default)),
        portion: args.portion.0,
        limit: args.limit.map(|limit| limit.0),
        reserve: args.reserve,
        interface: args.abi.map(Into::into),
    };
    let place = options.place.directory();
    let session = Session::create(devices, options.clone())?;
    if let Some(reserved) = session.reserved_bytes() {
        output::remark(format!(
            "difference storage: {} reserved in {}",
            Size(reserved),
            place.display()
        ));
    }
    apart::remark_storage(&place, devices);
    if let Some(errno) = session.changeable_storage() {
        output::remark(format!(
            "difference storage: its files in {} cannot be made immutable ({errno}): do not change, defragment, move or \
             remove {}*.storage while the snapshot is held",
            place.display(),
            options.place.with("blksnap-").display()
        ));
    }
    Ok(session)
}

/// Runs what is to be run with `sh` after the take of a backup. Its output is no result of ours.
pub fn after_take(command: Option<&OsStr>, session: &Session, signals: &Signals) -> Result<()> {
    let Some(command) = command else {
        return Ok(());
    };
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command);
    shell.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
    let outcome = run_command(shell, session, signals)?;
    signals.check()?;
    outcome.success()
}

/// Runs a command that is told of the images by its environment, and says at once when the snapshot
/// is lost.
pub fn run_command(mut command: Command, session: &Session, signals: &Signals) -> Result<Outcome> {
    signals.check()?;
    command.envs(environment(session));
    let mut warned = false;
    child::run(command, || {
        if let (false, Err(lost)) = (warned, session.check()) {
            eprintln!("blksnap: {lost}");
            warned = true;
        }
    })
}

/// The variables a command finds the images by.
fn environment(session: &Session) -> Vec<(String, OsString)> {
    let images = session.images();
    let list = |path: fn(&Image) -> PathBuf| {
        let paths: Vec<_> = images
            .iter()
            .map(|image| path(image).to_string_lossy().into_owned())
            .collect();
        OsString::from(paths.join(" "))
    };
    let mut variables = vec![
        ("BLKSNAP_ID".into(), session.id().to_string().into()),
        ("BLKSNAP_IMAGES".into(), list(|image| image.path.clone())),
        (
            "BLKSNAP_DEVICES".into(),
            list(|image| image.original.path()),
        ),
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
