// SPDX-License-Identifier: GPL-2.0

//! What clients can do to trackers and snapshots.
//!
//! The [registry](super::registry) has them, and says which locks there are.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            DevId,
            Holder, //
        },
        filter::Registration, //
    },
    prelude::*,
    sync::Arc,
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
        registry::Registry,
        sysfs::ShownSnapshot, //
    },
    snapshot::{
        take,
        Device,
        Snapshot, //
    },
    storage::{
        events::Announce,
        ranges::{
            check_inside,
            Disjoint, //
        }, //
    },
    tracking::{
        cbt::Cbt,
        tracker::Tracker, //
    }, //
};

/// Images that were refused.
static REFUSED: Logged = Logged::never();

/// Claims devices that are difference storage as a whole: none of ours excludes another.
static STORAGE: Holder = Holder::new();

impl Registry {
    /// Ends tracking of a device.
    ///
    /// Fails with `ENODATA` if it is not tracked, `EBUSY` if it is in a snapshot, or with the
    /// error of opening it.
    pub(crate) fn remove_tracker(&self, id: DevId) -> Result {
        let file = BdevFile::open(id)?;
        let _attaching = self.attaching.lock();
        let tracker = self.find(file.bdev()).ok_or(ENODATA)?;
        if tracker.membership().is_some() {
            return Err(EBUSY);
        }
        self.forget(|other| core::ptr::eq(other, &*tracker));
        delay(Point::Forgotten);
        tracker.detach();
        Ok(())
    }

    /// The map of a device that is in a taken snapshot. Fails with `ENODATA` if it is not tracked,
    /// `EPERM` if it is in no taken snapshot.
    pub(crate) fn taken_map(&self, id: DevId) -> Result<Arc<Cbt>> {
        let tracker = self.find_by_id(id)?.ok_or(ENODATA)?;
        match tracker.membership() {
            Some(membership) if membership.taken => Ok(tracker.cbt()),
            _ => Err(EPERM),
        }
    }

    /// Marks ranges of a device, given as first sector and number of sectors, as changed. The
    /// number of an image stands for its original.
    ///
    /// Fails with `ENODEV` if there is no such tracker or image, `EINVAL` if a range is empty or
    /// not inside of the device.
    pub(crate) fn mark_dirty(&self, id: DevId, ranges: &[(u64, u64)]) -> Result {
        let tracker = if id.major == self.major() {
            let snapshots = self.snapshots.lock();
            let mut snapshots = snapshots.iter().map(|shown| &shown.snapshot);
            snapshots.find_map(|snapshot| snapshot.tracker_of_image(id))
        } else {
            self.find_by_id(id)?
        };
        let cbt = tracker.ok_or(ENODEV)?.cbt();
        check_inside(ranges, cbt.sectors())?;
        for &(first, count) in ranges {
            cbt.mark_both(first, count);
        }
        Ok(())
    }

    /// Creates a snapshot of devices, which are tracked from then on if they were not before.
    ///
    /// Fails with `EINVAL` if there is none or one is given twice, `EBUSY` if one is in a
    /// snapshot, `EOPNOTSUPP` if one is an image, whose clones would need more of the bios that
    /// they come from, or with the error of opening or attaching to one.
    pub(crate) fn create(self: &Arc<Self>, ids: &[DevId]) -> Result<Uuid> {
        if ids.is_empty() {
            return Err(EINVAL);
        }
        let mut files = KVec::with_capacity(ids.len(), GFP_KERNEL)?;
        for (i, &id) in ids.iter().enumerate() {
            if ids.iter().take(i).any(|&other| other == id) {
                return Err(EINVAL);
            }
            if id.major == self.major() {
                if may_log(&REFUSED) {
                    pr_warn!("device {id} is an image, and cannot be captured\n");
                }
                return Err(EOPNOTSUPP);
            }
            files.push(BdevFile::open(id)?, GFP_KERNEL)?;
        }

        let _attaching = self.attaching.lock();
        let mut devices = KVec::with_capacity(ids.len(), GFP_KERNEL)?;
        let mut added = KVec::with_capacity(ids.len(), GFP_KERNEL)?;
        for file in &files {
            let bdev = file.bdev();
            // Those of devices that had its number.
            self.forget(|tracker| tracker.id() == bdev.id() && !tracker.is_of(bdev));
            let tracker = match self.find(bdev) {
                Some(tracker) if tracker.membership().is_some() => return Err(EBUSY),
                Some(tracker) => tracker,
                None => {
                    let data = Tracker::new(file, self.clone())?;
                    let new = Arc::pin_init(Registration::new(file, data), GFP_KERNEL)?;
                    added.push(self.sysfs.tracker(new.clone())?, GFP_KERNEL)?;
                    new
                }
            };
            devices.push(Device { tracker }, GFP_KERNEL)?;
        }
        // On failure the new trackers are dropped, and so detached.
        let portion = params::diff_storage_minimum();
        let snapshot = Snapshot::new(devices, files, portion, self.clone())?;
        let id = snapshot.id();
        self.trackers.lock().reserve(added.len(), GFP_KERNEL)?;
        // The last that can fail.
        let shown = self.sysfs.snapshot(snapshot)?;
        self.add_snapshot(shown)?;
        let mut trackers = self.trackers.lock();
        for tracker in added {
            // There is room: others only remove some.
            drop(trackers.push_within_capacity(tracker));
        }
        drop(trackers);
        // It could not be found when its first event came.
        self.as_arc_borrow().announce();
        Ok(id)
    }

