// SPDX-License-Identifier: GPL-2.0-or-later

//! Signals: noted, looked at between pieces of work, and turned into an error, so that everything
//! held is undone.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The signals that ask a process to end.
pub const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

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
        write!(f, "{name}; everything has been cleaned up")
    }
}

impl std::error::Error for Interrupted {}

/// The signals that have come since this was made.
#[derive(Clone, Debug)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// From now on, SIGINT, SIGTERM and SIGHUP are noted and do not end the process.
    pub fn catch() -> Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in ENDING {
            // The constants are small and positive.
            signal_hook::flag::register_usize(signal, last.clone(), signal as usize)
                .context("cannot catch signals")?;
        }
        Ok(Self(last))
    }

    /// Fails once a signal has come, and from then on.
    pub fn check(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted {
                signal: signal as i32,
            }),
        }
    }
}
