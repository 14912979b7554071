// SPDX-License-Identifier: MIT OR Apache-2.0

//! A snapshot from creation to destruction, with its difference storage looked after.
//!
//! ```text
//! create ── first portion appended ── take ── images are read ── destroy ── files removed
//!              └────── a thread: low free space → new file → append; corrupted → noted ──────┘
//! ```
//!
//! That is what it does by the first interface (`fed`). By the second (`held`), the kernel has the
//! storage, and there is no thread.

mod changes;
mod engine;
mod fed;
mod feeder;
mod health;
mod held;
mod room;
mod sizes;
mod supply;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::cbt::{CbtInfo, ChangeMap};
use crate::control::Image;
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::state::{self, ImageState, SnapshotState};
use crate::storage::Place;
use crate::units::{ByteSet, SectorRange};
use crate::v2;
use engine::Engine;
use fed::Fed;
use held::Held;

pub use changes::Changes;
pub use health::SessionEvent;

/// A control interface of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// That of 2022, `/dev/blksnap`: the session finds storage, and feeds the snapshot with it.
    First,
    /// That of 2025, `/dev/blksnap-control`: the kernel holds the storage.
    Second,
}

/// How a [`Session`] gets its difference storage.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where it is. By the first interface, files are made there. By the second, the kernel makes
    /// one without a name in that directory, or uses the regular file or the block device with this
    /// very path, whose contents are lost.
    pub place: Place,
    /// Bytes appended at a time, at least; the module may ask for more. Of the first interface only:
    /// by the second, it is the module's parameter `diff_storage_minimum`.
    pub portion: u64,
    /// Bytes that are never exceeded; the snapshot is lost when they are not enough.
    ///
    /// Where storage has to be reserved (see [`Session`]), this is how much: by default a fifth of
    /// the captured devices, at least 1 GiB or as much as they can need, at most half of the space
    /// that is free. By the second interface there is always a limit: elsewhere, by default as much
    /// as the devices can need, at most half of the space that is free.
    pub limit: Option<u64>,
    /// Reserve the storage before the take wherever it is: for when another snapshot may capture
    /// its file system meanwhile.
    pub reserve: bool,
    /// Which interface is used; if nothing is said, the second where the module has it.
    pub interface: Option<Interface>,
}

