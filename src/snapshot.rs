// SPDX-License-Identifier: GPL-2.0

//! A snapshot: a set of devices captured at one instant.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId, //
        },
        bio_disk::BioDisk,
        queue::{
            Freezing,
            NoIoScope, //
        }, //
    },
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    time::Delta,
    uuid::Uuid, //
};

use crate::{
    base::{
        clock::real_seconds,
        delays::{
            delay,
            Point, //
        },
        log::{
            may_log,
            Logged, //
        }, //
    },
    copying::cow::Cow,
    image::Image,
    storage::{
        events::{
            Announce,
            EventQueue, //
        },
        health::Health,
        space::Space, //
    },
    tracking::{
        cbt::Cbt,
        tracker::{
            Membership,
            TrackerRef, //
        }, //
    }, //
};

pub(crate) mod take;

/// Storage that was refused.
static REFUSED: Logged = Logged::never();

/// A device of a snapshot.
pub(crate) struct Device {
    /// Its filter.
    pub(crate) tracker: TrackerRef,
}

/// What copies a device, and where that is marked.
pub(crate) struct Engine {
    /// The copy engine.
    pub(crate) cow: Arc<Cow>,
    /// The map of the device from the instant on.
    pub(crate) cbt: Arc<Cbt>,
}

impl Engine {
    /// Marks what is excluded from copying as changed, for this increment and for the next one: it
    /// reads as zeroes as long as the snapshot is held, and only so long.
    fn mark_excluded(&self) {
        let mark = |start, sectors| self.cbt.mark_both(start, sectors);
        self.cow.for_each_excluded(mark);
    }

    /// The part that the device has of ranges of its disk, given as first sector and number of
    /// sectors; in the same form.
    fn common(&self, ranges: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
        let from = self.cow.origin().bdev().start_sector();
        let to = from + self.cow.geometry().sectors;
        ranges.filter_map(move |(sector, sectors)| {
            let first = sector.max(from);
            let end = (sector + sectors).min(to);
            (first < end).then(|| (first - from, end - first))
        })
    }

    /// Excludes what the device has of ranges of its disk from being copied.
    fn exclude(&self, ranges: impl Iterator<Item = (u64, u64)>) -> Result {
        let mut excluded = KVVec::new();
        for range in self.common(ranges) {
            excluded.push(range, GFP_KERNEL)?;
        }
        if !excluded.is_empty() {
            self.cow.exclude(&excluded)?;
            self.mark_excluded();
        }
        Ok(())
    }

    /// The ranges on the device's disk that `space` consists of.
    fn storage(&self, space: &Space) -> Result<KVVec<(u64, u64)>> {
        space.ranges_on(self.cow.origin().bdev().disk_id())
    }
}

/// A device after the instant.
pub(crate) struct Captured {
    /// What copies it.
    pub(crate) engine: Arc<Engine>,
    /// The disk that shows it.
    pub(crate) image: BioDisk<Image>,
}

/// What has become of a snapshot.
pub(crate) enum State {
    /// Created, and not taken.
    Created,
    /// Being taken: storage that is appended now has to be excluded from being copied, if it is on
    /// one of the devices.
    Taking(KVec<Arc<Engine>>),
    /// Taken; the devices after the instant, in their order.
    Taken(KVec<Captured>),
    /// Destroyed.
    Destroyed,
}

/// When a snapshot was taken.
pub(crate) struct Taken {
    /// In seconds since 1970; 0 before that.
    pub(crate) at: i64,
    /// How long the devices were stopped.
    pub(crate) stopped: Delta,
}

/// A snapshot.
///
/// `commands` is one of the locks that the registry lists. `state`, `files` and `taken` are taken
/// below them, each by itself.
#[pin_data]
pub(crate) struct Snapshot {
    /// Where its copy engines put old data.
    pub(crate) space: Arc<Space>,
    /// Whether its images are still good.
    pub(crate) health: Arc<Health>,
    /// What it has to tell its client.
    pub(crate) events: Arc<EventQueue>,
    /// In the order given by the client.
    pub(crate) devices: KVec<Device>,
    /// Held by commands that take, feed or destroy the snapshot, as long as they wait for its
    /// devices.
    #[pin]
    pub(crate) commands: Mutex<()>,
    /// Keep the devices open until the snapshot is destroyed, whoever still refers to it.
    #[pin]
    files: Mutex<KVec<Arc<BdevFile>>>,
    /// Storage that is claimed until nothing is written to it any more. A leaf.
    #[pin]
    claims: Mutex<KVec<Arc<BdevFile>>>,
    #[pin]
    pub(crate) state: Mutex<State>,
    /// When it was created, in seconds since 1970.
    pub(crate) created: i64,
    #[pin]
    pub(crate) taken: Mutex<Taken>,
}

