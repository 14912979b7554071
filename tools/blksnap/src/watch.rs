// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting for the events of many snapshots in one event loop.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::state;

/// A file that tells when a snapshot has events: for programs that use
/// [`Control`](crate::Control) without a [`Session`](crate::Session) (which has a descriptor of its
/// own, and fetches the events itself).
///
/// Add its descriptor to the event loop for `EPOLLPRI` (`POLLPRI`) only: the file can be read at
/// any time. When it is reported, [`arm`](Self::arm) it again *first*, then fetch the events with
/// [`wait_event`](crate::Control::wait_event) and a timeout of zero until there is none. An event
/// that comes between the two is reported again.
///
/// ```no_run
/// use blksnap::{Control, EventWatch};
/// use rustix::event::{PollFd, PollFlags, poll};
/// use std::time::Duration;
///
/// let control = Control::open()?;
/// let id = control.snapshots()?[0];
/// let watch = EventWatch::open(id)?;
/// while watch.arm()?.is_some() {
///     while let Some(event) = control.wait_event(id, Duration::ZERO)? {
///         println!("{event:?}");
///     }
///     poll(&mut [PollFd::new(&watch, PollFlags::PRI)], None)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EventWatch {
    file: File,
    path: PathBuf,
}

impl EventWatch {
    /// Begins to watch a snapshot.
    pub fn open(id: SnapshotId) -> Result<Self> {
        let path = state::directory(id).join("events");
        match File::open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Error::file("watch the events in", path, source)),
        }
    }

    /// Makes the next event be reported, and gives how many wait now; `None` when the snapshot was
    /// destroyed.
    pub fn arm(&self) -> Result<Option<u64>> {
        let failed = |source| Error::file("look for events in", &self.path, source);
        let mut text = [0; 32];
        match self.file.read_at(&mut text, 0) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&text[..length]);
                let number = text.trim().parse();
                number.map(Some).map_err(|_| failed(Errno::PROTO.into()))
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl AsFd for EventWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
