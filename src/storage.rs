// SPDX-License-Identifier: GPL-2.0

//! What the copy engines of one snapshot share: the difference storage, the events, and whether
//! the snapshot is still good.

use kernel::{
    block::bdev::{
        BdevFile,
        DevId,
        DiskId, //
    },
    prelude::*,
    rbtree::RBTree,
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
    base::{
        faults::{
            planted,
            Fault, //
        },
        units::{
            SECTOR_SHIFT,
            UNIT_SECTORS_SHIFT, //
        }, //
    },
    control::registry::Registry,
    copying::ahead::WINDOW,
    storage::{
        events::{
            EventQueue,
            Kind, //
        },
        pool::{
            Extent,
            LowSpace,
            Pool,
            Range, //
        }, //
    }, //
};

pub(crate) mod events;
pub(crate) mod pool;

/// A device of the snapshot, and whether the client was told that its image is of no use.
pub(crate) struct Told {
    id: DevId,
    /// Why, as a positive errno; or 0.
    error: Atomic<i32>,
    /// The event was sent.
    told: Atomic<bool>,
}

impl Told {
    /// Not told yet.
    pub(crate) fn new(id: DevId) -> Self {
        Self {
            id,
            error: Atomic::new(0),
            told: Atomic::new(false),
        }
    }
}

/// The pool and its accounting.
struct Space {
    pool: Pool<Arc<BdevFile>>,
    low: LowSpace,
}

/// A list of ranges with room for more.
pub(crate) type Room = KVVec<Range<Arc<BdevFile>>>;

/// How much there is of what. All numbers are sectors.
pub(crate) struct Usage {
    /// In all ranges.
    pub(crate) capacity: u64,
    /// In use.
    pub(crate) filled: u64,
    /// Asked for by events.
    pub(crate) requested: u64,
}

/// The difference storage of one snapshot.
///
/// The lock is a leaf but for the event queue's; not taken in interrupts.
#[pin_data]
pub(crate) struct Storage {
    id: Uuid,
    devices: KVec<Told>,
    #[pin]
    space: SpinLock<Space>,
    #[pin]
    events: EventQueue,
    /// There is a request for storage, or a corruption, that is to be announced.
    news: [Atomic<bool>; 2],
    registry: Arc<Registry>,
    /// A positive errno once the images are of no use: the snapshot is corrupted, or is going.
    error: Atomic<i32>,
    /// Writes to the storage in flight, and one more until the snapshot is corrupted.
    writes: Atomic<i32>,
    /// Units that copies under way need and have no place for yet.
    placeless: Atomic<u64>,
    /// Sectors copied from original devices.
    pub(crate) copied: Atomic<u64>,
    /// Image reads that were overtaken by a write to the original, and done again.
    pub(crate) retried: Atomic<u64>,
}

impl Storage {
    /// Makes an empty storage for a snapshot of these devices, and asks for the first portion of
    /// `portion` sectors.
    pub(crate) fn new(
        id: Uuid,
        devices: KVec<Told>,
        portion: u64,
        registry: &Arc<Registry>,
    ) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            try_pin_init!(Self {
                id,
                events <- EventQueue::new(devices.len()),
                devices,
                space <- new_spinlock!(Space {
                    pool: Pool::new(),
                    low: LowSpace::new(portion),
                }),
                news: [Atomic::new(false), Atomic::new(false)],
                registry: registry.clone(),
                error: Atomic::new(0),
                writes: Atomic::new(1),
                placeless: Atomic::new(0),
                copied: Atomic::new(0),
                retried: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        this.push(Kind::LowFreeSpace(portion));
        Ok(this)
    }

    /// The snapshot's name.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// Puts an event into the queue and has it announced. Does not sleep.
    fn push(&self, kind: Kind) {
        self.events.push(kind);
        let [low, corrupted] = &self.news;
        // Ordered before the work by its queueing.
        match kind {
            Kind::LowFreeSpace(_) => low.store(true, Relaxed),
            Kind::Corrupted(..) => corrupted.store(true, Relaxed),
        }
        self.registry.announce();
    }

    /// Whether storage was asked for, and whether an image was lost, since the last call.
    pub(crate) fn take_news(&self) -> (bool, bool) {
        let [low, corrupted] = &self.news;
        (low.xchg(false, Full), corrupted.xchg(false, Full))
    }

    /// What the snapshot has to tell.
    pub(crate) fn events(&self) -> &EventQueue {
        &self.events
    }

    /// Whether the images are of no use any more.
    ///
    /// Acquire, paired with [`set_error`](Self::set_error): who sees the error may let go what
    /// was only needed for the images.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.error.load(Acquire) != 0
    }

