// SPDX-License-Identifier: MIT OR Apache-2.0

//! A snapshot from creation to destruction, with its difference storage looked after.
//!
//! ```text
//! create ── first portion appended ── take ── images are read ── destroy ── files removed
//!              └────── a thread: low free space → new file → append; corrupted → noted ──────┘
//! ```

mod changes;
mod feeder;
mod health;
mod supply;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::control::{Control, Image};
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::owner::{self, Claim};
use crate::state::{self, ImageState, SnapshotState};
use crate::storage::{Place, remove_stale};
use crate::units::ByteSet;
use feeder::{Feeder, Shared};

pub use changes::Changes;
pub use health::SessionEvent;

/// How a [`Session`] gets its difference storage.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where its files are made.
    pub place: Place,
    /// Bytes appended at a time, at least; the module may ask for more.
    pub portion: u64,
    /// Bytes that are never exceeded; the snapshot is lost when they are not enough.
    ///
    /// Where storage has to be reserved (see [`Session`]), this is how much: by default a fifth of
    /// the captured devices, at least 1 GiB or as much as they can need, at most half of the space
    /// that is free.
    pub limit: Option<u64>,
    /// Reserve the storage before the take wherever it is: for when another snapshot may capture
    /// its file system meanwhile.
    pub reserve: bool,
}

impl SessionOptions {
    /// Storage in files in a directory, as much as the module asks for.
    pub fn in_directory(path: impl Into<PathBuf>) -> Self {
        Self {
            place: Place::new(path.into()),
            portion: 0,
            limit: None,
            reserve: false,
        }
    }
}

/// A point in time on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// The time of day.
    pub wall: SystemTime,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self {
            monotonic_ns: now.tv_sec * 1_000_000_000 + now.tv_nsec,
            wall: SystemTime::now(),
        }
    }
}

/// When a snapshot was taken: the one instant lies between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Before the take was asked for. What was written durably before this is in the images.
    pub before: Moment,
    /// After it was done. What was begun after this is not in the images.
    pub after: Moment,
}

/// A snapshot that feeds itself with storage. Dropping it destroys the snapshot and removes its
/// files.
///
/// Usually a file is made for each portion of storage when the module asks for it. If the files are
/// on a captured device, that would destroy old data: a block which belonged, at the instant, to a
/// file that was deleted since could become storage ([more](crate::storage#storage-on-a-captured-device)).
/// There, one file of [the limit](SessionOptions::limit) is allocated in [`create`](Self::create),
/// before anything is captured, and appended portion by portion; when all of it was given, no more
/// is allocated, and the snapshot may overflow. The image shows that file as one of zeros.
/// Storage on a device that another snapshot has captured before is refused, and so is storage on
/// a device that is built on a captured one (a logical volume, a loop device on a file).
///
/// The files are removed only after the snapshot has been destroyed: the module may write to their
/// blocks until then. So they are immutable meanwhile, where that is possible. A process that is killed
/// leaves both behind, and the next session with the
/// same place removes both, whatever its devices are: the files of a session that lives are locked,
/// and these are not. ([`remove_stale`] does only that.) A process that forks without exec(2) keeps
/// the locks as long as the child lives.
///
/// # In an event loop
///
/// A session is `Send` and `Sync`. Methods that wait for something say **blocks** and belong on a
/// thread that may (`spawn_blocking`, for example); all others return at once. The feeding goes on
/// in a thread of the session's own, whatever its user does.
///
/// The session's descriptor can be read (`POLLIN`) as long as [`next_event`](Self::next_event) has
/// something to give: put it into poll(2), epoll, or what a runtime has for it, such as tokio's
/// `AsyncFd`, with level or edge triggering; fetch events until there is none, and wait again. It
/// must not be read or written itself. `examples/event_loop.rs` holds several snapshots in one loop.
#[derive(Debug)]
pub struct Session {
    control: Control,
    id: SnapshotId,
    shared: Arc<Shared>,
    feeder: Option<JoinHandle<()>>,
    images: Vec<Image>,
    taken: Option<Taken>,
    destroyed: bool,
    /// Tells others that this process lives.
    _claim: Option<Claim>,
}

impl Session {
    /// Creates a snapshot of several devices and gives it the first portion of storage. Nothing is
    /// captured yet. Before that, cleans up after sessions with the same place that were killed.
    ///
    /// **Blocks** while files are allocated and written back.
    pub fn create(devices: &[DevId], options: SessionOptions) -> Result<Self> {
        let control = Control::open()?;
        remove_stale(&options.place, &control)?;
        owner::forget_ended(&control)?;
        let feeder_control = Control::open()?;
        let shared = Arc::new(Shared::new()?);
        let id = control.snapshot_create(devices)?;
        // From here on, dropping the session destroys the snapshot.
        let mut session = Self {
            control,
            id,
            shared: shared.clone(),
            feeder: None,
            images: Vec::new(),
            taken: None,
            destroyed: false,
            _claim: Claim::new(id, &options.place),
        };
        let mut feeder = Feeder::new(feeder_control, id, devices, options, shared)?;
        feeder.first_portion()?;
        let thread = std::thread::Builder::new().name("blksnap-feeder".into());
        let thread = thread
            .spawn(move || feeder.run())
            .map_err(|source| Error::file("start a thread for", "/dev/blksnap", source))?;
        session.feeder = Some(thread);
        Ok(session)
    }

