// SPDX-License-Identifier: GPL-2.0

//! How snapshots get difference storage: ranges that a client appends, or what the kernel holds for
//! them, a file or a device.
//!
//! Storage may lie on a captured device. Then it is excluded from being copied where each store
//! would have to be copied first, see [`feeding`](super::feeding), and reads as zeroes there. For
//! ranges that a client appends after the instant, this is what it wants. What the kernel takes
//! must do no harm: blocks that a file gets after the instant may have been another one's then,
//! which the image has to show. So a held file grows as far as it may before the instant, and not
//! after that, if it is on a device that would have to leave out what it gets.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId,
            DiskId,
            Holder, //
        },
        bio_set::Target, //
    },
    fs::held_file::{
        NewFile,
        Opened, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    uaccess::UserPtr,
    uuid::Uuid,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

use crate::{
    base::{
        delays::{
            delay,
            Point, //
        },
        log::{
            may_log,
            Logged, //
        },
        params,
        units::{
            SECTOR_SHIFT,
            UNIT_SECTORS, //
        }, //
    },
    control::{
        feeding::feeds,
        front_end::FrontEnd,
        registry::Registry, //
    },
    snapshot::{
        check_blocks,
        Snapshot, //
    },
    storage::{
        events::Announce,
        held::Held,
        ranges::{
            check_inside,
            Disjoint, //
        },
        space::{
            Grow,
            Provision, //
        },
        supply::{
            Growing,
            Supply, //
        },
        trial::{
            self,
            Mark, //
        }, //
    }, //
};

/// Storage that was refused.
static REFUSED: Logged = Logged::never();

/// Growth that has failed.
static NOT_GROWN: Logged = Logged::never();

/// Claims devices that are difference storage as a whole: none of ours excludes another.
static STORAGE: Holder = Holder::new();

/// The number of sectors that held storage grows by: at least two chunks, and whole ones.
fn portion() -> u64 {
    let chunk = 1u64 << params::chunk_minimum_shift().saturating_sub(SECTOR_SHIFT);
    let portion = params::diff_storage_minimum().max(2 * chunk);
    portion.next_multiple_of(chunk)
}

/// Lets the file of one snapshot grow.
#[pin_data]
pub(super) struct Grower {
    snapshot: Uuid,
    registry: Arc<Registry>,
    #[pin]
    work: Work<Grower>,
}

impl_has_work! {
    impl HasWork<Self> for Grower { self.work }
}

impl Grow for Grower {
    fn grow(self: ArcBorrow<'_, Self>) {
        // It is queued once at a time: the next time is asked for when this one has ended.
        let _ = self.registry.growing.enqueue(Arc::from(self));
    }
}

impl WorkItem for Grower {
    type Pointer = Arc<Grower>;

    fn run(this: Arc<Grower>) {
        this.registry.grow(this.snapshot);
    }
}

impl Registry {
    /// Opens a device for writing, to be difference storage, and claims it if `all` of it is:
    /// nobody can mount it or make a file system on it then. With a part of it, somebody else may
    /// have claimed it, as the file system has that the ranges are a file of.
    ///
    /// Fails with `EROFS` if it is read-only, `EINVAL` if it is an image, `EBUSY` if somebody else
    /// has claimed it as a whole, or with the error of opening it.
    fn open_storage(&self, id: DevId, all: bool) -> Result<Arc<BdevFile>> {
        if id.major == self.major() {
            if may_log(&REFUSED) {
                pr_warn!("device {id} is an image, and cannot be difference storage\n");
            }
            return Err(EINVAL);
        }
        match BdevFile::open_for_writing(id, all.then_some(&STORAGE)) {
            // Mounted, and the kernel was told to keep writers away from what is: they are to go
            // through the file system, which gave us these sectors.
            Err(err) if err == EBUSY && !all => BdevFile::open(id),
            result => result,
        }
    }

    /// Appends ranges of a device, given as first sector and number of sectors, to the difference
    /// storage of a snapshot.
    ///
    /// Fails with `ESRCH` if there is no such snapshot, `EROFS` if the device is read-only, `EBUSY`
    /// if all of it is given and somebody else has claimed it,
    /// `EINVAL` if a range is empty, not inside of the device, not in its logical blocks, or
    /// overlaps one that is there, or if the device's blocks are larger than those of a captured
    /// device.
    pub(crate) fn append(
        &self,
        front_end: FrontEnd,
        id: Uuid,
        device: DevId,
        ranges: &[(u64, u64)],
    ) -> Result {
        let snapshot = self.snapshot_of(front_end, id)?;
        if ranges.is_empty() {
            return Ok(());
        }
        let file = BdevFile::open(device)?;
        let bdev = file.bdev();
        if bdev.is_read_only() {
            return Err(EROFS);
        }
        check_inside(ranges, bdev.sectors())?;
        let block = u64::from(bdev.logical_block_size() >> SECTOR_SHIFT).max(1);
        if ranges
            .iter()
            .any(|&(first, count)| first % block != 0 || count % block != 0)
        {
            return Err(EINVAL);
        }
        let disjoint = Disjoint::new(bdev.start_sector(), ranges)?;
        let all = ranges.iter().map(|range| range.1).sum::<u64>() == bdev.sectors();
        let writable = self.open_storage(device, all)?;
        if writable.bdev().disk_id() != bdev.disk_id() {
            return Err(ENODEV);
        }

        let _command = snapshot.commands.lock();
        snapshot.check_storage_blocks(bdev)?;
        let _appending = self.appending.lock();
        let snapshots = self.snapshots()?;
        for other in &snapshots {
            other.space.check_overlap(&file, &disjoint)?;
        }
        let room = snapshot.space.with_room(ranges.len())?;
        // Before anything is stored there.
        for captured in &snapshots {
            if feeds(&snapshots, captured, &snapshot)? {
                captured.exclude(&file, ranges)?;
            }
        }
        delay(Point::Excluded);
        snapshot.reserve_claim()?;
        snapshot
            .space
            .append(room, &Target::from(&writable), ranges)?;
        if all {
            snapshot.keep_claim(writable);
        }
        Ok(())
    }

    /// Creates a snapshot without devices, whose storage is what `path` names for the current task:
    /// a file, which may get up to `limit` sectors, a directory for a file without a name, or a
    /// whole device.
    ///
    /// Fails with the error of opening it or of its file system, `EINVAL` if it is something else
    /// or an image, `EBUSY` if it is in use, and `ENOSPC` if the file is too small and larger than
    /// `limit`.
    pub(crate) fn create_held(
        self: &Arc<Self>,
        front_end: FrontEnd,
        path: UserPtr,
        limit: u64,
    ) -> Result<Uuid> {
        match NewFile::open(path)? {
            Opened::File(file) => self.create_on_file(front_end, file, limit),
            Opened::Device(id) => self.create_on_device(front_end, id),
        }
    }

    /// Creates a snapshot without devices, to which the client appends storage. The storage must be
    /// good for all devices, so it is whole units of the smallest blocks.
    pub(crate) fn create_empty(self: &Arc<Self>, front_end: FrontEnd) -> Result<Uuid> {
        let provision = Provision::by_client(params::diff_storage_minimum(), 0);
        let snapshot = Snapshot::new(Uuid::random(), provision, self.clone())?;
        let id = snapshot.id();
        self.add_snapshot(self.sysfs.snapshot(snapshot, front_end)?)?;
        // It could not be found when its first event came.
        self.as_arc_borrow().announce();
        Ok(id)
    }

    fn create_on_file(
        self: &Arc<Self>,
        front_end: FrontEnd,
        file: NewFile,
        limit: u64,
    ) -> Result<Uuid> {
        let portion = portion();
        let held = Held::new(file, limit, portion)?;
        let device = held.device()?;
        let bdev = device.as_ref().map(|device| device.bdev());
        if bdev.is_some_and(|bdev| bdev.id().major == self.major()) {
            return Err(EINVAL);
        }
        let (block, file_on) = match held.target() {
            Target::Device(file) => (file.bdev().logical_block_size(), None),
            Target::File(_) => {
                let range =
                    |bdev: &BlockDevice| (bdev.disk_id(), bdev.start_sector(), bdev.sectors());
                (0, bdev.map(range))
            }
        };
        let id = Uuid::random();
        let grower = Arc::pin_init(
            pin_init!(Grower {
                snapshot: id,
                registry: self.clone(),
                work <- new_work!("blksnap::Grower"),
            }),
            GFP_KERNEL,
        )?;
        let provision = Provision {
            supply: Supply::Kernel(Growing::file(portion, held.is_at_limit())),
            grower: Some(grower),
            block,
            file_on,
        };
        let snapshot = Snapshot::new(id, provision, self.clone())?;
        let mut slot = snapshot.held.lock();
        let held = slot.insert(held);
        let ranges = held.unappended()?;
        let shown = self.sysfs.snapshot(snapshot.clone(), front_end)?;
        let appending = self.appending.lock();
        self.append_held(&snapshot, held, ranges)?;
        drop(appending);
        drop(slot);
        self.add_snapshot(shown)?;
        Ok(id)
    }

    fn create_on_device(self: &Arc<Self>, front_end: FrontEnd, id: DevId) -> Result<Uuid> {
        let file = self.open_storage(id, true)?;
        let bdev = file.bdev();
        if bdev.is_read_only() {
            return Err(EROFS);
        }
        let ranges = [(0, bdev.sectors())];
        let provision = Provision {
            supply: Supply::Kernel(Growing::device(portion())),
            grower: None,
            block: bdev.logical_block_size(),
            file_on: None,
        };
        let snapshot = Snapshot::new(Uuid::random(), provision, self.clone())?;
        let disjoint = Disjoint::new(bdev.start_sector(), &ranges)?;
        let shown = self.sysfs.snapshot(snapshot.clone(), front_end)?;
        let _appending = self.appending.lock();
        for other in &self.snapshots()? {
            let free = other.space.check_overlap(&file, &disjoint);
            free.map_err(|err| if err == EINVAL { EBUSY } else { err })?;
        }
        let room = snapshot.space.with_room(ranges.len())?;
        snapshot.reserve_claim()?;
        snapshot.space.append(room, &Target::from(&file), &ranges)?;
        snapshot.keep_claim(file);
        let id = snapshot.id();
        self.add_snapshot(shown)?;
        Ok(id)
    }

    /// Whether a captured device would have to leave out what `snapshot` stores on `bdev` from now
    /// on. With `appending` held.
    fn must_be_left_out(&self, snapshot: &Snapshot, bdev: &BlockDevice) -> Result<bool> {
        let snapshots = self.snapshots()?;
        for captured in &snapshots {
            if captured.copies(bdev) && feeds(&snapshots, captured, snapshot)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Appends what the file has that [was not appended](Held::unappended). With `appending` held.
    fn append_held(
        &self,
        snapshot: &Snapshot,
        held: &mut Held,
        ranges: KVVec<(u64, u64)>,
    ) -> Result {
        let room = snapshot.space.with_room(ranges.len())?;
        snapshot.space.append(room, held.target(), &ranges)?;
        held.note_appended(ranges)
    }

    /// Lets a file grow by `sectors` sectors, and appends that. Tells whether it is as large as it
    /// may get. Fails with `ENOSPC` if it must not grow.
    fn grow_by(&self, snapshot: &Snapshot, held: &mut Held, sectors: u64) -> Result<bool> {
        let left_out = |held: &Held| match held.target() {
            Target::Device(file) => self.must_be_left_out(snapshot, file.bdev()),
            Target::File(_) => Ok(false),
        };
        let appending = self.appending.lock();
        if left_out(held)? {
            return Err(ENOSPC);
        }
        drop(appending);
        // As long as the file system takes.
        held.grow(sectors)?;
        let ranges = held.unappended()?;
        let _appending = self.appending.lock();
        // Taken meanwhile.
        if left_out(held)? {
            return Err(ENOSPC);
        }
        self.append_held(snapshot, held, ranges)?;
        Ok(held.is_at_limit())
    }

    /// Lets the file of a snapshot grow by a portion, unless it was destroyed meanwhile.
    fn grow(&self, id: Uuid) {
        let Ok(snapshot) = self.snapshot(id) else {
            return;
        };
        let mut held = snapshot.held.lock();
        let Some(held) = &mut *held else {
            return;
        };
        let result = self.grow_by(&snapshot, held, snapshot.space.portion());
        if let Err(err) = result {
            if may_log(&NOT_GROWN) {
                pr_warn!("snapshot {id}: its storage cannot grow ({err:?})\n");
            }
            if err == ESTALE {
                // Other data may be where ours was.
                snapshot.fail(EIO);
            }
        }
        snapshot.space.grown(result);
    }

    /// Sees to the storage of a snapshot that is about to be taken, if the kernel holds it. Fails
    /// with `EBUSY` if it cannot be used for that, or with the error of a write to it.
    pub(super) fn prepare_storage(&self, snapshot: &Snapshot) -> Result {
        let _command = snapshot.commands.lock();
        if !snapshot.is_created() || !snapshot.space.is_kernels() {
            return Ok(());
        }
        self.grow_before(snapshot)?;
        self.try_storage(snapshot)
    }

    /// Lets the file of a snapshot grow as far as it may, if that must not grow after the instant.
    fn grow_before(&self, snapshot: &Snapshot) -> Result {
        let mut held = snapshot.held.lock();
        let Some(held) = &mut *held else {
            return Ok(());
        };
        let Target::Device(file) = held.target() else {
            return Ok(());
        };
        let mut captured = snapshot.open_devices()?.into_iter();
        if !captured.any(|(_, device)| device.bdev().overlaps(file.bdev())) {
            return Ok(());
        }
        let most = held.most_at_once();
        if most > 0 {
            if let Err(err) = self.grow_by(snapshot, held, most) {
                pr_warn!(
                    "snapshot {}: its storage, on what it captures, cannot grow ({:?})\n",
                    snapshot.id(),
                    err
                );
            }
        }
        // It is what there will be.
        snapshot.space.grown(Ok(true));
        Ok(())
    }

    /// Fails with `EBUSY`, and says so, if what is stored comes to one of the devices in the end;
    /// with the error of a write to the storage. Sectors of a device itself do not count: they are
    /// left out.
    fn try_storage(&self, snapshot: &Snapshot) -> Result {
        let Some(extent) = snapshot.space.locate(0, 0, UNIT_SECTORS) else {
            return Ok(());
        };
        let on = |disk: DiskId| match &extent.target {
            Target::Device(file) => file.bdev().disk_id() == disk,
            Target::File(_) => false,
        };
        let mut looking = snapshot.open_devices()?;
        looking.retain(|(_, file)| !on(file.bdev().disk_id()));
        if looking.is_empty() {
            return Ok(());
        }
        let mark = Mark::new()?;
        for (tracker, _) in &looking {
            tracker.look_out_for(Some(mark.clone()));
        }
        let written = trial::write(&extent.target, extent.sector, &mark);
        for (tracker, _) in &looking {
            tracker.look_out_for(None);
        }
        written?;
        if mark.was_seen() {
            pr_warn!(
                "snapshot {}: what is stored comes to one of its own devices\n",
                snapshot.id()
            );
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Fails with `EBUSY`, and says so, if what is stored for `snapshot` would be written to `bdev`
    /// in the end, were it captured, though not as sectors of its own that could be left out; with
    /// `EINVAL` if its blocks are smaller than those of the storage.
    pub(super) fn check_stores(&self, snapshot: &Snapshot, bdev: &BlockDevice) -> Result {
        let held = snapshot.held.lock();
        let mut stores = KVVec::new();
        snapshot.space.add_devices(&mut stores)?;
        let mut on_it = false;
        match &*held {
            Some(held) => {
                if let (Target::File(_), Some(device)) = (held.target(), held.device()?) {
                    on_it = device.bdev().overlaps(bdev);
                    stores.push(device, GFP_KERNEL)?;
                }
            }
            // A whole device, of which nothing would be left.
            None => on_it = stores.iter().any(|store| store.bdev().contains(bdev)),
        }
        for store in &stores {
            on_it |= bdev.is_below(store.bdev());
        }
        if on_it {
            if may_log(&REFUSED) {
                pr_warn!("device {bdev} cannot be captured: the difference storage is on it\n");
            }
            return Err(EBUSY);
        }
        match held.as_ref().map(Held::target) {
            Some(Target::File(_)) => Ok(()),
            _ => stores
                .iter()
                .try_for_each(|store| check_blocks(store.bdev(), bdev)),
        }
    }
}