    /// The error since which the image of a device is of no use, as a positive errno, or 0.
    pub(crate) fn device_error(&self, id: DevId) -> i32 {
        let device = self.devices.iter().find(|device| device.id == id);
        device.map_or(0, |device| device.error.load(Relaxed))
    }

    /// The same for the first device whose image is of no use.
    pub(crate) fn error(&self) -> i32 {
        let mut errors = self.devices.iter().map(|d| d.error.load(Relaxed));
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
    /// devices go on. The client is told when what is being stored has ended: then the storage is
    /// its own again.
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
        for device in &self.devices {
            let _ = device.error.cmpxchg(0, -err.to_errno(), Full);
        }
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
        if self.has_failed() && !planted(Fault::StoreAfterFailure) {
            self.end_write();
            return false;
        }
        true
    }

    /// A write to the storage has ended. Does not sleep; callable in interrupts.
    pub(crate) fn end_write(&self) {
        if self.writes.fetch_sub(1, Full) == 1 {
            // The queue of events is not for interrupts.
            self.registry.announce();
        }
    }

    /// Tells the client that the snapshot is corrupted, if it is and no write is in flight. Does
    /// not sleep.
    pub(crate) fn tell_lost(&self) {
        if self.writes.load(Acquire) == 0 {
            self.devices.iter().for_each(|device| self.tell(device));
        }
    }

    /// Declares the image of one device to be of no use, because of `err`; the others go on. Does
    /// not sleep.
    pub(crate) fn fail_device(&self, id: DevId, err: Error) {
        if let Some(device) = self.devices.iter().find(|device| device.id == id) {
            pr_err!("snapshot {}: device {} is lost ({:?})\n", self.id, id, err);
            if device.error.cmpxchg(0, -err.to_errno(), Full).is_ok() {
                self.tell(device);
            }
        }
    }

    /// Tells the client once that a device's image is of no use.
    fn tell(&self, device: &Told) {
        if !device.told.xchg(true, Full) {
            let err = Error::from_errno(-device.error.load(Relaxed));
            self.push(Kind::Corrupted(device.id, err));
        }
    }

    /// Ends the use of the images, since the snapshot is about to be destroyed.
    pub(crate) fn close(&self) {
        self.set_error(ESHUTDOWN);
        self.events.close();
    }

    /// The number of ranges.
    pub(crate) fn range_count(&self) -> usize {
        self.space.lock().pool.len()
    }

    /// Makes room for `more` ranges. May sleep.
    pub(crate) fn with_room(&self, more: usize) -> Result<Room> {
        Pool::with_room(self.range_count(), more)
    }

    /// Appends ranges of a device, given as first sector and number of sectors; `room` comes from
    /// [`with_room`](Self::with_room). May sleep.
    pub(crate) fn append(&self, room: Room, file: &Arc<BdevFile>, ranges: &[(u64, u64)]) -> Result {
        let mut space = self.space.lock();
        let old = space.pool.append(room, file, ranges)?;
        space.low.appended(ranges.iter().map(|range| range.1).sum());
        self.ask_for_more(&mut space);
        drop(space);
        // Without the lock, as freeing a large list may sleep.
        drop(old);
        Ok(())
    }

