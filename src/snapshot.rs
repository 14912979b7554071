// SPDX-License-Identifier: GPL-2.0

//! A snapshot: a set of devices captured at one instant.

use kernel::{
    block::{
        bdev::{
            BdevFile,
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

/// A device of a snapshot.
pub(crate) struct Device {
    /// Its filter.
    pub(crate) tracker: TrackerRef,
    /// Keeps it open as long as the snapshot is held.
    pub(crate) file: Arc<BdevFile>,
}

/// A device after the instant.
pub(crate) struct Captured {
    /// Its copy engine.
    pub(crate) cow: Arc<Cow>,
    /// Its map.
    pub(crate) cbt: Arc<Cbt>,
    /// The disk that shows it.
    pub(crate) image: BioDisk<Image>,
}

impl Captured {
    /// Marks what is excluded from copying as changed, for this increment and for the next one: it
    /// reads as zeroes as long as the snapshot is held, and only so long.
    fn mark_excluded(&self) {
        let mark = |start, sectors| self.cbt.mark_both(start, sectors);
        self.cow.for_each_excluded(mark);
    }
}

/// What has become of a snapshot.
pub(crate) enum State {
    /// Created, and not taken.
    Created,
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
/// `state` and `taken` are taken below the registry's locks, each by itself.
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
    /// Makes a snapshot that is not taken; events ask for portions of `portion` sectors, and are
    /// announced by `announcer`.
    pub(crate) fn new(
        devices: KVec<Device>,
        portion: u64,
        announcer: Arc<dyn Announce>,
    ) -> Result<Arc<Self>> {
        let events = Arc::pin_init(EventQueue::new(devices.len(), announcer), GFP_KERNEL)?;
        let ids = devices.iter().map(|device| device.tracker.id());
        let health = Health::new(Uuid::random(), ids, &events)?;
        let space = Space::new(portion, &events)?;
        Arc::pin_init(
            pin_init!(Self {
                space,
                health,
                events,
                devices,
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

    /// Keeps the claim to storage until nothing is written to it any more.
    pub(crate) fn keep_claim(&self, storage: Arc<BdevFile>) -> Result {
        self.claims.lock().push(storage, GFP_KERNEL)?;
        Ok(())
    }

    /// Whether it was taken, and not destroyed.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(&*self.state.lock(), State::Taken(_))
    }

    /// Calls `f` with each device and what has become of it, if the snapshot was taken.
    pub(crate) fn for_each_captured(&self, mut f: impl FnMut(&Device, &Captured)) {
        if let State::Taken(captured) = &*self.state.lock() {
            for (device, captured) in self.devices.iter().zip(captured) {
                f(device, captured);
            }
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

    /// Excludes ranges of `file`'s device, given as first sector and number of sectors, from being
    /// copied, where they are on a device of this snapshot.
    pub(crate) fn exclude(&self, file: &BdevFile, ranges: &[(u64, u64)]) -> Result {
        let (disk, start) = (file.bdev().disk_id(), file.bdev().start_sector());
        let mut result = Ok(());
        self.for_each_captured(|device, captured| {
            if result.is_ok() && device.file.bdev().disk_id() == disk {
                let on_disk = ranges.iter().map(|&(first, count)| (start + first, count));
                result = exclude(&device.file, &captured.cow, on_disk);
                captured.mark_excluded();
            }
        });
        result
    }

    /// Whether something that `other` stores is copied first for an image of this snapshot.
    pub(crate) fn copies_stores_of(&self, other: &Snapshot) -> Result<bool> {
        let mut result = Ok(false);
        self.for_each_captured(|device, captured| {
            if matches!(result, Ok(false)) {
                result = other
                    .space
                    .ranges_on(device.file.bdev().disk_id())
                    .map(|ranges| {
                        common(&device.file, &captured.cow, ranges.iter().copied()).any(
                            |(start, sectors)| !captured.cow.is_excluded(start, start + sectors),
                        )
                    });
            }
        });
        result
    }

    /// Begins the end of the snapshot: its images give errors, its queue of events ends, and
    /// nothing is written to the storage any more. Does not sleep.
    pub(crate) fn close(&self) {
        self.health.close();
        delay(Point::Closed);
    }

    /// Ends the snapshot, which was [closed](Self::close): no image, and no copying. May sleep for
    /// long. To be called once.
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
        for device in &self.devices {
            device.tracker.set_membership(None);
        }
    }

    /// Removes the images of the devices, and lets their writes pass.
    fn release(&self, captured: KVec<Captured>) {
        for (device, captured) in self.devices.iter().zip(captured) {
            let Captured { cow, cbt, image } = captured;
            // Kept until no clone is in flight, whose end may come in an interrupt.
            let io = image.data().io().clone();
            drop(image);
            let hooked = {
                let scope = NoIoScope::new();
                let freezing = Freezing::start(&device.file, &scope);
                device.tracker.disarm(&freezing.complete(), cbt)
            };
            drop(hooked);
            delay(Point::Disarmed);
            Cow::shut_down(&cow);
            drop(io);
        }
    }
}

/// What the captured device `origin` has of ranges of its disk; each as first sector and number of
/// sectors.
fn common(
    origin: &BdevFile,
    cow: &Cow,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> impl Iterator<Item = (u64, u64)> {
    let from = origin.bdev().start_sector();
    let to = from + cow.geometry().sectors;
    ranges.filter_map(move |(sector, sectors)| {
        let first = sector.max(from);
        let end = (sector + sectors).min(to);
        (first < end).then(|| (first - from, end - first))
    })
}

/// Excludes what the captured device `origin` has of ranges of its disk, given as first sector and
/// number of sectors.
pub(crate) fn exclude(
    origin: &BdevFile,
    cow: &Cow,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> Result {
    let mut excluded = KVVec::new();
    for range in common(origin, cow, ranges) {
        excluded.push(range, GFP_KERNEL)?;
    }
    if excluded.is_empty() {
        return Ok(());
    }
    cow.exclude(&excluded)
}
