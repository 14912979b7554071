// SPDX-License-Identifier: GPL-2.0

//! The filter on a tracked device: marks what is written and, while a snapshot is held, lets the
//! copy engine decide about it.
//!
//! A tracker pins no device. When its device goes, so does the tracker, and a device that comes
//! back under the same number is another one.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId,
            DiskId, //
        },
        filter::{
            Filter,
            Incoming,
            OpMask,
            Registration,
            Verdict, //
        },
        queue::{
            Entered,
            Frozen,
            QueueCell, //
        }, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        new_spinlock,
        Arc,
        ArcBorrow,
        Mutex,
        SpinLock, //
    },
    uuid::Uuid, //
};

use crate::{
    base::{
        clock::real_seconds,
        delays::{
            delay,
            Point, //
        },
        medium::Medium, //
        params,
    },
    copying::cow::Cow,
    storage::trial::Mark,
    tracking::cbt::Cbt, //
};

/// A tracker that is, or was, attached to its device.
pub(crate) type Tracking = Registration<Tracker>;

/// One of its owners' references.
pub(crate) type TrackerRef = Arc<Tracking>;

/// Who watches for devices that go.
pub(crate) trait Watch: Send + Sync {
    /// The device of a tracker is gone. Called while it is being removed: takes no locks.
    fn device_gone(self: ArcBorrow<'_, Self>);
}

/// The snapshot that a device is in.
#[derive(Clone, Copy)]
pub(crate) struct Membership {
    /// Its name.
    pub(crate) snapshot: Uuid,
    /// It was taken, and not destroyed.
    pub(crate) taken: bool,
}

/// What the submission path needs.
pub(crate) struct Hooked {
    cbt: Arc<Cbt>,
    /// While a snapshot is held.
    cow: Option<Arc<Cow>>,
}

/// The filter's state.
#[pin_data]
pub(crate) struct Tracker {
    id: DevId,
    disk: DiskId,
    /// The device's first sector on the disk.
    start: u64,
    #[pin]
    hooked: QueueCell<Hooked>,
    /// There is a mark to look out for.
    looking: Atomic<bool>,
    /// Which one. A leaf.
    #[pin]
    mark: SpinLock<Option<Arc<Mark>>>,
    /// The map in `hooked`, for those who are outside of the queue. Taken below the registry's
    /// locks, never in the submission path.
    #[pin]
    cbt: Mutex<Arc<Cbt>>,
    /// The device's name when tracking began.
    name: CString,
    /// When that was, in seconds since 1970.
    since: i64,
    device_gone: Atomic<bool>,
    medium: Arc<Medium>,
    /// The snapshot that the device is in. A leaf.
    #[pin]
    membership: SpinLock<Option<Membership>>,
    /// The copy engine, from before the instant on. A leaf but for the event queue's lock.
    #[pin]
    cow: SpinLock<Option<Arc<Cow>>>,
    watcher: Arc<dyn Watch>,
}

impl Tracker {
    /// Begins to track `file`'s device, once it was attached; `watcher` is told when it goes.
    pub(crate) fn new(
        file: &BdevFile,
        watcher: Arc<dyn Watch>,
    ) -> Result<impl PinInit<Self, Error>> {
        let bdev = file.bdev();
        let medium = Arc::new(Medium::new(), GFP_KERNEL)?;
        let cbt = Arc::new(new_map(bdev, &medium)?, GFP_KERNEL)?;
        let name = CString::try_from_fmt(fmt!("{}", bdev))?;
        let (id, disk, start) = (bdev.id(), bdev.disk_id(), bdev.start_sector());
        let hooked = Hooked {
            cbt: cbt.clone(),
            cow: None,
        };
        let hooked = QueueCell::new(bdev, hooked);
        Ok(try_pin_init!(Self {
            id,
            disk,
            start,
            hooked <- hooked,
            looking: Atomic::new(false),
            mark <- new_spinlock!(None),
            cbt <- new_mutex!(cbt),
            name,
            since: real_seconds(),
            device_gone: Atomic::new(false),
            medium,
            membership <- new_spinlock!(None),
            cow <- new_spinlock!(None),
            watcher,
        }))
    }

    /// The device number.
    pub(crate) fn id(&self) -> DevId {
        self.id
    }

    /// The device's name when tracking began.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// When tracking began, in seconds since 1970.
    pub(crate) fn since(&self) -> i64 {
        self.since
    }

    /// The snapshot that the device is in, taken or not.
    pub(crate) fn membership(&self) -> Option<Membership> {
        *self.membership.lock()
    }

    /// The device is in another snapshot from now on, or in none.
    pub(crate) fn set_membership(&self, membership: Option<Membership>) {
        *self.membership.lock() = membership;
    }

    /// Whether the device was removed, or has lost its medium.
    pub(crate) fn device_is_gone(&self) -> bool {
        self.device_gone.load(Relaxed) || self.medium.is_lost()
    }

    /// What became of its device's data without a bio since tracking began.
    pub(crate) fn medium(&self) -> &Arc<Medium> {
        &self.medium
    }

    /// The disk that the device is, or is a partition of.
    pub(crate) fn disk(&self) -> DiskId {
        self.disk
    }

