// SPDX-License-Identifier: GPL-2.0

//! The health of a snapshot: whether its images are still good and, if not, whether the client was
//! told.
//!
//! The whole snapshot fails when old data is lost; a single device fails when it is removed, and
//! the whole snapshot with the last one. A failure is final, and the first error counts. The client
//! gets one event for each device. The last of them tells it that the storage is its own again: so
//! those of a failure of the whole snapshot come only when no write to the storage is in flight.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::bdev::DevId,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    },
    uuid::Uuid, //
};

use crate::{
    base::faults::{
        planted,
        Fault, //
    },
    storage::events::{
        EventQueue,
        Kind, //
    }, //
};

/// A device of the snapshot, and whether the client was told that its image is lost.
struct DeviceHealth {
    id: DevId,
    /// Why, as a positive errno; or 0.
    error: Atomic<i32>,
    /// The event was sent.
    told: Atomic<bool>,
}

impl DeviceHealth {
    fn error(&self) -> i32 {
        self.error.load(Relaxed)
    }
}

/// The health of one snapshot.
///
/// What is asked when a bio ends takes no lock. What sends events must not be called in interrupts.
#[pin_data]
pub(crate) struct Health {
    id: Uuid,
    /// In the order in which they were added. Below the lock is only that of the events.
    #[pin]
    devices: SpinLock<KVVec<Arc<DeviceHealth>>>,
    events: Arc<EventQueue>,
    /// A positive errno once all images are lost: the snapshot is corrupted, or is going.
    error: Atomic<i32>,
    /// Writes to the storage in flight, and one more until the snapshot is corrupted.
    writes: Atomic<i32>,
}

impl Health {
    /// The health of a new snapshot, named `id`, without devices. May sleep.
    pub(crate) fn new(id: Uuid, events: &Arc<EventQueue>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                id,
                devices <- new_spinlock!(KVVec::new()),
                events: events.clone(),
                error: Atomic::new(0),
                writes: Atomic::new(1),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a device, before the snapshot is taken. May sleep; calls must not overlap in time.
    pub(crate) fn add(&self, id: DevId) -> Result {
        let device = DeviceHealth {
            id,
            error: Atomic::new(0),
            told: Atomic::new(false),
        };
        let device = Arc::new(device, GFP_KERNEL)?;
        let len = self.devices.lock().len();
        let mut devices = KVVec::with_capacity(len + 1, GFP_KERNEL)?;
        let mut old = self.devices.lock();
        // There is room.
        for one in &*old {
            let _ = devices.push_within_capacity(one.clone());
        }
        let _ = devices.push_within_capacity(device);
        core::mem::swap(&mut *old, &mut devices);
        drop(old);
        // Without the lock.
        drop(devices);
        Ok(())
    }

    fn device(&self, id: DevId) -> Option<Arc<DeviceHealth>> {
        let devices = self.devices.lock();
        let mut devices = devices.iter();
        devices.find(|device| device.id == id).cloned()
    }

    /// The snapshot's name.
    pub(crate) fn snapshot(&self) -> Uuid {
        self.id
    }

    /// Whether all images of the snapshot are lost.
    ///
    /// Acquire, paired with [`set_error`](Self::set_error): who sees the error may let go what
    /// was only needed for the images.
    #[inline]
    pub(crate) fn snapshot_has_failed(&self) -> bool {
        self.error.load(Acquire) != 0
    }

    /// The error since which the image of a device is lost, as a positive errno, or 0.
    pub(crate) fn device_error(&self, id: DevId) -> i32 {
        self.device(id).map_or(0, |device| device.error())
    }

    /// The error of the first device whose image is lost, as a positive errno, or 0.
    pub(crate) fn error(&self) -> i32 {
        let devices = self.devices.lock();
        let mut errors = devices.iter().map(|device| device.error());
        errors.find(|&error| error != 0).unwrap_or(0)
    }

    /// Sets the error unless there is one; tells whether it did.
    fn set_error(&self, err: Error) -> bool {
        self.error.cmpxchg(0, -err.to_errno(), Full).is_ok()
    }

    /// Declares the snapshot corrupted, because of `err`, by an incident on `device`. Does not
    /// sleep.
    ///
    /// From now on nothing is copied or stored, images give errors, and writes of the original
    /// devices go on. The client is told when what is being stored has ended.
    pub(crate) fn fail(&self, device: DevId, err: Error) {
        if !self.set_error(err) {
            return;
        }
        pr_err!(
            "snapshot {}: corrupted ({:?}) while serving device {}; the device is unharmed\n",
            self.id,
            err,
            device
        );
        for device in &*self.devices.lock() {
            let _ = device.error.cmpxchg(0, -err.to_errno(), Full);
        }
        self.failed();
    }

    /// To be called by who has set the error: there will be no more writes to the storage.
    fn failed(&self) {
        if self.writes.fetch_sub(1, Full) == 1 {
            self.tell_lost();
        }
    }

    /// A write to the storage begins; `false` if it must not, as the snapshot is corrupted. Does
    /// not sleep.
    pub(crate) fn begin_write(&self) -> bool {
        // Fully ordered, as is what sets the error and then gives up its own share: either we see
        // that, or it is us for whom the events wait.
        self.writes.fetch_add(1, Full);
        if self.snapshot_has_failed() && !planted(Fault::StoreAfterFailure) {
            self.end_write();
            return false;
        }
        true
    }

    /// A write to the storage has ended. Does not sleep; callable in interrupts.
    pub(crate) fn end_write(&self) {
        if self.writes.fetch_sub(1, Full) == 1 {
            // The queue of events is not for interrupts.
            self.events.announce();
        }
    }

    /// Tells the client that the snapshot is corrupted, if it is and no write is in flight. Does
    /// not sleep.
    pub(crate) fn tell_lost(&self) {
        if self.writes.load(Acquire) == 0 {
            self.devices
                .lock()
                .iter()
                .for_each(|device| self.tell(device));
        }
    }

    /// Declares the image of one device lost, because of `err`; the others go on, if there are any.
    /// Does not sleep.
    pub(crate) fn fail_device(&self, id: DevId, err: Error) {
        let Some(device) = self.device(id) else {
            return;
        };
        if device.error.cmpxchg(0, -err.to_errno(), Full).is_err() {
            return;
        }
        pr_err!("snapshot {}: device {} is lost ({:?})\n", self.id, id, err);
        // Of those that are lost at once, the last one at least sees that all are.
        let good = |device: &Arc<DeviceHealth>| device.error.load(Acquire) == 0;
        let any = self.devices.lock().iter().any(good);
        if any || planted(Fault::ToldTooEarly) {
            self.tell(&device);
        } else if self.set_error(err) {
            self.failed();
        }
    }

    /// Tells the client once that a device's image is lost.
    fn tell(&self, device: &DeviceHealth) {
        if !device.told.xchg(true, Full) {
            let err = Error::from_errno(-device.error.load(Relaxed));
            self.events.push(Kind::Corrupted(device.id, err));
        }
    }

    /// Ends the use of the images, since the snapshot is about to be destroyed.
    pub(crate) fn close(&self) {
        self.set_error(ESHUTDOWN);
        self.events.close();
    }
}
