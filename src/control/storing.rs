// SPDX-License-Identifier: GPL-2.0

//! How snapshots get difference storage: ranges that a client appends, or what the kernel holds for
//! them, a file or a device.
//!
//! Storage may lie on a captured device. Then it is excluded from being copied where each store
//! would have to be copied first, see [`feeding`](super::feeding), and reads as zeroes there. What
//! that means for storage that the kernel lets grow is in [`holding`](super::holding).

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId,
            Holder, //
        },
        bio_set::Target, //
    },
    fs::held_file::{
        NewFile,
        Opened, //
    },
    prelude::*,
    sync::Arc,
    uaccess::UserPtr,
    uuid::Uuid, //
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
        units::SECTOR_SHIFT, //
    },
    control::{
        feeding::feeds,
        front_end::FrontEnd,
        holding::{
            portion,
            Grower, //
        },
        registry::Registry, //
    },
    snapshot::Snapshot,
    storage::{
        events::Announce,
        held::Held,
        ranges::{
            check_inside,
            Disjoint, //
        },
        space::Provision,
        supply::{
            Growing,
            Supply, //
        }, //
    }, //
};

/// Storage that was refused.
static REFUSED: Logged = Logged::never();

/// Claims devices that are difference storage as a whole: none of ours excludes another.
static STORAGE: Holder = Holder::new();

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
        let grower = Grower::new(id, self)?;
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

    /// Appends what the file has that [was not appended](Held::unappended). With `appending` held.
    pub(super) fn append_held(
        &self,
        snapshot: &Snapshot,
        held: &mut Held,
        ranges: KVVec<(u64, u64)>,
    ) -> Result {
        let room = snapshot.space.with_room(ranges.len())?;
        // What was appended must be known as such: twice it would be two copies' place.
        held.make_room(ranges.len())?;
        snapshot.space.append(room, held.target(), &ranges)?;
        held.note_appended(ranges);
        Ok(())
    }
}