impl Snapshot {
    /// Makes a snapshot that is not taken of `devices`, which are open as `files`; events ask for
    /// portions of `portion` sectors, and are announced by `announcer`.
    pub(crate) fn new(
        devices: KVec<Device>,
        files: KVec<Arc<BdevFile>>,
        portion: u64,
        announcer: Arc<dyn Announce>,
    ) -> Result<Arc<Self>> {
        let events = Arc::pin_init(EventQueue::new(devices.len(), announcer), GFP_KERNEL)?;
        let ids = devices.iter().map(|device| device.tracker.id());
        let health = Health::new(Uuid::random(), ids, &events)?;
        let blocks = files.iter().map(|file| file.bdev().logical_block_size());
        let space = Space::new(portion, blocks.min().unwrap_or(0), &events)?;
        Arc::pin_init(
            pin_init!(Self {
                space,
                health,
                events,
                devices,
                commands <- new_mutex!(()),
                files <- new_mutex!(files),
                claims <- new_mutex!(KVec::new()),
                state <- new_mutex!(State::Created),
                created: real_seconds(),
                taken <- new_mutex!(Taken {
                    at: 0,
                    stopped: Delta::ZERO,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// The name.
    pub(crate) fn id(&self) -> Uuid {
        self.health.snapshot()
    }

    /// Its devices are in this snapshot from now on, `taken` or not.
    pub(crate) fn enter(&self, taken: bool) {
        for device in &self.devices {
            device.tracker.set_membership(Some(Membership {
                snapshot: self.id(),
                taken,
            }));
        }
    }

    /// Makes room for [`keep_claim`](Self::keep_claim).
    pub(crate) fn reserve_claim(&self) -> Result {
        Ok(self.claims.lock().reserve(1, GFP_KERNEL)?)
    }

    /// Keeps the claim to storage until nothing is written to it any more. There must be room.
    pub(crate) fn keep_claim(&self, storage: Arc<BdevFile>) {
        let _ = self.claims.lock().push_within_capacity(storage);
    }

    /// Whether it was taken, and not destroyed.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(&*self.state.lock(), State::Taken(_))
    }

    /// Whether it was destroyed.
    pub(crate) fn is_destroyed(&self) -> bool {
        matches!(&*self.state.lock(), State::Destroyed)
    }

    /// The open devices, in their order; none of a snapshot that was destroyed.
    fn files(&self) -> Result<KVec<Arc<BdevFile>>> {
        let files = self.files.lock();
        let mut all = KVec::with_capacity(files.len(), GFP_KERNEL)?;
        for file in &*files {
            all.push(file.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Fails with `EINVAL`, and says so, if the logical blocks of `storage` are larger than those
    /// of a device: what is read from its image in such blocks cannot be read from there. Fails
    /// with `ESRCH` if the snapshot was destroyed.
    pub(crate) fn check_storage_blocks(&self, storage: &BlockDevice) -> Result {
        if self.is_destroyed() {
            return Err(ESRCH);
        }
        let block = storage.logical_block_size();
        for file in &*self.files.lock() {
            let captured = file.bdev();
            if captured.logical_block_size() < block {
                if may_log(&REFUSED) {
                    pr_warn!(
                        "device {} cannot be difference storage: its logical blocks have {} bytes, those of {} only {}\n",
                        storage.id(),
                        block,
                        captured.id(),
                        captured.logical_block_size()
                    );
                }
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// Calls `f` with each device and what has become of it, if the snapshot was taken.
    pub(crate) fn for_each_captured(&self, mut f: impl FnMut(&Device, &Captured)) {
        if let State::Taken(captured) = &*self.state.lock() {
            for (device, captured) in self.devices.iter().zip(captured) {
                f(device, captured);
            }
        }
    }

    /// Calls `f` with what copies each device, if the snapshot was taken or is being taken.
    fn for_each_engine(&self, mut f: impl FnMut(&Engine) -> Result) -> Result {
        match &*self.state.lock() {
            State::Created | State::Destroyed => Ok(()),
            State::Taking(engines) => engines.iter().try_for_each(|engine| f(engine)),
            State::Taken(captured) => captured.iter().try_for_each(|this| f(&this.engine)),
        }
    }

    /// The tracker of the device that `image` shows.
    pub(crate) fn tracker_of_image(&self, image: DevId) -> Option<TrackerRef> {
        let mut found = None;
        self.for_each_captured(|device, captured| {
            if captured.image.id() == image {
                found = Some(device.tracker.clone());
            }
        });
        found
    }

    /// It is being taken, and will be copied by `engines`.
    pub(crate) fn begin_take(&self, engines: KVec<Arc<Engine>>) {
        *self.state.lock() = State::Taking(engines);
    }

    /// It was not taken.
    fn give_up_take(&self) {
        for device in &self.devices {
            device.tracker.set_cow(None);
        }
        let mut state = self.state.lock();
        if let State::Taking(_) = &*state {
            let engines = core::mem::replace(&mut *state, State::Created);
            drop(state);
            drop(engines);
        }
    }

    /// Excludes ranges of `file`'s device, given as first sector and number of sectors, from being
    /// copied, where they are on a device of this snapshot.
    pub(crate) fn exclude(&self, file: &BdevFile, ranges: &[(u64, u64)]) -> Result {
        let (disk, start) = (file.bdev().disk_id(), file.bdev().start_sector());
        self.for_each_engine(|engine| {
            if engine.cow.origin().bdev().disk_id() != disk {
                return Ok(());
            }
            engine.exclude(ranges.iter().map(|&(first, count)| (start + first, count)))
        })
    }

    /// Excludes the storage of `other` from being copied, where it is on a device of this snapshot.
    pub(crate) fn exclude_storage_of(&self, other: &Snapshot) -> Result {
        self.for_each_engine(|engine| engine.exclude(engine.storage(&other.space)?.iter().copied()))
    }

    /// Whether something that `other` stores is copied first for an image of this snapshot.
    pub(crate) fn copies_stores_of(&self, other: &Snapshot) -> Result<bool> {
        let mut found = false;
        self.for_each_engine(|engine| {
            let storage = engine.storage(&other.space)?;
            found |= engine
                .common(storage.iter().copied())
                .any(|(start, sectors)| !engine.cow.is_excluded(start, start + sectors));
            Ok(())
        })?;
        Ok(found)
    }

    /// Begins the end of the snapshot: its images give errors, its queue of events ends, and
    /// nothing is written to the storage any more. Does not sleep.
    pub(crate) fn close(&self) {
        self.health.close();
        delay(Point::Closed);
    }

    /// Ends the snapshot, which was [closed](Self::close): no image, no copying, and none of its
    /// devices is open any more. May sleep for long. To be called once.
    pub(crate) fn destroy(&self) {
        for device in &self.devices {
            device.tracker.set_cow(None);
        }
        let state = core::mem::replace(&mut *self.state.lock(), State::Destroyed);
        if let State::Taken(captured) = state {
            self.enter(false);
            self.release(captured);
        }
        // Nothing is written to the storage any more.
        let claims = core::mem::take(&mut *self.claims.lock());
        claims.iter().for_each(|file| file.yield_claim());
        drop(claims);
        self.space.close();
        drop(core::mem::take(&mut *self.files.lock()));
        for device in &self.devices {
            device.tracker.set_membership(None);
        }
    }

    /// Removes the images of the devices, and lets their writes pass.
    fn release(&self, captured: KVec<Captured>) {
        for (device, captured) in self.devices.iter().zip(captured) {
            let Captured { engine, image } = captured;
            let Engine { cow, cbt } = &*engine;
            // Kept until no clone is in flight, whose end may come in an interrupt.
            let io = image.data().io().clone();
            drop(image);
            let hooked = {
                let scope = NoIoScope::new();
                let freezing = Freezing::start(cow.origin(), &scope);
                device.tracker.disarm(&freezing.complete(), cbt.clone())
            };
            drop(hooked);
            delay(Point::Disarmed);
            Cow::shut_down(cow);
            drop(io);
        }
    }
}
