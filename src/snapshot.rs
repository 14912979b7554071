// SPDX-License-Identifier: GPL-2.0

//! A snapshot: a set of devices captured at one instant.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            DevId, //
        },
        bio_disk::BioDisk,
        filter::Registration,
        queue::{
            Freezing,
            NoIoScope, //
        }, //
    },
    fmt,
    prelude::*,
    sync::{
        atomic::Relaxed,
        new_mutex,
        Arc,
        Mutex, //
    },
    time::Delta,
    uuid::Uuid, //
};

use crate::{
    cbt::Cbt,
    cow::Cow,
    image::Image,
    storage::{
        Storage,
        Told, //
    },
    tracker::Tracker, //
};

/// A device of a snapshot.
pub(crate) struct Device {
    /// Its filter.
    pub(crate) tracker: Arc<Registration<Tracker>>,
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

/// What has become of a snapshot.
pub(crate) enum State {
    /// Created, and not taken.
    Created,
    /// Taken; the devices after the instant, in their order.
    Taken(KVec<Captured>),
    /// Destroyed.
    Destroyed,
}

/// A snapshot.
///
/// `state` is taken below the registry's locks.
#[pin_data]
pub(crate) struct Snapshot {
    /// What it shares with its copy engines.
    pub(crate) storage: Arc<Storage>,
    /// In the order given by the client.
    pub(crate) devices: KVec<Device>,
    #[pin]
    pub(crate) state: Mutex<State>,
    /// How long the devices were stopped.
    #[pin]
    pub(crate) stopped: Mutex<Delta>,
}

impl Snapshot {
    /// Makes a snapshot that is not taken; events ask for portions of `portion` sectors.
    pub(crate) fn new(devices: KVec<Device>, portion: u64) -> Result<Arc<Self>> {
        let mut ids = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for device in &devices {
            ids.push(Told::new(device.tracker.id()), GFP_KERNEL)?;
        }
        let storage = Storage::new(Uuid::random(), ids, portion)?;
        Arc::pin_init(
            pin_init!(Self {
                storage,
                devices,
                state <- new_mutex!(State::Created),
                stopped <- new_mutex!(Delta::ZERO),
            }),
            GFP_KERNEL,
        )
    }

    /// The name.
    pub(crate) fn id(&self) -> Uuid {
        self.storage.id()
    }

    /// Whether it has a device with this tracker.
    pub(crate) fn has(&self, tracker: &Arc<Registration<Tracker>>) -> bool {
        self.devices
            .iter()
            .any(|device| Arc::ptr_eq(&device.tracker, tracker))
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
    pub(crate) fn tracker_of_image(&self, image: DevId) -> Option<Arc<Registration<Tracker>>> {
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
        let mut result = Ok(());
        self.for_each_captured(|device, captured| {
            if result.is_ok() {
                result = exclude(&device.file, &captured.cow, file, ranges);
                captured.cow.mark_excluded(&captured.cbt);
            }
        });
        result
    }

    /// Ends the snapshot: no image, no copying, and nothing is written to the storage any more.
    /// May sleep for long. To be called once.
    pub(crate) fn destroy(&self) {
        self.storage.close();
        for device in &self.devices {
            device.tracker.set_cow(None);
        }
        let state = core::mem::replace(&mut *self.state.lock(), State::Destroyed);
        let State::Taken(captured) = state else {
            return;
        };
        for (device, captured) in self.devices.iter().zip(captured) {
            let Captured { cow, cbt, image } = captured;
            drop(image);
            let hooked = {
                let scope = NoIoScope::new();
                let freezing = Freezing::start(&device.file, &scope);
                device.tracker.disarm(&freezing.complete(), cbt)
            };
            drop(hooked);
            Cow::shut_down(&cow);
        }
    }
}

/// Excludes what `ranges` of `file`'s device has in common with the captured device `origin`.
pub(crate) fn exclude(
    origin: &BdevFile,
    cow: &Cow,
    file: &BdevFile,
    ranges: &[(u64, u64)],
) -> Result {
    if origin.bdev().disk_id() != file.bdev().disk_id() {
        return Ok(());
    }
    let from = origin.bdev().start_sector();
    let to = from + cow.geometry().sectors;
    let start = file.bdev().start_sector();
    let mut common = KVVec::with_capacity(ranges.len(), GFP_KERNEL)?;
    for &(sector, sectors) in ranges {
        let first = (start + sector).max(from);
        let end = (start + sector + sectors).min(to);
        if first < end {
            common.push((first - from, end - first), GFP_KERNEL)?;
        }
    }
    if common.is_empty() {
        return Ok(());
    }
    cow.exclude(&common)
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = self.storage.usage();
        let state = match &*self.state.lock() {
            State::Created => "created",
            State::Taken(_) if self.storage.has_failed() => "corrupted",
            State::Taken(_) => "taken",
            State::Destroyed => "destroyed",
        };
        f.write_fmt(fmt!(
            "id={} state={} error={} devices={} stopped_us={} capacity={} filled={} requested={} \
             copied={} retried={}\n",
            self.id(),
            state,
            self.storage.error(),
            self.devices.len(),
            self.stopped.lock().as_nanos() / 1000,
            usage.capacity,
            usage.filled,
            usage.requested,
            self.storage.copied.load(Relaxed),
            self.storage.retried.load(Relaxed),
        ))
    }
}
