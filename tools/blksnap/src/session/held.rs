// SPDX-License-Identifier: MIT OR Apache-2.0

//! A snapshot by the second interface, whose storage the kernel holds and lets grow: there is nothing
//! to do but to look at its events, when somebody asks.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use super::SessionOptions;
use super::engine::Engine;
use super::health::{Health, SessionEvent};
use super::room::Room;
use crate::call::failed;
use crate::cbt::{CbtInfo, ChangeMap};
use crate::control::{Control, Image};
use crate::error::{Command, Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::owner::{self, Claim};
use crate::state::{SnapshotState, TrackerState};
use crate::storage::remove_stale;
use crate::units::{ByteSet, SectorRange};
use crate::v2::{self, Device, EventKind};
use crate::watch::EventWatch;

/// How long one wait is: another thread may have fetched what it waits for.
const WAIT: Duration = Duration::from_millis(50);

/// A snapshot and its devices. Dropping it ends the snapshot, if the module knows how to bind it.
#[derive(Debug)]
pub(super) struct Held {
    control: v2::Control,
    id: SnapshotId,
    devices: Vec<Device>,
    room: Room,
    health: Health,
    watch: EventWatch,
    /// Readable while the module has events that nobody has fetched, or we have.
    ready: OwnedFd,
    gone: AtomicBool,
    /// Tells others that this process lives.
    _claim: Option<Claim>,
}

impl Held {
    /// Creates a snapshot with its storage, and adds the devices.
    pub(super) fn create(
        control: v2::Control,
        devices: &[DevId],
        options: &SessionOptions,
    ) -> Result<(SnapshotId, Box<dyn Engine>)> {
        if let Some(first) = Control::open_if_there()? {
            remove_stale(&options.place, &first)?;
        }
        owner::forget_ended()?;
        if devices.is_empty() {
            return Err(failed(Command::SnapshotCreate, "", Errno::INVAL));
        }
        let opened: Vec<_> = devices
            .iter()
            .map(|&id| Device::of(id))
            .collect::<Result<_>>()?;
        let room = Room::find(options, devices)?;
        control.bind()?;
        let id = room.create(&control)?;
        let made = Self::fill(id, &opened, options);
        let (health, watch, ready, claim) = match made {
            Ok(made) => made,
            Err(error) => {
                // The error that led here says more than a second one would.
                let _ = control.snapshot_end(id);
                return Err(error);
            }
        };
        let held = Self {
            control,
            id,
            devices: opened,
            room,
            health,
            watch,
            ready,
            gone: AtomicBool::new(false),
            _claim: claim,
        };
        Ok((id, Box::new(held)))
    }

    /// Adds the devices, and begins to watch: what can fail when the snapshot is there.
    fn fill(
        id: SnapshotId,
        devices: &[Device],
        options: &SessionOptions,
    ) -> Result<(Health, EventWatch, OwnedFd, Option<Claim>)> {
        let claim = Claim::new(id, &options.place);
        for device in devices {
            device
                .snapshot_add(id)
                .map_err(|error| refused(error, device.id(), id, options))?;
        }
        let watch = EventWatch::open(id)?;
        watch.arm()?;
        let health = Health::new()?;
        let ready = gather(&health, &watch)
            .map_err(|errno| Error::file("make an epoll for", control_path(), errno))?;
        Ok((health, watch, ready, claim))
    }

    /// Fetches what the module has to say.
    fn fetch(&self) {
        if self.gone.load(Ordering::Relaxed) {
            return;
        }
        // Armed first: what comes meanwhile is reported again.
        match self.watch.arm() {
            Ok(Some(0)) => return,
            Ok(Some(_)) => {}
            Ok(None) => return self.end(),
            Err(error) => self.tell_trouble(error.to_string()),
        }
        loop {
            match self.control.wait_event(self.id, Duration::ZERO) {
                Ok(None) => return,
                Ok(Some(event)) => self.tell(event.kind),
                Err(error) => match error.errno() {
                    Some(Errno::INTR) => {}
                    Some(Errno::SRCH) => return self.end(),
                    _ => return self.tell_trouble(error.to_string()),
                },
            }
        }
    }

    /// Notes an event of the module.
    fn tell(&self, event: EventKind) {
        match event {
            EventKind::Corrupted { device, errno } => {
                self.health.tell(SessionEvent::Corrupted { device, errno });
            }
            EventKind::NoSpace { reached } => {
                if let Some(why) = self.room.exhausted(reached) {
                    self.tell_trouble(why);
                }
            }
            EventKind::Other { code } => {
                self.tell_trouble(Error::UnknownEvent(code).to_string());
            }
        }
    }

    fn tell_trouble(&self, why: String) {
        self.health.tell(SessionEvent::Trouble(why));
    }

    /// Notes, once, that somebody else has destroyed it.
    fn end(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            // The file of what is no more could be read for ever.
            let _ = epoll::delete(&self.ready, &self.watch);
            self.health.tell(SessionEvent::Gone);
        }
    }
}