    /// The snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The control device the session works with.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Captures all devices at one instant. When this returns, the images are there.
    ///
    /// **Blocks** until the file systems on the devices are written back.
    pub fn take(&mut self) -> Result<Taken> {
        let before = Moment::now();
        self.control.snapshot_take(self.id)?;
        let after = Moment::now();
        self.images = self.control.images(self.id)?;
        let taken = Taken { before, after };
        self.taken = Some(taken);
        Ok(taken)
    }

    /// When the snapshot was taken.
    pub fn taken(&self) -> Option<Taken> {
        self.taken
    }

    /// The images, in the order of the devices; empty before the take.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Fails when the snapshot is lost: what was read from its images before may be wrong only if
    /// it was read after the loss, and the module gives errors then. Ask when a read has failed,
    /// and at the end.
    pub fn check(&self) -> Result<()> {
        self.look(Duration::ZERO)
    }

    /// As [`check`](Self::check), but waits a little for the event: for use after a read error.
    ///
    /// **Blocks**, for half a second when the snapshot is good.
    pub fn check_after_error(&self) -> Result<()> {
        self.look(Duration::from_millis(500))
    }

    /// Looks at what the feeder was told, waiting for it; then at what the module shows, as the
    /// feeder may be behind.
    fn look(&self, patience: Duration) -> Result<()> {
        self.shared.health.check(self.id, patience)?;
        for image in &self.images {
            if let Some(errno @ 1..) = ImageState::read(image).error {
                return Err(Error::Corrupted {
                    device: image.original,
                    errno: Errno::from_raw_os_error(errno.into()),
                    trouble: self.trouble(),
                });
            }
        }
        if self.taken.is_some() && state::has_gone(self.id) {
            return Err(Error::Gone(self.id));
        }
        Ok(())
    }

    /// Fetches the oldest of what the session has to say; never waits. Each event is given once, to
    /// one caller; [`check`](Self::check) remembers a loss for ever.
    pub fn next_event(&self) -> Option<SessionEvent> {
        self.shared.health.next()
    }

    /// As [`next_event`](Self::next_event), but waits for an event until `timeout` is over.
    ///
    /// **Blocks.** An event loop waits for the session's descriptor instead: see
    /// [`AsFd`](#impl-AsFd-for-Session).
    pub fn wait_event(&self, timeout: Duration) -> Option<SessionEvent> {
        self.shared.health.wait(timeout)
    }

    /// What went wrong while storage was appended, if anything. The snapshot may still be good.
    pub fn trouble(&self) -> Option<String> {
        self.shared.health.trouble()
    }

    /// Bytes of difference storage given so far.
    pub fn storage_bytes(&self) -> u64 {
        self.shared.storage_bytes()
    }

    /// How many portions of storage were given so far: one before the take, the others because the
    /// module asked for them.
    pub fn portions(&self) -> usize {
        self.shared.portions()
    }

    /// Bytes of difference storage that were allocated before the take, if they had to be: nothing
    /// is added to them.
    pub fn reserved_bytes(&self) -> Option<u64> {
        self.shared.reserved()
    }

    /// Why difference files can be changed, moved and removed by others; `None` if all were made
    /// immutable (see [`storage`](crate::storage)).
    pub fn changeable_storage(&self) -> Option<Errno> {
        self.shared.changeable()
    }

    /// What the module shows of the snapshot.
    pub fn state(&self) -> SnapshotState {
        SnapshotState::read(self.id)
    }

    /// Where the difference storage given so far lies on a device, in bytes; also if one is a
    /// partition of the other. These blocks read as zeros in the image of the device, since the
    /// moment at which they were given, and are marked as changed for the snapshot and the next one.
    ///
    /// What it does not name is not storage yet: so it **blocks** while storage is being given.
    pub fn storage_on(&self, device: DevId) -> ByteSet {
        self.shared.storage_on(device)
    }

    /// Destroys the snapshot and removes its files, as dropping it does, and tells how that went.
    ///
    /// **Blocks** until the copies under way have ended. So does dropping it.
    pub fn destroy(mut self) -> Result<()> {
        self.finish()
    }

    /// Destroys the snapshot, waits for the thread, removes the files.
    fn finish(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        self.shared.stop();
        let destroyed = self.control.snapshot_end(self.id);
        if let Some(thread) = self.feeder.take() {
            // A panic of the thread has been printed, and there is nothing more to do about it.
            let _ = thread.join();
        }
        // While the snapshot lives, its files must stay.
        destroyed?;
        self.shared.remove_files()
    }
}

/// The descriptor that can be read while there are events: see [`Session`].
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.health.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Who wants to know calls `destroy`.
        let _ = self.finish();
    }
}
