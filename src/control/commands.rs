// SPDX-License-Identifier: GPL-2.0

//! What clients can do to trackers and snapshots; what concerns storage is in
//! [`storing`](super::storing).
//!
//! The [registry](super::registry) has them, and says which locks there are.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId, //
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
        params, //
    },
    control::{
        feeding::feeds,
        front_end::FrontEnd,
        registry::Registry,
        sysfs::{
            Shown,
            ShownSnapshot, //
        }, //
    },
    snapshot::{
        take,
        Snapshot,
        State, //
    },
    storage::{
        events::Announce,
        ranges::check_inside,
        space::Provision, //
    },
    tracking::{
        cbt::Cbt,
        tracker::{
            Membership,
            Tracker,
            Tracking, //
        }, //
    }, //
};

/// Images that were refused.
static REFUSED: Logged = Logged::never();

/// Opens a device again that a client has open. Fails with `ENODEV` if it is going.
fn open_again(bdev: &BlockDevice) -> Result<Arc<BdevFile>> {
    let file = BdevFile::open(bdev.id()).map_err(|err| if err == ENXIO { ENODEV } else { err })?;
    if file.bdev().disk_id() != bdev.disk_id() {
        return Err(ENODEV);
    }
    Ok(file)
}

/// Marks ranges of a device, given as first sector and number of sectors, as changed. Fails with
/// `EINVAL`, and marks nothing, if a range is empty or not inside of the device.
pub(super) fn mark(tracker: &Tracking, ranges: &[(u64, u64)]) -> Result {
    let cbt = tracker.cbt();
    check_inside(ranges, cbt.sectors())?;
    for &(first, count) in ranges {
        cbt.mark_both(first, count);
    }
    Ok(())
}

impl Registry {
    /// Refuses an image, whose clones would need more of the bios that they come from, by
    /// `EOPNOTSUPP`; says so.
    fn refuse_image(&self, id: DevId) -> Result {
        if id.major != self.major() {
            return Ok(());
        }
        if may_log(&REFUSED) {
            pr_warn!("device {id} is an image, and cannot be captured\n");
        }
        Err(EOPNOTSUPP)
    }

    /// A new tracker of a device, attached. With `attaching` held, and no tracker of it there.
    fn attach_to(self: &Arc<Self>, file: &Arc<BdevFile>) -> Result<Shown<Tracking>> {
        let data = Tracker::new(file, self.clone())?;
        let new = Arc::pin_init(Registration::new(file, data), GFP_KERNEL)?;
        // On failure it is dropped, and so detached.
        self.sysfs.tracker(new)
    }

    /// Forgets the trackers of devices that had the number of this one. With `attaching` held.
    fn forget_others(&self, bdev: &BlockDevice) {
        self.forget(|tracker| tracker.id() == bdev.id() && !tracker.is_of(bdev));
    }

    /// Begins to track a device that a client has open.
    ///
    /// Fails with `EALREADY` if it is tracked, `EOPNOTSUPP` if it is an image, `ENODEV` if it is
    /// going, or with the error of attaching to it.
    pub(crate) fn attach(self: &Arc<Self>, bdev: &BlockDevice) -> Result {
        self.refuse_image(bdev.id())?;
        let file = open_again(bdev)?;
        let _attaching = self.attaching.lock();
        self.forget_others(bdev);
        if self.find(bdev).is_some() {
            return Err(EALREADY);
        }
        let shown = self.attach_to(&file)?;
        let mut trackers = self.trackers.lock();
        if let Err(err) = trackers.reserve(1, GFP_KERNEL) {
            drop(trackers);
            drop(shown);
            return Err(err.into());
        }
        // There is room.
        drop(trackers.push_within_capacity(shown));
        Ok(())
    }

    /// Ends tracking of a device that a client has open.
    ///
    /// Fails with `ENODATA` if it is not tracked, `EBUSY` if it is in a snapshot.
    pub(crate) fn detach(&self, bdev: &BlockDevice) -> Result {
        let _attaching = self.attaching.lock();
        let tracker = self.find(bdev).ok_or(ENODATA)?;
        if tracker.membership().is_some() {
            return Err(EBUSY);
        }
        self.forget(|other| core::ptr::eq(other, &*tracker));
        delay(Point::Forgotten);
        tracker.detach();
        Ok(())
    }

    /// Ends tracking of a device. Fails as [`detach`](Self::detach) does, or with the error of
    /// opening it.
    pub(crate) fn remove_tracker(&self, id: DevId) -> Result {
        self.detach(BdevFile::open(id)?.bdev())
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
        mark(&*tracker.ok_or(ENODEV)?, ranges)
    }