    fn add_snapshot(&self, mut shown: ShownSnapshot) -> Result {
        let mut snapshots = self.snapshots.lock();
        if let Err(err) = snapshots.reserve(1, GFP_KERNEL) {
            drop(snapshots);
            drop(shown.hide());
            return Err(err.into());
        }
        shown.snapshot.enter(false);
        drop(snapshots.push_within_capacity(shown));
        Ok(())
    }

    /// Destroys a snapshot. Fails with `ENODEV` if there is none of that name.
    pub(crate) fn destroy(&self, id: Uuid) -> Result {
        let snapshot = self.snapshot(id).map_err(|_| ENODEV)?;
        let _command = snapshot.commands.lock();
        if snapshot.is_destroyed() {
            return Err(ENODEV);
        }
        snapshot.close();
        let directory = self
            .snapshots
            .lock()
            .iter_mut()
            .find(|shown| Arc::ptr_eq(&shown.snapshot, &snapshot))
            .and_then(ShownSnapshot::hide);
        drop(directory);
        snapshot.destroy();
        self.snapshots
            .lock()
            .retain(|shown| !Arc::ptr_eq(&shown.snapshot, &snapshot));
        Ok(())
    }

    /// Appends ranges of a device, given as first sector and number of sectors, to the difference
    /// storage of a snapshot.
    ///
    /// The device is opened for writing, and claimed if all of it is storage: nobody can mount it
    /// or make a file system on it then. With a part of it, somebody else may have claimed it, as
    /// the file system has that the ranges are a file of.
    ///
    /// Fails with `ESRCH` if there is no such snapshot, `EROFS` if the device is read-only, `EBUSY`
    /// if all of it is given and somebody else has claimed it,
    /// `EINVAL` if a range is empty, not inside of the device, not in its logical blocks, or
    /// overlaps one that is there, or if the device's blocks are larger than those of a captured
    /// device.
    pub(crate) fn append(&self, id: Uuid, device: DevId, ranges: &[(u64, u64)]) -> Result {
        let snapshot = self.snapshot(id)?;
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
        if device.major == self.major() {
            if may_log(&REFUSED) {
                pr_warn!("device {device} is an image, and cannot be difference storage\n");
            }
            return Err(EINVAL);
        }
        let disjoint = Disjoint::new(bdev.start_sector(), ranges)?;
        let all = ranges.iter().map(|range| range.1).sum::<u64>() == bdev.sectors();
        let writable = match BdevFile::open_for_writing(device, all.then_some(&STORAGE)) {
            // Mounted, and the kernel was told to keep writers away from what is: they are to go
            // through the file system, which gave us these sectors.
            Err(err) if err == EBUSY && !all => file.clone(),
            result => result?,
        };
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
        snapshot.space.append(room, &writable, ranges)?;
        if all {
            snapshot.keep_claim(writable);
        }
        Ok(())
    }

    /// Takes a snapshot. Fails with `ESRCH` if there is none of that name; see [`take::take`] for
    /// the other errors.
    pub(crate) fn take(&self, id: Uuid) -> Result {
        let _taking = self.taking.lock();
        let snapshot = self.snapshot(id)?;
        let _command = snapshot.commands.lock();
        let common = take::Common {
            clones: &self.clones,
            major: &self.major,
            group: self.sysfs.images(),
        };
        take::take(&snapshot, &common, |engines| {
            let _appending = self.appending.lock();
            // From here on, what is appended is excluded by who appends it.
            snapshot.begin_take(engines);
            let snapshots = self.snapshots()?;
            for other in &snapshots {
                if snapshot.copies_stores_of(other)? && feeds(&snapshots, &snapshot, other)? {
                    snapshot.exclude_storage_of(other)?;
                }
            }
            Ok(())
        })
    }

    /// Destroys all snapshots and ends all tracking, for the module to be unloaded: no command
    /// comes any more.
    pub(crate) fn shut_down(&self) {
        let attaching = self.attaching.lock();
        let snapshots = core::mem::take(&mut *self.snapshots.lock());
        for mut shown in snapshots {
            shown.snapshot.close();
            drop(shown.hide());
            shown.snapshot.destroy();
        }
        let trackers = core::mem::take(&mut *self.trackers.lock());
        delay(Point::Unloading);
        for shown in &trackers {
            shown.data().detach();
        }
        drop(trackers);
        drop(attaching);
        self.flush();
    }
}