    /// Which copy engine to tell when the device goes.
    pub(crate) fn set_cow(&self, cow: Option<Arc<Cow>>) {
        let old = core::mem::replace(&mut *self.cow.lock(), cow);
        drop(old);
    }

    /// Whether this is the tracker of `bdev`, and not of one that had the same number.
    pub(crate) fn is_of(&self, bdev: &BlockDevice) -> bool {
        !self.device_is_gone() && self.id == bdev.id() && self.disk == bdev.disk_id()
    }

    /// The map.
    pub(crate) fn cbt(&self) -> Arc<Cbt> {
        self.cbt.lock().clone()
    }

    /// An empty map to go on with at the next take, if the present one cannot: because the device
    /// has another size now, was smaller or got other data, or because its numbers are used up.
    pub(crate) fn next_map(&self, bdev: &BlockDevice) -> Result<Option<Arc<Cbt>>> {
        let cbt = self.cbt();
        let same_size = cbt.sectors() == bdev.sectors() && cbt.shrinks() == self.medium.shrinks();
        if same_size && cbt.can_switch() {
            return Ok(None);
        }
        Ok(Some(Arc::new(new_map(bdev, &self.medium)?, GFP_KERNEL)?))
    }

    /// Ends the interval: goes on with `map` or, if there is none, with the next number; and lets
    /// `cow` decide about writes. Does not sleep. Returns what is to be freed later.
    pub(crate) fn arm(
        &self,
        frozen: &Frozen,
        map: Arc<Cbt>,
        fresh: bool,
        cow: Arc<Cow>,
    ) -> Result<Hooked> {
        if !fresh {
            map.switch()?;
        }
        let hooked = Hooked {
            cbt: map.clone(),
            cow: Some(cow),
        };
        match self.hooked.replace(frozen, hooked) {
            Ok(old) => Ok(old),
            Err(_) => {
                if !fresh {
                    map.switch_back();
                }
                Err(EINVAL)
            }
        }
    }

    /// The device may have got other data without a bio. Does not sleep, but not for interrupts.
    pub(crate) fn data_replaced(&self) {
        self.medium.replaced();
        if let Some(cow) = &*self.cow.lock() {
            cow.tell_of_medium();
        }
    }

    /// Looks out for a mark in what is written to the device, or for none any more.
    pub(crate) fn look_out_for(&self, mark: Option<Arc<Mark>>) {
        // Relaxed: a write that comes later has been handed on by locks, from who calls this.
        self.looking.store(mark.is_some(), Relaxed);
        let old = core::mem::replace(&mut *self.mark.lock(), mark);
        drop(old);
    }

    #[cold]
    fn look_at(&self, bio: &Incoming<'_>) {
        let mark = self.mark.lock().clone();
        if let Some(mark) = mark.filter(|mark| bio.has(mark.bytes())) {
            mark.note_seen();
        }
    }

    /// Makes the map that was given to [`arm`](Self::arm) known outside of the queue.
    pub(crate) fn set_map(&self, map: Arc<Cbt>) {
        *self.cbt.lock() = map;
    }

    /// Lets writes pass again.
    pub(crate) fn disarm(&self, frozen: &Frozen, cbt: Arc<Cbt>) -> Option<Hooked> {
        self.hooked.replace(frozen, Hooked { cbt, cow: None }).ok()
    }
}

/// An empty map for a device.
fn new_map(bdev: &BlockDevice, medium: &Medium) -> Result<Cbt> {
    // Before the size, which may change beside us.
    let shrinks = medium.shrinks();
    let map = Cbt::new(
        bdev.sectors(),
        params::tracking_block_minimum_shift(),
        params::tracking_block_maximum_shift(),
        params::tracking_block_maximum_count(),
    )?;
    Ok(map.after_shrinks(shrinks))
}

impl Filter for Tracker {
    type OwnerModule = crate::LocalModule;

    const NAME: &'static CStr = c"blksnap";
    const OPS: OpMask = OpMask::WRITES;

    #[inline]
    fn submit_bio<'a>(&self, bio: Incoming<'a>, entered: &Entered<'_>) -> Verdict<'a> {
        let Some(hooked) = self.hooked.get(entered) else {
            return bio.pass();
        };
        if self.looking.load(Relaxed) {
            self.look_at(&bio);
        }
        // A bio to the whole disk may begin before a partition and end after it.
        let sector = bio.sector().saturating_sub(self.start);
        let end = bio.end_sector().saturating_sub(self.start);
        hooked.cbt.mark(sector, end.saturating_sub(sector));
        delay(Point::Marked);
        match &hooked.cow {
            None => bio.pass(),
            Some(cow) => Cow::filter(cow, bio, sector, end),
        }
    }

    fn resized(&self, old: u64, new: u64) {
        self.medium.resized(old, new);
    }

    fn replaced(&self) {
        self.medium.replaced();
    }

    fn gone(&self) {
        self.device_gone.store(true, Relaxed);
        delay(Point::Gone);
        // Before writes pass unseen: the image would show them.
        if let Some(cow) = &*self.cow.lock() {
            cow.device_gone();
        }
        self.watcher.as_arc_borrow().device_gone();
    }
}
