// SPDX-License-Identifier: GPL-2.0

//! The space of a snapshot's difference storage: where old data is put, and when to ask for more.
//!
//! A copy [books](Space::book) its units when it begins, and [allocates](Space::alloc) them when
//! its data was read. Who needs the data later [locates](Space::locate) it by its first unit. The
//! arithmetic is the [pool](super::pool)'s; here is the lock, and the request for more.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::bdev::{
        BdevFile,
        DiskId, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    }, //
};

use crate::{
    base::units::{
        COPY_WINDOW,
        SECTOR_SHIFT,
        UNIT_SECTORS_SHIFT, //
    },
    storage::{
        events::{
            EventQueue,
            Kind, //
        },
        pool::{
            Extent,
            LowSpace,
            Pool,
            StorageRange, //
        },
        ranges::Disjoint, //
    }, //
};

/// The pool and its accounting.
struct Accounted {
    pool: Pool<Arc<BdevFile>>,
    low: LowSpace,
}

/// A list of ranges with room for more.
pub(crate) type Room = KVVec<StorageRange<Arc<BdevFile>>>;

/// How much there is of what. All numbers are sectors.
pub(crate) struct Usage {
    /// In all ranges.
    pub(crate) capacity: u64,
    /// In use.
    pub(crate) filled: u64,
    /// Asked for by events.
    pub(crate) requested: u64,
}

/// The space of one snapshot's difference storage.
///
/// The lock is a leaf but for the event queue's; not taken in interrupts.
#[pin_data]
pub(crate) struct Space {
    #[pin]
    accounted: SpinLock<Accounted>,
    events: Arc<EventQueue>,
    /// Units that copies under way need and have no place for yet.
    placeless: Atomic<u64>,
    /// Sectors copied from original devices.
    pub(crate) copied: Atomic<u64>,
}

impl Space {
    /// Makes an empty space for devices of which the smallest logical blocks have `block` bytes,
    /// and asks for the first portion of `portion` sectors. May sleep.
    pub(crate) fn new(portion: u64, block: u32, events: &Arc<EventQueue>) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            pin_init!(Self {
                accounted <- new_spinlock!(Accounted {
                    pool: Pool::new(block),
                    low: LowSpace::new(portion),
                }),
                events: events.clone(),
                placeless: Atomic::new(0),
                copied: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        this.events.push(Kind::LowFreeSpace(portion));
        Ok(this)
    }

    /// The number of ranges.
    pub(crate) fn range_count(&self) -> usize {
        self.accounted.lock().pool.len()
    }

    /// Makes room for `more` ranges. May sleep.
    pub(crate) fn with_room(&self, more: usize) -> Result<Room> {
        Pool::with_room(self.range_count(), more)
    }

    /// Appends ranges of a device, given as first sector and number of sectors; `room` comes from
    /// [`with_room`](Self::with_room). May sleep.
    pub(crate) fn append(&self, room: Room, file: &Arc<BdevFile>, ranges: &[(u64, u64)]) -> Result {
        let mut accounted = self.accounted.lock();
        let old = accounted.pool.append(room, file, ranges)?;
        accounted
            .low
            .appended(ranges.iter().map(|range| range.1).sum());
        self.ask_for_more(&mut accounted);
        drop(accounted);
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

    fn ask_for_more(&self, accounted: &mut Accounted) {
        let (filled, capacity) = (accounted.pool.filled(), accounted.pool.capacity());
        let sectors = |units: u64| units << UNIT_SECTORS_SHIFT;
        if accounted.low.ask(sectors(filled), sectors(capacity)) {
            self.events
                .push(Kind::LowFreeSpace(accounted.low.portion()));
        }
    }

    /// A copy begins that needs `units` units.
    pub(crate) fn book(&self, units: u64) {
        self.placeless.fetch_add(units, Relaxed);
    }

    /// Books `units` units for something that is not needed for what others write. Does not sleep.
    ///
    /// Fails with `ENOSPC` if there are no more than are booked.
    pub(crate) fn book_spare(&self, units: u64) -> Result {
        // First booked and then looked, so that of two who come at once not both see the last one.
        self.book(units);
        let accounted = self.accounted.lock();
        let used = accounted.pool.filled() + self.placeless.load(Relaxed);
        if used > accounted.pool.capacity() {
            drop(accounted);
            self.unbook(units);
            return Err(ENOSPC);
        }
        Ok(())
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
        let mut accounted = self.accounted.lock();
        let unit = accounted.pool.alloc(units).ok_or(ENOSPC)?;
        self.unbook(units);
        self.ask_for_more(&mut accounted);
        Ok(unit)
    }

    /// How many sectors may be used for what is not needed yet: what is free and not booked, less
    /// half of all, or less half of the portion that clients give at a time if that is less.
    pub(crate) fn spare(&self) -> u64 {
        let accounted = self.accounted.lock();
        let capacity = accounted.pool.capacity();
        let used = accounted.pool.filled() + self.placeless.load(Relaxed);
        let free = capacity.saturating_sub(used) << UNIT_SECTORS_SHIFT;
        let capacity = capacity << UNIT_SECTORS_SHIFT;
        free.saturating_sub(capacity.min(accounted.low.portion()) / 2)
    }

    /// Whether there is room for any copy, for the fault of storing after a failure.
    pub(crate) fn has_room(&self) -> bool {
        let usage = self.usage();
        usage.capacity.saturating_sub(usage.filled) > COPY_WINDOW >> SECTOR_SHIFT
    }

    /// Where the `sectors` sectors are that begin `skip` sectors into `unit`, as far as they lie
    /// side by side on one device.
    pub(crate) fn locate(
        &self,
        unit: u32,
        skip: u64,
        sectors: u64,
    ) -> Option<Extent<Arc<BdevFile>>> {
        self.accounted.lock().pool.locate(unit, skip, sectors)
    }

    /// Forgets all ranges, now that nothing is read or written there any more. May sleep.
    pub(crate) fn close(&self) {
        let pool = core::mem::replace(&mut self.accounted.lock().pool, Pool::new(0));
        // Without the lock, as this closes devices.
        drop(pool);
    }

    /// How much there is of what.
    pub(crate) fn usage(&self) -> Usage {
        let accounted = self.accounted.lock();
        Usage {
            capacity: accounted.pool.capacity() << UNIT_SECTORS_SHIFT,
            filled: accounted.pool.filled() << UNIT_SECTORS_SHIFT,
            requested: accounted.low.requested(),
        }
    }

    /// Calls `f` with the device, the first sector and the number of sectors of each range. May
    /// sleep, but `f` must not.
    fn for_each_range(&self, f: impl FnMut(&Arc<BdevFile>, u64, u64) -> Result) -> Result {
        self.accounted.lock().pool.for_each(f)
    }
}
