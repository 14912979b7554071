// SPDX-License-Identifier: GPL-2.0

//! The space of a snapshot's difference storage: where old data is put, and when to ask for more.
//!
//! A copy [books](Space::book) its units when it begins, and [allocates](Space::alloc) them when
//! its data was read. Who needs the data later [locates](Space::locate) it by its first unit. The
//! arithmetic is the [pool](super::pool)'s and the [supply](super::supply)'s; here is the lock.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bdev::{
            BdevFile,
            DiskId, //
        },
        bio_set::Target, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        ArcBorrow,
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
            Pool,
            StorageRange, //
        },
        ranges::Disjoint,
        supply::{
            LowSpace,
            Supply,
            Want, //
        }, //
    }, //
};

/// The pool and where more comes from.
struct Accounted {
    pool: Pool<Target>,
    supply: Supply,
}

impl Accounted {
    /// The sectors in use, and all of them.
    fn sectors(&self) -> (u64, u64) {
        (
            self.pool.filled() << UNIT_SECTORS_SHIFT,
            self.pool.capacity() << UNIT_SECTORS_SHIFT,
        )
    }
}

/// Lets storage grow that the kernel holds.
pub(crate) trait Grow: Send + Sync {
    /// Has it grow, where that may sleep. Does not sleep; [`Space::grown`] is called in the end.
    fn grow(self: ArcBorrow<'_, Self>);
}

/// What a space is made of.
pub(crate) struct Provision {
    /// Where more comes from.
    pub(crate) supply: Supply,
    /// Who has the kernel take more.
    pub(crate) grower: Option<Arc<dyn Grow>>,
    /// It is read and written in whole blocks of so many bytes.
    pub(crate) block: u32,
    /// A disk, and the first sector and the number of sectors there: a file system that has ranges
    /// of a file somewhere.
    pub(crate) file_on: Option<(DiskId, u64, u64)>,
}

impl Provision {
    /// Nothing, for a client to append to.
    pub(crate) fn by_client(portion: u64, block: u32) -> Self {
        Self {
            supply: Supply::Client(LowSpace::new(portion)),
            grower: None,
            block,
            file_on: None,
        }
    }
}

/// A list of ranges with room for more.
pub(crate) type Room = KVVec<StorageRange<Target>>;

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
    grower: Option<Arc<dyn Grow>>,
    file_on: Option<(DiskId, u64, u64)>,
    /// Units that copies under way need and have no place for yet.
    placeless: Atomic<u64>,
    /// Sectors copied from original devices.
    pub(crate) copied: Atomic<u64>,
}