impl SessionOptions {
    /// Storage in a directory, as much as the module asks for.
    pub fn in_directory(path: impl Into<PathBuf>) -> Self {
        Self {
            place: Place::new(path.into()),
            portion: 0,
            limit: None,
            reserve: false,
            interface: None,
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

/// A snapshot whose storage is looked after. Dropping it destroys the snapshot and removes its files.
///
/// # By the second interface
///
/// Where the module has `/dev/blksnap-control`, the kernel makes and holds the storage, on any file
/// system in which it can: nobody can take its blocks away, it grows without us, and it is gone with
/// the snapshot. If its file system is captured, all of [the limit](SessionOptions::limit) is
/// allocated in [`create`](Self::create); for this it must be of a kind that can be held by its
/// blocks, such as ext4 and xfs. A device that is built on a captured one is refused. The
/// snapshot is bound to the session: when the process is killed, nothing is left.
///
/// # By the first interface
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
/// leaves them behind (and, with an older module, the snapshot), and the next session with the
/// same place removes both, whatever its devices are: the files of a session that lives are locked,
/// and these are not. ([`remove_stale`](crate::storage::remove_stale) does only that.) A process that
/// forks without exec(2) keeps the locks as long as the child lives, and a bound snapshot as well.
///
/// # In an event loop
///
/// A session is `Send` and `Sync`. Methods that wait for something say **blocks** and belong on a
/// thread that may (`spawn_blocking`, for example); all others return at once. The feeding, where
/// there is any, goes on in a thread of the session's own, whatever its user does.
///
/// The session's descriptor can be read (`POLLIN`) as long as [`next_event`](Self::next_event) has
/// something to give: put it into poll(2), epoll, or what a runtime has for it, such as tokio's
/// `AsyncFd`, with level or edge triggering; fetch events until there is none, and wait again. It
/// must not be read or written itself. `examples/event_loop.rs` holds several snapshots in one loop.
#[derive(Debug)]
pub struct Session {
    id: SnapshotId,
    engine: Box<dyn Engine>,
    interface: Interface,
    images: Vec<Image>,
    taken: Option<Taken>,
    destroyed: bool,
}

impl Session {
    /// Creates a snapshot of several devices and gives it the first portion of storage. Nothing is
    /// captured yet. Before that, cleans up after sessions with the same place that were killed.
    ///
    /// **Blocks** while files are allocated and written back.
    pub fn create(devices: &[DevId], options: SessionOptions) -> Result<Self> {
        let second = match options.interface {
            Some(Interface::First) => None,
            Some(Interface::Second) => Some(v2::Control::open()?),
            None => v2::Control::open_if_there()?,
        };
        let (interface, (id, engine)) = match second {
            Some(control) => (Interface::Second, Held::create(control, devices, &options)?),
            None => (Interface::First, Fed::create(devices, options)?),
        };
        Ok(Self {
            id,
            engine,
            interface,
            images: Vec::new(),
            taken: None,
            destroyed: false,
        })
    }

    /// The snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The interface that is used.
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// What is known of a tracked device; `None` if it is not tracked any more.
    pub fn tracker(&self, device: DevId) -> Result<Option<CbtInfo>> {
        self.engine.tracker(device)
    }

    /// The whole change map of a device, as of its last take.
    pub fn change_map(&self, info: &CbtInfo) -> Result<ChangeMap> {
        self.engine.change_map(info)
    }

    /// Captures all devices at one instant. When this returns, the images are there.
    ///
    /// **Blocks** until the file systems on the devices are written back.
    pub fn take(&mut self) -> Result<Taken> {
        let before = Moment::now();
        self.engine.take()?;
        let after = Moment::now();
        self.images = self.engine.images()?;
        let taken = Taken { before, after };
        self.taken = Some(taken);
        Ok(taken)
    }

    /// Tells the module what of a device had no meaning at the instant, such as the free blocks of a file
    /// system *as its image has them*: what is written there is not copied from then on, so it takes
    /// no storage, and the image shows zeros there, but for what was copied before. Only whole sectors are
    /// told. `false` if the module is one that does not know this; then all is as it was.
    ///
    /// What is told wrongly is lost for the image, and cannot be taken back.
    pub fn give_unused(&self, device: DevId, unused: &ByteSet) -> Result<bool> {
        let ranges: Vec<_> = unused.iter().filter_map(SectorRange::inside).collect();
        self.engine.give_unused(device, &ranges)
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

    /// Looks at what the module has told, waiting for it; then at what it shows, as the telling may
    /// be behind.
    fn look(&self, patience: Duration) -> Result<()> {
        self.engine.check(patience)?;
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
        self.engine.wait(Duration::ZERO)
    }

    /// As [`next_event`](Self::next_event), but waits for an event until `timeout` is over.
    ///
    /// **Blocks.** An event loop waits for the session's descriptor instead: see
    /// [`AsFd`](#impl-AsFd-for-Session).
    pub fn wait_event(&self, timeout: Duration) -> Option<SessionEvent> {
        self.engine.wait(timeout)
    }

    /// What went wrong while storage was appended, if anything. The snapshot may still be good.
    pub fn trouble(&self) -> Option<String> {
        self.engine.trouble()
    }

    /// Bytes of difference storage that there is so far.
    pub fn storage_bytes(&self) -> u64 {
        self.engine.storage_bytes()
    }

    /// How many portions of storage were given so far: one before the take, the others because the
    /// module asked for them. By the second interface, where the kernel takes them, always 1.
    pub fn portions(&self) -> usize {
        self.engine.portions()
    }

    /// Bytes of difference storage that were allocated before the take, if they had to be: nothing
    /// is added to them.
    pub fn reserved_bytes(&self) -> Option<u64> {
        self.engine.reserved()
    }

    /// Why difference files can be changed, moved and removed by others; `None` if all were made
    /// immutable (see [`storage`](crate::storage)), or the kernel holds them.
    pub fn changeable_storage(&self) -> Option<Errno> {
        self.engine.changeable()
    }

    /// What the module shows of the snapshot.
    pub fn state(&self) -> SnapshotState {
        SnapshotState::read(self.id)
    }

    /// Where the difference storage given so far lies on a device, in bytes; also if one is a
    /// partition of the other. These blocks read as zeros in the image of the device, since the
    /// moment at which they were given, and are marked as changed for the snapshot and the next one.
    ///
    /// What it does not name is not storage yet: so it **blocks** while storage is being given. Empty by
    /// the second interface, where all storage on a captured device was there before the take.
    pub fn storage_on(&self, device: DevId) -> ByteSet {
        self.engine.storage_on(device)
    }

    /// Destroys the snapshot and removes its files, as dropping it does, and tells how that went.
    ///
    /// **Blocks** until the copies under way have ended. So does dropping it.
    pub fn destroy(mut self) -> Result<()> {
        self.finish()
    }

    /// Destroys the snapshot, and all that belongs to it.
    fn finish(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        self.engine.finish()
    }
}

/// The descriptor that can be read while there are events: see [`Session`].
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.engine.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Who wants to know calls `destroy`.
        let _ = self.finish();
    }
}