    /// Creates a snapshot of devices, which are tracked from then on if they were not before, and
    /// to which the client appends storage.
    ///
    /// Fails with `EINVAL` if there is none or one is given twice, `EBUSY` if one is in a
    /// snapshot, `EOPNOTSUPP` if one is an image, or with the error of opening or attaching to one.
    pub(crate) fn create(self: &Arc<Self>, ids: &[DevId]) -> Result<Uuid> {
        if ids.is_empty() {
            return Err(EINVAL);
        }
        let mut files = KVVec::with_capacity(ids.len(), GFP_KERNEL)?;
        let mut block = u32::MAX;
        for (i, &id) in ids.iter().enumerate() {
            if ids.iter().take(i).any(|&other| other == id) {
                return Err(EINVAL);
            }
            self.refuse_image(id)?;
            let file = BdevFile::open(id)?;
            block = block.min(file.bdev().logical_block_size());
            files.push(file, GFP_KERNEL)?;
        }

        let _attaching = self.attaching.lock();
        let mut added = KVVec::with_capacity(ids.len(), GFP_KERNEL)?;
        let provision = Provision::by_client(params::diff_storage_minimum(), block);
        let snapshot = Snapshot::new(Uuid::random(), provision, self.clone())?;
        let id = snapshot.id();
        for file in files {
            let bdev = file.bdev();
            self.forget_others(bdev);
            let tracker = match self.find(bdev) {
                Some(tracker) if tracker.membership().is_some() => return Err(EBUSY),
                Some(tracker) => tracker,
                None => {
                    let shown = self.attach_to(&file)?;
                    let tracker = shown.data().clone();
                    added.push(shown, GFP_KERNEL)?;
                    tracker
                }
            };
            snapshot.add(tracker, file)?;
        }
        // On failure the new trackers are dropped, and so detached.
        self.trackers.lock().reserve(added.len(), GFP_KERNEL)?;
        // The last that can fail.
        let shown = self.sysfs.snapshot(snapshot, FrontEnd::V1)?;
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

    /// Adds a snapshot to those that are found.
    pub(super) fn add_snapshot(&self, mut shown: ShownSnapshot) -> Result {
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

    /// Adds a tracked device, which a client has open, to a snapshot that was made without it.
    ///
    /// Fails with `ESRCH` if there is no such snapshot, `ENOENT` if the device is not tracked,
    /// `EALREADY` if it is in this snapshot, `EBUSY` if it is in another one, if this one was
    /// taken, or if what is stored would be written to the device in the end and so had to be
    /// copied first; `EINVAL` if its logical blocks are smaller than those of the storage.
    pub(crate) fn add(&self, front_end: FrontEnd, id: Uuid, bdev: &BlockDevice) -> Result {
        let snapshot = self.snapshot_of(front_end, id)?;
        let file = open_again(bdev)?;
        let _command = snapshot.commands.lock();
        let _attaching = self.attaching.lock();
        let tracker = self.find(bdev).ok_or(ENOENT)?;
        match tracker.membership() {
            Some(membership) if membership.snapshot == id => return Err(EALREADY),
            Some(_) => return Err(EBUSY),
            None => {}
        }
        match &*snapshot.state.lock() {
            State::Destroyed => return Err(ESRCH),
            State::Created => {}
            _ => return Err(EBUSY),
        }
        self.check_stores(&snapshot, bdev)?;
        snapshot.add(tracker.clone(), file)?;
        tracker.set_membership(Some(Membership {
            snapshot: id,
            taken: false,
        }));
        Ok(())
    }

    /// Destroys a snapshot. Fails with `ENODEV` if there is none of that name.
    pub(crate) fn destroy(&self, front_end: FrontEnd, id: Uuid) -> Result {
        let snapshot = self.snapshot_of(front_end, id).map_err(|_| ENODEV)?;
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

    /// Takes a snapshot. Fails with `ESRCH` if there is none of that name, with `EBUSY` if what it
    /// copies would be stored, by way of other snapshots, in a file on what it captures; see
    /// [`take::take`] for the other errors.
    pub(crate) fn take(&self, front_end: FrontEnd, id: Uuid) -> Result {
        let snapshot = self.snapshot_of(front_end, id)?;
        self.prepare_storage(&snapshot)?;
        let _taking = self.taking.lock();
        let _command = snapshot.commands.lock();
        let common = take::Common {
            clones: &self.clones,
            major: &self.major,
            group: self.sysfs.images(),
            naming: front_end.naming(),
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