impl Space {
    /// Makes an empty space, and asks for the first portion if the client is to give it. May sleep.
    pub(crate) fn new(provision: Provision, events: &Arc<EventQueue>) -> Result<Arc<Self>> {
        let Provision {
            supply,
            grower,
            block,
            file_on,
        } = provision;
        let first = supply.requested();
        let this = Arc::pin_init(
            pin_init!(Self {
                accounted <- new_spinlock!(Accounted {
                    pool: Pool::new(block),
                    supply,
                }),
                events: events.clone(),
                grower,
                file_on,
                placeless: Atomic::new(0),
                copied: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        if first != 0 {
            this.events.push(Kind::LowFreeSpace(first));
        }
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

    /// Appends ranges of `target`, given as first sector and number of sectors; `room` comes from
    /// [`with_room`](Self::with_room). May sleep.
    pub(crate) fn append(&self, room: Room, target: &Target, ranges: &[(u64, u64)]) -> Result {
        let mut accounted = self.accounted.lock();
        let old = accounted.pool.append(room, target, ranges)?;
        let sectors = ranges.iter().map(|range| range.1).sum();
        let (filled, capacity) = accounted.sectors();
        let want = accounted.supply.appended(sectors, filled, capacity);
        self.see_to(want);
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
        self.accounted
            .lock()
            .pool
            .for_each(|target, sector, sectors| {
                let Target::Device(file) = target else {
                    return Ok(());
                };
                let bdev = file.bdev();
                if bdev.disk_id() == disk {
                    let range = (bdev.start_sector() + sector, sectors);
                    found.push_within_capacity(range).map_err(|_| ENOMEM)?;
                }
                Ok(())
            })?;
        Ok(found)
    }

    /// What is stored on a disk may be within these: the ranges there or, of a file, the file
    /// system that it is on. May sleep; calls must not overlap with those that append.
    pub(crate) fn stores_on(&self, disk: DiskId) -> Result<KVVec<(u64, u64)>> {
        let mut found = self.ranges_on(disk)?;
        if let Some(range) = self.file_on(disk) {
            found.push(range, GFP_KERNEL)?;
        }
        Ok(found)
    }

    /// The file system on a disk that has ranges of a file: first sector and number of sectors.
    pub(crate) fn file_on(&self, disk: DiskId) -> Option<(u64, u64)> {
        let (on, start, sectors) = self.file_on?;
        (on == disk).then_some((start, sectors))
    }

    /// Adds the devices that there are ranges of to `devices`. May sleep; calls must not overlap
    /// with those that append.
    pub(crate) fn add_devices(&self, devices: &mut KVVec<Arc<BdevFile>>) -> Result {
        devices.reserve(self.range_count(), GFP_KERNEL)?;
        self.accounted.lock().pool.for_each(|target, _, _| {
            if let Target::Device(file) = target {
                if !devices.iter().any(|known| Arc::ptr_eq(known, file)) {
                    devices
                        .push_within_capacity(file.clone())
                        .map_err(|_| ENOMEM)?;
                }
            }
            Ok(())
        })
    }

    /// Has done what is to be done for more. Does not sleep.
    fn see_to(&self, want: Option<Want>) {
        match want {
            Some(Want::Ask(sectors)) => self.events.push(Kind::LowFreeSpace(sectors)),
            Some(Want::TellLimit(sectors)) => self.events.push(Kind::NoSpace(sectors)),
            Some(Want::Grow) => {
                if let Some(grower) = &self.grower {
                    grower.as_arc_borrow().grow();
                }
            }
            None => {}
        }
    }

    /// What the kernel holds has grown, and may grow no more if `true`; or it could not.
    pub(crate) fn grown(&self, result: Result<bool>) {
        let mut accounted = self.accounted.lock();
        let (filled, _) = accounted.sectors();
        if let Supply::Kernel(growing) = &mut accounted.supply {
            growing.ended(result, filled);
        }
    }

    /// Whether more comes from the kernel, and not from the client.
    pub(crate) fn is_kernels(&self) -> bool {
        matches!(self.accounted.lock().supply, Supply::Kernel(_))
    }

    /// How much more is given, or taken, at a time.
    pub(crate) fn portion(&self) -> u64 {
        self.accounted.lock().supply.portion()
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
    /// Fails with `ENOSPC`, or with why there is no more.
    pub(crate) fn alloc(&self, units: u64) -> Result<u32> {
        let mut accounted = self.accounted.lock();
        let unit = accounted.pool.alloc(units);
        if unit.is_some() {
            self.unbook(units);
        }
        let (filled, capacity) = accounted.sectors();
        let want = accounted.supply.stored(filled, capacity);
        self.see_to(want);
        unit.ok_or_else(|| accounted.supply.exhausted())
    }

    /// How many sectors may be used for what is not needed yet: what is free and not booked, less
    /// half of all, or less half of the portion that is given at a time if that is less.
    pub(crate) fn spare(&self) -> u64 {
        let accounted = self.accounted.lock();
        let capacity = accounted.pool.capacity();
        let used = accounted.pool.filled() + self.placeless.load(Relaxed);
        let free = capacity.saturating_sub(used) << UNIT_SECTORS_SHIFT;
        let capacity = capacity << UNIT_SECTORS_SHIFT;
        free.saturating_sub(capacity.min(accounted.supply.portion()) / 2)
    }

    /// Whether there is room for any copy, for the fault of storing after a failure.
    pub(crate) fn has_room(&self) -> bool {
        let usage = self.usage();
        usage.capacity.saturating_sub(usage.filled) > COPY_WINDOW >> SECTOR_SHIFT
    }

    /// Where the `sectors` sectors are that begin `skip` sectors into `unit`, as far as they lie
    /// side by side on one device.
    pub(crate) fn locate(&self, unit: u32, skip: u64, sectors: u64) -> Option<Extent<Target>> {
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
            requested: accounted.supply.requested(),
        }
    }
}