    /// Fails with `EINVAL` if a range that is there overlaps one of `ranges`, of the same disk as
    /// `file`.
    pub(crate) fn check_overlap(&self, file: &BdevFile, ranges: &Disjoint) -> Result {
        if self
            .ranges_on(file.bdev().disk_id())?
            .iter()
            .any(|&(start, sectors)| ranges.overlap(start, start + sectors))
        {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// The ranges on a disk: first sector on it and number of sectors. May sleep; calls must not
    /// overlap with those that append.
    pub(crate) fn ranges_on(&self, disk: DiskId) -> Result<KVVec<(u64, u64)>> {
        // Copied, as writers wait for the lock.
        let mut found = KVVec::with_capacity(self.range_count(), GFP_KERNEL)?;
        self.for_each_range(|file, sector, sectors| {
            let bdev = file.bdev();
            if bdev.disk_id() == disk {
                let range = (bdev.start_sector() + sector, sectors);
                found.push_within_capacity(range).map_err(|_| ENOMEM)?;
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn ask_for_more(&self, space: &mut Space) {
        let (filled, capacity) = (space.pool.filled(), space.pool.capacity());
        let sectors = |units: u64| units << UNIT_SECTORS_SHIFT;
        if space.low.ask(sectors(filled), sectors(capacity)) {
            self.push(Kind::LowFreeSpace(space.low.portion()));
        }
    }

    /// A copy begins that needs `units` units.
    pub(crate) fn book(&self, units: u64) {
        self.placeless.fetch_add(units, Relaxed);
    }

    /// It ends without having been stored.
    pub(crate) fn unbook(&self, units: u64) {
        self.placeless.fetch_sub(units, Relaxed);
    }

    /// Allocates `units` units that were [booked](Self::book), and returns the first one. Does
    /// not sleep.
    ///
    /// Fails with `ENOSPC`.
    pub(crate) fn alloc(&self, units: u64) -> Result<u32> {
        let mut space = self.space.lock();
        let unit = space.pool.alloc(units).ok_or(ENOSPC)?;
        self.unbook(units);
        self.ask_for_more(&mut space);
        Ok(unit)
    }

    /// How many sectors may be used for what is not needed yet: what is free and not booked to be
    /// used, less half of all, or less half of the portion that clients give at a time if that is
    /// less.
    pub(crate) fn spare(&self) -> u64 {
        let space = self.space.lock();
        let capacity = space.pool.capacity();
        let used = space.pool.filled() + self.placeless.load(Relaxed);
        let free = capacity.saturating_sub(used) << UNIT_SECTORS_SHIFT;
        let capacity = capacity << UNIT_SECTORS_SHIFT;
        free.saturating_sub(capacity.min(space.low.portion()) / 2)
    }

    /// Whether there is room for any copy, for [`Fault::StoreAfterFailure`](crate::base::faults::Fault).
    pub(crate) fn has_room(&self) -> bool {
        let usage = self.usage();
        usage.capacity.saturating_sub(usage.filled) > WINDOW >> SECTOR_SHIFT
    }

    /// Where the `sectors` sectors are that begin `skip` sectors into `unit`, as far as they lie
    /// side by side on one device.
    pub(crate) fn locate(
        &self,
        unit: u32,
        skip: u64,
        sectors: u64,
    ) -> Option<Extent<Arc<BdevFile>>> {
        self.space.lock().pool.locate(unit, skip, sectors)
    }

    /// How much there is of what.
    pub(crate) fn usage(&self) -> Usage {
        let space = self.space.lock();
        Usage {
            capacity: space.pool.capacity() << UNIT_SECTORS_SHIFT,
            filled: space.pool.filled() << UNIT_SECTORS_SHIFT,
            requested: space.low.requested(),
        }
    }

    /// Calls `f` with the device, the first sector and the number of sectors of each range. May
    /// sleep, but `f` must not.
    fn for_each_range(&self, f: impl FnMut(&Arc<BdevFile>, u64, u64) -> Result) -> Result {
        self.space.lock().pool.for_each(f)
    }
}

/// Ranges of sectors of a disk that do not overlap: where each starts, and the sector after it.
pub(crate) struct Disjoint(RBTree<u64, u64>);

impl Disjoint {
    /// Ranges given as first sector and number of sectors, counted from `start`. Fails with
    /// `EINVAL` if they overlap. They must end before `u64` does. May sleep.
    pub(crate) fn new(start: u64, ranges: &[(u64, u64)]) -> Result<Self> {
        let mut this = Self(RBTree::new());
        for &(sector, sectors) in ranges {
            let (from, to) = (start + sector, start + sector + sectors);
            if this.overlap(from, to) {
                return Err(EINVAL);
            }
            this.0.try_create_and_insert(from, to, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// Whether one of the ranges has a sector from `start` to before `end`.
    fn overlap(&self, start: u64, end: u64) -> bool {
        match self.0.cursor_lower_bound(&start) {
            Some(next) => {
                *next.current().0 < end
                    || next.peek_prev().is_some_and(|(_, &before)| before > start)
            }
            None => self
                .0
                .cursor_back()
                .is_some_and(|last| *last.current().1 > start),
        }
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_storage)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found() -> Result {
        let ranges = Disjoint::new(50, &[(50, 100), (250, 100)])?;
        for (start, end) in [
            (100, 101),
            (150, 160),
            (199, 300),
            (50, 101),
            (50, 500),
            (250, 301),
            (399, 500),
        ] {
            assert!(ranges.overlap(start, end));
        }
        for (start, end) in [(200, 300), (0, 100), (400, 401)] {
            assert!(!ranges.overlap(start, end));
        }
        assert!(!Disjoint::new(0, &[])?.overlap(0, u64::MAX));
        assert!(Disjoint::new(0, &[(10, 10), (19, 1)]).is_err());
        assert!(Disjoint::new(0, &[(10, 10), (20, 1), (9, 1)]).is_ok());
        Ok(())
    }
}
