// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap mount`: the devices of all backups, as files, by FUSE.
//!
//! ```text
//! MOUNTPOINT/20261124T201629Z-0a1b2c3d/vda    all of the device, as it was then
//! ```
//!
//! [`tree`] knows the names, [`files`] reads, [`serve`] answers the kernel in several threads, and
//! [`point`] is the mount itself. The directory of backups is locked as for every reader: backups can
//! be made meanwhile, and appear; a prune is refused, so what has been seen stays.
//!
//! It ends when it is unmounted, by whomever. At a signal it unmounts itself; while somebody has a
//! file open that cannot be done, and to stop serving would break what he does. So then it goes on,
//! and tries again until it succeeds.

mod files;
mod point;
mod serve;
mod tree;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use blksnap_backup::Repository;
use fuser::{Config, Session, SessionACL};

use crate::args;
use crate::opened;
use crate::output;
use crate::signals::Signals;
use point::{Point, Unmounted};
use serve::Backups;

/// Requests that are answered at the same time: more than processors, since most wait for a disk.
const THREADS: usize = 8;
/// How often the signals are looked at.
const PERIOD: Duration = Duration::from_millis(50);
/// How often it is tried to unmount what is busy.
const AGAIN: Duration = Duration::from_millis(500);

/// Mounts, and serves until it is unmounted.
pub fn run(args: &args::Mount) -> Result<()> {
    let signals = Signals::catch()?;
    let (repository, id) = Repository::read(&args.backup)?;
    opened::remark(&repository)?;
    if let Some(id) = &id {
        repository.find(Some(id))?;
    }
    let place = point::check(&args.mount_point)?;
    serve(Backups::new(repository, id)?, place, &signals, || {
        output::print(format!("mounted on {}", args.mount_point.display()))
    })
}

/// The same, and calls `ready` when it can be used.
fn serve(
    backups: Backups,
    place: PathBuf,
    signals: &Signals,
    ready: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (point, fuse) = Point::mount(place, backups.path())?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    let session = Session::from_fd(backups, fuse, SessionACL::Owner, config)
        .context("the kernel does not speak this FUSE")?;
    let (end, ended) = mpsc::channel();
    let server = thread::Builder::new().name("fuse".into());
    let server = server
        .spawn(move || end.send(session.run()))
        .context("cannot start a thread")?;
    ready()?;
    let mut tried: Option<Instant> = None;
    let result = loop {
        match ended.recv_timeout(PERIOD) {
            Ok(result) => break result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the server has failed"),
        }
        let wait = tried.is_some_and(|last| last.elapsed() < AGAIN);
        if signals.check().is_ok() || wait {
            continue;
        }
        let first = tried.replace(Instant::now()).is_none();
        match point.unmount()? {
            Unmounted::Done => {}
            Unmounted::Busy if first => tell(format!(
                "{0} is busy: it is unmounted as soon as nobody uses it (`fuser -vm {0}` and `losetup` show who \
                 does; `umount -l {0}` hides it until then)",
                point.path().display()
            )),
            Unmounted::Busy => {}
        }
    };
    // The files and the lock of the directory are closed now.
    let _ = server.join();
    drop(point);
    result.context("cannot serve the kernel's requests")?;
    signals.check()?;
    Ok(())
}

/// Says what is wrong while it goes on, also with `--quiet`.
fn tell(text: impl AsRef<str>) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "blksnap: {}", text.as_ref());
}
