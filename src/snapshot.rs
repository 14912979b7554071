// SPDX-License-Identifier: GPL-2.0

//! A snapshot: a set of devices captured at one instant.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId,
            DiskId, //
        },
        bio_disk::BioDisk,
        queue::{
            Freezing,
            NoIoScope, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::Atomic,
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
        held::Held,
        space::{
            Provision,
            Space, //
        },
        trial::Trial, //
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
mod unused;

/// Storage that was refused.
static REFUSED: Logged = Logged::never();

/// Fails with `EINVAL`, and says so, if the logical blocks of `storage` are larger than those of
/// `captured`: what is read from its image in such blocks cannot be read from there.
pub(crate) fn check_blocks(storage: &BlockDevice, captured: &BlockDevice) -> Result {
    let (have, want) = (storage.logical_block_size(), captured.logical_block_size());
    if want >= have {
        return Ok(());
    }
    if may_log(&REFUSED) {
        pr_warn!(
            "device {} cannot be difference storage: its logical blocks have {} bytes, those of {} only {}\n",
            storage.id(),
            have,
            captured.id(),
            want
        );
    }
    Err(EINVAL)
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

    /// The disk that the device is, or is on.
    fn disk(&self) -> DiskId {
        self.cow.origin().bdev().disk_id()
    }
}

/// A device after the instant.
pub(crate) struct Captured {
    /// Its filter.
    pub(crate) tracker: TrackerRef,
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

/// The devices of a snapshot.
pub(crate) struct Devices {
    /// Their filters.
    trackers: KVVec<TrackerRef>,
    /// The open devices, in the same order. None is when the snapshot was destroyed, whoever still
    /// refers to it.
    files: KVVec<Arc<BdevFile>>,
}

/// A snapshot.
///
/// `commands` and `held` are locks that the registry lists. `state`, `devices` and `taken` are
/// taken below them, each by itself.
#[pin_data]
pub(crate) struct Snapshot {
    /// Where its copy engines put old data.
    pub(crate) space: Arc<Space>,
    /// Whether its images are still good.
    pub(crate) health: Arc<Health>,
    /// What it has to tell its client.
    pub(crate) events: Arc<EventQueue>,
    /// Whether what is stored comes to one of its devices.
    #[pin]
    pub(crate) trial: Trial,
    /// Held by commands that change, take, feed or destroy the snapshot, as long as they wait for
    /// its devices.
    #[pin]
    pub(crate) commands: Mutex<()>,
    /// The file that is its storage, if the kernel holds one. Locked as long as that grows.
    #[pin]
    pub(crate) held: Mutex<Option<Held>>,
    /// In the order given by the client; added with `commands` held, before the snapshot is taken.
    #[pin]
    devices: Mutex<Devices>,
    /// Storage that is claimed until nothing is written to it any more. A leaf.
    #[pin]
    claims: Mutex<KVec<Arc<BdevFile>>>,
    #[pin]
    pub(crate) state: Mutex<State>,
    /// It ends with the open file by which it was created.
    bound: Atomic<bool>,
    /// When it was created, in seconds since 1970.
    pub(crate) created: i64,
    #[pin]
    pub(crate) taken: Mutex<Taken>,
}

impl Snapshot {
    /// Makes a snapshot without devices, named `id`, with what its storage is made of. Events are
    /// announced by `announcer`.
    pub(crate) fn new(
        id: Uuid,
        provision: Provision,
        announcer: Arc<dyn Announce>,
    ) -> Result<Arc<Self>> {
        let events = Arc::pin_init(EventQueue::new(0, announcer), GFP_KERNEL)?;
        let health = Health::new(id, &events)?;
        let space = Space::new(provision, &events)?;
        Arc::pin_init(
            pin_init!(Self {
                space,
                health,
                events,
                trial <- Trial::new(),
                commands <- new_mutex!(()),
                held <- new_mutex!(None),
                devices <- new_mutex!(Devices {
                    trackers: KVVec::new(),
                    files: KVVec::new(),
                }),
                claims <- new_mutex!(KVec::new()),
                state <- new_mutex!(State::Created),
                bound: Atomic::new(false),
                created: real_seconds(),
                taken <- new_mutex!(Taken {
                    at: 0,
                    stopped: Delta::ZERO,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a device, open as `file`, to a snapshot that is not taken. May sleep; calls must not
    /// overlap in time.
    pub(crate) fn add(&self, tracker: TrackerRef, file: Arc<BdevFile>) -> Result {
        let mut devices = self.devices.lock();
        devices.trackers.reserve(1, GFP_KERNEL)?;
        devices.files.reserve(1, GFP_KERNEL)?;
        self.events.make_room(devices.trackers.len() + 1)?;
        self.health.add(tracker.id())?;
        // There is room.
        let _ = devices.trackers.push_within_capacity(tracker);
        let _ = devices.files.push_within_capacity(file);
        Ok(())
    }

    /// Calls `f` with the filter of each device, in their order. May sleep, but `f` must not take
    /// locks of snapshots.
    pub(crate) fn for_each_tracker(&self, f: impl FnMut(&TrackerRef)) {
        self.devices.lock().trackers.iter().for_each(f);
    }

    /// The numbers of the devices, in their order.
    pub(crate) fn originals(&self) -> Result<KVVec<DevId>> {
        let devices = self.devices.lock();
        let mut all = KVVec::with_capacity(devices.trackers.len(), GFP_KERNEL)?;
        for tracker in &devices.trackers {
            all.push(tracker.id(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// The filter of each device and the open devices, in their order; none of a snapshot that was
    /// destroyed.
    pub(crate) fn open_devices(&self) -> Result<KVVec<(TrackerRef, Arc<BdevFile>)>> {
        let devices = self.devices.lock();
        let mut all = KVVec::with_capacity(devices.files.len(), GFP_KERNEL)?;
        for (tracker, file) in devices.trackers.iter().zip(&devices.files) {
            all.push((tracker.clone(), file.clone()), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// The name.
    pub(crate) fn id(&self) -> Uuid {
        self.health.snapshot()
    }

    /// Its devices are in this snapshot from now on, `taken` or not.
    pub(crate) fn enter(&self, taken: bool) {
        self.for_each_tracker(|tracker| {
            tracker.set_membership(Some(Membership {
                snapshot: self.id(),
                taken,
            }))
        });
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

    /// Whether it was neither taken nor destroyed, nor is being taken.
    pub(crate) fn is_created(&self) -> bool {
        matches!(&*self.state.lock(), State::Created)
    }

    /// Declares all images lost, because of `err`. May sleep.
    pub(crate) fn fail(&self, err: Error) {
        let first = self
            .devices
            .lock()
            .trackers
            .first()
            .map(|tracker| tracker.id());
        if let Some(id) = first {
            self.health.fail(id, err);
        }
    }

    /// Whether it was destroyed.
    pub(crate) fn is_destroyed(&self) -> bool {
        matches!(&*self.state.lock(), State::Destroyed)
    }

    /// Checks all devices by [`check_blocks`]. Fails with `ESRCH` if the snapshot was destroyed.
    pub(crate) fn check_storage_blocks(&self, storage: &BlockDevice) -> Result {
        if self.is_destroyed() {
            return Err(ESRCH);
        }
        let devices = self.devices.lock();
        let mut files = devices.files.iter();
        files.try_for_each(|file| check_blocks(storage, file.bdev()))
    }

    /// Calls `f` with each device, if the snapshot was taken.
    pub(crate) fn for_each_captured(&self, f: impl FnMut(&Captured)) {
        if let State::Taken(captured) = &*self.state.lock() {
            captured.iter().for_each(f);
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
        self.for_each_captured(|captured| {
            if captured.image.id() == image {
                found = Some(captured.tracker.clone());
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
        self.for_each_tracker(|tracker| tracker.set_cow(None));
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
            if engine.disk() != disk {
                return Ok(());
            }
            engine.exclude(ranges.iter().map(|&(first, count)| (start + first, count)))
        })
    }

    /// Excludes the storage of `other` from being copied, where it is on a device of this snapshot.
    /// Fails with `EBUSY` if that is a file whose sectors are not known.
    pub(crate) fn exclude_storage_of(&self, other: &Snapshot) -> Result {
        self.for_each_engine(|engine| {
            let file = other.space.file_on(engine.disk());
            if engine.common(file.into_iter()).next().is_some() {
                return Err(EBUSY);
            }
            engine.exclude(other.space.ranges_on(engine.disk())?.iter().copied())
        })
    }

    /// Whether a device of this snapshot, taken or being taken, has sectors of `bdev`.
    pub(crate) fn copies(&self, bdev: &BlockDevice) -> bool {
        let range = (bdev.start_sector(), bdev.sectors());
        let mut found = false;
        // Nothing fails.
        let _ = self.for_each_engine(|engine| {
            found |= engine.disk() == bdev.disk_id()
                && engine.common([range].into_iter()).next().is_some();
            Ok(())
        });
        found
    }

    /// Whether something that `other` stores is copied first for an image of this snapshot.
    pub(crate) fn copies_stores_of(&self, other: &Snapshot) -> Result<bool> {
        let mut found = false;
        self.for_each_engine(|engine| {
            let storage = other.space.stores_on(engine.disk())?;
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
        self.for_each_tracker(|tracker| tracker.set_cow(None));
        let state = core::mem::replace(&mut *self.state.lock(), State::Destroyed);
        if let State::Taken(captured) = state {
            self.enter(false);
            self.release(captured);
        }
        self.trial.wait();
        // Nothing is written to the storage any more.
        let claims = core::mem::take(&mut *self.claims.lock());
        claims.iter().for_each(|file| file.yield_claim());
        drop(claims);
        // If it is growing, that comes to its end first: what it has got is appended.
        let held = self.held.lock().take();
        self.space.close();
        // Closed in this task, not some time later.
        drop(held);
        drop(core::mem::take(&mut self.devices.lock().files));
        self.for_each_tracker(|tracker| tracker.set_membership(None));
    }

    /// Removes the images of the devices, and lets their writes pass.
    fn release(&self, captured: KVec<Captured>) {
        for captured in captured {
            let Captured {
                tracker,
                engine,
                image,
            } = captured;
            let Engine { cow, cbt } = &*engine;
            drop(image);
            let hooked = {
                let scope = NoIoScope::new();
                let freezing = Freezing::start(cow.origin(), &scope);
                tracker.disarm(&freezing.complete(), cbt.clone())
            };
            drop(hooked);
            delay(Point::Disarmed);
            // Waits for clones that are in flight, which keep what they need.
            Cow::shut_down(cow);
        }
    }
}
