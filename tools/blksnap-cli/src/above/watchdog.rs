// SPDX-License-Identifier: GPL-2.0-or-later

//! A process that thaws file systems if the one that has frozen them cannot.
//!
//! A file system that stays frozen stops the machine. A guard that thaws when it is dropped does not
//! help against SIGKILL, or a take that hangs. So before the first freeze another process is started: this
//! program, with a hidden command. It has opened the same file systems, and reads from a pipe what is
//! frozen. When the pipe is closed before the end was told, or the time is over, it thaws.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::signals::Signals;

/// The hidden command.
pub const COMMAND: &str = "thaw-if-alone";
/// How long file systems stay frozen at most. The take itself is given up sooner.
const LIMIT: Duration = Duration::from_secs(60);
/// What is told of the file system with a number: it is about to be frozen, or was not.
const LETS_GO: u8 = 0x80;
/// All are thawed.
const END: u8 = 0xff;

/// The other process, seen from the one that freezes.
pub struct Watchdog {
    child: Child,
    pipe: Option<ChildStdin>,
    /// When the first freeze began.
    since: Option<Instant>,
}

impl Watchdog {
    /// Starts it for these file systems, and waits until it is ready.
    pub fn start<'a>(files: impl Iterator<Item = &'a File>) -> Result<Self> {
        // By way of our descriptors: a path could be another file system by now.
        let pid = std::process::id();
        let paths =
            files.map(|file| OsString::from(format!("/proc/{pid}/fd/{}", file.as_raw_fd())));
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).args(paths);
        // What ends our process group does not end it.
        command.process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .context("cannot start a process that would")?;
        let pipe = child.stdin.take();
        let mut ready = [0];
        let answer = child
            .stdout
            .take()
            .map(|mut out| out.read_exact(&mut ready));
        let this = Self {
            child,
            pipe,
            since: None,
        };
        ensure!(
            matches!(answer, Some(Ok(()))),
            "the process that would has ended"
        );
        Ok(this)
    }

    /// Tells that one is about to be frozen.
    pub fn holds(&mut self, index: usize) -> Result<()> {
        let index = u8::try_from(index)
            .ok()
            .filter(|&index| index < LETS_GO - 1);
        let index = index.context("there are too many of them")?;
        self.since.get_or_insert_with(Instant::now);
        self.tell(index)
            .context("cannot tell the process that would thaw it")
    }

    /// Tells that one was not frozen.
    pub fn lets_go(&mut self, index: usize) {
        // If it has ended, it thaws nothing more.
        let _ = self.tell(LETS_GO | index as u8);
    }

    /// Whether it may have thawed by now.
    pub fn is_late(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= LIMIT)
    }

    fn tell(&mut self, what: u8) -> std::io::Result<()> {
        match &mut self.pipe {
            Some(pipe) => pipe.write_all(&[what]),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Tells that all is thawed, and waits for its end, so that it has nothing open.
    pub fn end(&mut self) {
        let _ = self.tell(END);
        self.pipe = None;
        let _ = self.child.wait();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the other process does.
pub fn run(paths: &[PathBuf]) -> Result<()> {
    // Whoever ends all processes of a service must not end this one first.
    let _signals = Signals::catch()?;
    // Without the buffer that standard input has, which would hide from poll(2) what it holds.
    let pipe = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let open = |path: &PathBuf| File::open(path).with_context(|| name(path));
    let files: Vec<_> = paths.iter().map(open).collect::<Result<_>>()?;
    std::io::stdout()
        .write_all(b"r")
        .and_then(|()| std::io::stdout().flush())?;
    for index in frozen_at_end(pipe, LIMIT).into_iter().rev() {
        if let Some(file) = files.get(usize::from(index)) {
            // It may have been thawed just before.
            let _ = super::thaw(file);
        }
    }
    Ok(())
}

fn name(path: &Path) -> String {
    format!("cannot open {}", path.display())
}

/// Reads what is frozen until the end is told, the pipe is closed, or the time since the first freeze
/// is over; gives what is frozen then, in the order in which it was.
fn frozen_at_end(mut pipe: impl Read + AsFd, limit: Duration) -> Vec<u8> {
    let mut frozen = Vec::new();
    let mut end: Option<Instant> = None;
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => continue,
            Ok(1..) => {}
            _ => return frozen,
        }
        let mut what = [0];
        match pipe.read(&mut what) {
            Ok(1) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            _ => return frozen,
        }
        match what[0] {
            END => return Vec::new(),
            index if index < LETS_GO => {
                end.get_or_insert_with(|| Instant::now() + limit);
                frozen.push(index);
            }
            index => frozen.retain(|&one| one != index & !LETS_GO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8], close: bool, limit: Duration) -> Vec<u8> {
        let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
        writer.write_all(bytes).unwrap();
        let open = (!close).then_some(writer);
        let frozen = frozen_at_end(reader, limit);
        drop(open);
        frozen
    }

    #[test]
    fn what_is_frozen_when_the_other_one_has_gone_is_thawed() {
        let long = Duration::from_secs(600);
        assert_eq!(told(&[0, 1, 2, LETS_GO | 1], true, long), [0, 2]);
        assert!(told(&[0, 1, END], false, long).is_empty());
        assert!(told(&[], true, long).is_empty());
    }

    #[test]
    fn what_is_frozen_when_the_time_is_over_is_thawed() {
        assert_eq!(told(&[0, 1], false, Duration::from_millis(20)), [0, 1]);
    }
}