/// One descriptor for the events that were fetched and for those that were not.
fn gather(health: &Health, watch: &EventWatch) -> rustix::io::Result<OwnedFd> {
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&ready, health, data, epoll::EventFlags::IN)?;
    epoll::add(&ready, watch, data, epoll::EventFlags::PRI)?;
    Ok(ready)
}

fn control_path() -> &'static Path {
    Path::new(crate::sys::v2::CONTROL_PATH)
}

/// Says of a device that cannot be added why that is, if that is known.
fn refused(error: Error, device: DevId, id: SnapshotId, options: &SessionOptions) -> Error {
    if error.errno() != Some(Errno::BUSY) {
        return error;
    }
    match TrackerState::read(device).snapshot {
        Some(other) if other != id => {
            failed(Command::SnapshotCreate, device.describe(), Errno::BUSY)
        }
        _ => Error::Storage {
            path: options.place.directory(),
            reason: format!(
                "it is on the captured {}, or on what is built on that, and of a kind (not ext4 or xfs on the device \
                 itself) for which each copy stored there would have to be copied itself: choose another file system",
                device.path().display()
            ),
        },
    }
}

/// Waits for a descriptor; or for a signal, or no longer than a while.
fn wait_for(fd: impl AsFd, flags: PollFlags, left: Duration) {
    let time = Timespec::try_from(left.min(WAIT)).unwrap_or_default();
    // What has happened is looked at anyway.
    let _ = poll(&mut [PollFd::new(&fd, flags)], Some(&time));
}

impl Engine for Held {
    fn take(&self) -> Result<()> {
        self.control.snapshot_take(self.id)
    }

    fn images(&self) -> Result<Vec<Image>> {
        let image = |device: &Device| {
            let none = || failed(Command::SnapshotInfo, device.id().describe(), Errno::NODEV);
            let path = device.snapshot_info()?.image.ok_or_else(none)?;
            let name = path.file_name().unwrap_or_default();
            let number = Path::new("/sys/class/block").join(name).join("dev");
            let read = fs::read_to_string(&number)
                .map_err(|error| Error::file("read the number of an image,", &number, error))?;
            Ok(Image {
                original: device.id(),
                device: read.trim().parse().map_err(|_| none())?,
                path,
            })
        };
        self.devices.iter().map(image).collect()
    }

    fn give_unused(&self, device: DevId, ranges: &[SectorRange]) -> Result<bool> {
        self.control.snapshot_unused(self.id, device, ranges)
    }

    fn check(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            self.fetch();
            self.health.check(self.id, Duration::ZERO)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            wait_for(&self.watch, PollFlags::PRI, left);
        }
    }

    fn wait(&self, timeout: Duration) -> Option<SessionEvent> {
        let end = Instant::now().checked_add(timeout);
        loop {
            self.fetch();
            let left = end.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            match self.health.next() {
                None if !left.is_zero() => wait_for(&self.ready, PollFlags::IN, left),
                found => return found,
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        self.fetch();
        self.health.trouble()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn tracker(&self, device: DevId) -> Result<Option<CbtInfo>> {
        match self.devices.iter().find(|one| one.id() == device) {
            Some(device) => device.cbt_info(),
            None => Device::of(device)?.cbt_info(),
        }
    }

    fn change_map(&self, info: &CbtInfo) -> Result<ChangeMap> {
        match self.devices.iter().find(|one| one.id() == info.device) {
            Some(device) => device.cbt_map(info),
            None => Device::of(info.device)?.cbt_map(info),
        }
    }

    fn storage_bytes(&self) -> u64 {
        SnapshotState::read(self.id).storage_bytes().unwrap_or(0)
    }

    fn portions(&self) -> usize {
        1
    }

    fn reserved(&self) -> Option<u64> {
        self.room.reserved()
    }

    fn changeable(&self) -> Option<Errno> {
        None
    }

    /// All that there is on a captured device was there before the instant: nothing becomes storage
    /// while the image is read.
    fn storage_on(&self, _device: DevId) -> ByteSet {
        ByteSet::default()
    }

    fn finish(&mut self) -> Result<()> {
        self.control.snapshot_end(self.id)?;
        self.room.wipe()
    }
}
