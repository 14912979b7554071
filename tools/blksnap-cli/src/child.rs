// SPDX-License-Identifier: GPL-2.0-or-later

//! A command that is run, and is told of the signals that come meanwhile.
//!
//! At a terminal the command stays in the process group of this process, so that it can read from the
//! terminal and is reached by its keys: a signal that the kernel has sent to the group, for Ctrl-C or
//! a hangup, is not sent again. Without a terminal (cron, a unit of systemd) the command gets a group
//! of its own, and a signal is passed on to all of it: a shell's children end with the shell.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use crate::signals::{self, Interrupted};

/// How often the command and the signals are looked at.
const PERIOD: Duration = Duration::from_millis(20);

/// How a command ended.
#[derive(Debug)]
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

/// Runs a command to its end, and calls `meanwhile` now and then.
pub fn run(mut command: Command, mut meanwhile: impl FnMut()) -> Result<Outcome> {
    let program = command.get_program().to_owned();
    let mut signals = SignalsInfo::<WithOrigin>::new(signals::ending())
        .context("cannot catch signals for the command")?;
    let at_terminal = File::open("/dev/tty").is_ok();
    if !at_terminal {
        command.process_group(0);
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            break status;
        }
        for origin in signals.pending() {
            pass_on(&origin, &child, at_terminal);
        }
        meanwhile();
        std::thread::sleep(PERIOD);
    };
    Ok(Outcome { program, status })
}

/// Sends a signal to the command as well, if it has not got it.
fn pass_on(origin: &Origin, child: &Child, at_terminal: bool) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(origin.signal)) else {
        return;
    };
    // It may have ended just now.
    let _ = match (at_terminal, origin.cause) {
        (true, Cause::Kernel) => Ok(()),
        (true, _) => kill_process(pid, signal),
        (false, _) => kill_process_group(pid, signal),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    // Nothing is run here: a process that is being started has the locks of the other tests.
    #[test]
    fn the_exit_code_is_that_of_the_command() {
        let outcome = |raw| Outcome {
            program: "sh".into(),
            status: ExitStatus::from_raw(raw),
        };
        let code = |raw| format!("{:?}", outcome(raw).exit_code());
        let same = |number: u8| format!("{:?}", ExitCode::from(number));
        assert!(outcome(0).success().is_ok());
        let error = outcome(7 << 8).success().unwrap_err().to_string();
        assert_eq!(error, "sh: exit status: 7");
        assert_eq!(code(0), same(0));
        assert_eq!(code(7 << 8), same(7));
        assert_eq!(code(15), same(143));
    }
}
