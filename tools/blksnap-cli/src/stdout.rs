// SPDX-License-Identifier: GPL-2.0-or-later

//! A device on standard output: not on a terminal, and without a wait that no signal ends.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use anyhow::{Context, Result, ensure};
use rustix::event::PollFlags;
use rustix::fs::{OFlags, fsync};
use rustix::io::Errno;

use crate::signals::Signals;

/// What it is called in messages.
pub const NAME: &str = "standard output";

/// Standard output, as something to write data to.
pub struct Stdout {
    file: File,
    signals: Signals,
}

impl Stdout {
    /// Fails if it is a terminal.
    pub fn open(signals: &Signals) -> Result<Self> {
        let stdout = io::stdout();
        ensure!(
            !stdout.is_terminal(),
            "the backup is not for a terminal: redirect standard output to a file or a pipe"
        );
        let file = stdout.as_fd().try_clone_to_owned().map(File::from);
        let file = file.context("cannot use standard output")?;
        Ok(Self {
            file: without_waiting(&file).unwrap_or(file),
            signals: signals.clone(),
        })
    }

    /// Waits until what was written is on disk, where that means something: not in a pipe.
    pub fn write_back() -> Result<()> {
        write_back(io::stdout()).context("cannot write back standard output")
    }
}

/// A pipe, opened once more so that a write to it does not wait: the flag would be that of all who have
/// it otherwise. Where that can't be done, a signal ends a write when the reader reads.
fn without_waiting(file: &File) -> Option<File> {
    let is_pipe = file.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
    let mut options = OpenOptions::new();
    // The flag fits: it is one of the kernel's.
    options
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    is_pipe.then(|| options.open("/proc/self/fd/1").ok())?
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let wait = self.signals.wait_for(self.file.as_fd(), PollFlags::OUT);
                    wait.map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    return Err(io::Error::new(error.kind(), "who reads it has ended"));
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_back(file: impl AsFd) -> rustix::io::Result<()> {
    match fsync(file) {
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::ROFS) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_need_no_writing_back() {
        let (_reader, writer) = std::io::pipe().unwrap();
        write_back(&writer).unwrap();
        write_back(tempfile::tempfile().unwrap()).unwrap();
        write_back(File::open("/dev/null").unwrap()).unwrap();
    }
}
