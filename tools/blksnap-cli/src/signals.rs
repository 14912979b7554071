// SPDX-License-Identifier: GPL-2.0-or-later

//! Signals: noted, looked at between pieces of work, and turned into an error, so that everything
//! held is given up. Who waits is woken by them.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use blksnap_backup::Watch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The signals that ask this process to end: but for those that it was told to ignore when it was
/// started, by nohup or by a shell that runs it in the background.
pub fn ending() -> Vec<i32> {
    // Without /proc nobody has told it.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| ignored & (1 << (signal - 1)) == 0)
        .collect()
}

/// The set of ignored signals, from `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// The error when a signal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// Which.
    pub signal: i32,
}

impl Interrupted {
    /// What a shell says of a process that was ended by the signal.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.signal).unwrap_or(1))
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.signal {
            SIGINT => "interrupted",
            SIGTERM => "terminated",
            SIGHUP => "hung up",
            _ => "ended by a signal",
        };
        f.write_str(name)
    }
}

impl std::error::Error for Interrupted {}

/// The signals that have come since this was made.
#[derive(Clone, Debug)]
pub struct Signals {
    last: Arc<AtomicUsize>,
    /// Can be read from once a signal has come. Nobody does, so all who wait are woken.
    came: Arc<UnixStream>,
}

impl Signals {
    /// From now on, SIGINT, SIGTERM and SIGHUP are noted and do not end the process; those that are
    /// ignored stay so.
    pub fn catch() -> Result<Self> {
        let catch = || -> io::Result<Self> {
            let last = Arc::new(AtomicUsize::new(0));
            let (came, comes) = UnixStream::pair()?;
            for signal in ending() {
                // In this order: who is woken finds it noted. The constants are small and positive.
                signal_hook::flag::register_usize(signal, last.clone(), signal as usize)?;
                pipe::register(signal, comes.try_clone()?)?;
            }
            let came = Arc::new(came);
            Ok(Self { last, came })
        };
        catch().context("cannot catch signals")
    }

    /// As if a signal had come.
    #[cfg(test)]
    pub fn after(signal: i32) -> Self {
        let signals = Self::catch().unwrap();
        let last = Arc::new(AtomicUsize::new(signal as usize));
        Self { last, ..signals }
    }

    /// Fails once a signal has come, and from then on.
    pub fn check(&self) -> Result<(), Interrupted> {
        match self.last.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted {
                signal: signal as i32,
            }),
        }
    }
}

impl Signals {
    /// Waits until something can be done with a file; fails at once when a signal comes.
    pub fn wait_for(&self, file: BorrowedFd<'_>, how: PollFlags) -> Result<(), Interrupted> {
        self.check()?;
        let came = PollFd::new(&*self.came, PollFlags::IN);
        let fds = &mut [came, PollFd::from_borrowed_fd(file, how)];
        // Who tries it finds out whether it can be done now.
        let _ = poll(fds, None);
        self.check()
    }

    /// Waits until then; fails at once when a signal comes.
    pub fn wait_until(&self, then: Instant) -> Result<(), Interrupted> {
        loop {
            self.check()?;
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let left = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let came = &mut [PollFd::new(&*self.came, PollFlags::IN)];
            // Interrupted by another signal, it is called again.
            let _ = poll(came, Some(&left));
        }
    }
}

impl Watch for Signals {
    fn check(&self) -> Result<()> {
        Ok(Self::check(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_found() {
        let status = "Name:\tcat\nSigBlk:\t00000000000000ff\nSigIgn:\t0000000000000003\n";
        assert_eq!(ignored(status), 1 << (SIGHUP - 1) | 1 << (SIGINT - 1));
        assert_eq!(ignored(""), 0);
        assert!(ending().contains(&SIGTERM));
    }
}
