// SPDX-License-Identifier: GPL-2.0

//! All trackers and snapshots, and what clients can do to them.
//!
//! # Locking
//!
//! `trackers` is held by each operation that changes something, however long that takes: such
//! operations do not overlap in time. `snapshots` is held for looking things up only, so that
//! waiting for events and asking for states do not wait for a take. Below both: the locks of
//! snapshots and trackers.
//!
//! Entries of `trackers` and of `snapshots` have a directory in sysfs. Removing one waits for
//! those who read its files, which take the locks of snapshots and trackers, but neither
//! `trackers` nor `snapshots`. That is done with `trackers` held.
//!
//! The callback for a device that goes takes none of them, and leaves the rest to a work item.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            DevId,
            Holder, //
        },
        bio_disk::Major,
        filter::Registration, //
    },
    hibernation::Listener,
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        ArcBorrow,
        Mutex, //
    },
    uuid::Uuid,
    workqueue::{
        owned::OwnedQueue,
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
        params,
        units::SECTOR_SHIFT, //
    },
    control::feeding::feeds,
    control::sysfs::{
        Shown,
        ShownSnapshot,
        Sysfs, //
    },
    image::io::Clones,
    snapshot::{
        self,
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
        tracker::{
            Tracker,
            TrackerRef,
            Tracking,
            Watch, //
        }, //
    }, //
};

/// Claims devices that are difference storage as a whole: none of ours excludes another.
static STORAGE: Holder = Holder::new();

/// The work item that forgets the trackers of devices that have gone.
const REAP: u64 = 0;

/// The work item that announces events in sysfs and by uevents.
const ANNOUNCE: u64 = 1;

/// All trackers and snapshots.
#[pin_data]
pub(crate) struct Registry {
    clones: Arc<Clones>,
    /// The images' major number.
    major: Arc<Major>,
    /// In the order in which they were added.
    #[pin]
    trackers: Mutex<KVec<Shown<Tracking>>>,
    /// In the order in which they were created.
    #[pin]
    snapshots: Mutex<KVec<ShownSnapshot>>,
    #[pin]
    reap: Work<Registry, REAP>,
    #[pin]
    announce: Work<Registry, ANNOUNCE>,
    queue: OwnedQueue,
    sysfs: Sysfs,
}

impl_has_work! {
    impl HasWork<Self, REAP> for Registry { self.reap }
    impl HasWork<Self, ANNOUNCE> for Registry { self.announce }
}

impl Registry {
    /// Makes an empty registry.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let major = Major::register(c"blksnap-image")?;
        let sysfs = Sysfs::new(major.number())?;
        Arc::pin_init(
            try_pin_init!(Self {
                clones: Clones::new()?,
                major,
                trackers <- new_mutex!(KVec::new()),
                snapshots <- new_mutex!(KVec::new()),
                reap <- new_work!("blksnap::Registry::reap"),
                announce <- new_work!("blksnap::Registry::announce"),
                queue: OwnedQueue::new_mem_reclaim(c"blksnap_registry")?,
                sysfs,
            }),
            GFP_KERNEL,
        )
    }

    /// The major number of the images.
    pub(crate) fn major(&self) -> u32 {
        self.major.number()
    }

    /// Finds a snapshot. Fails with `ESRCH`.
    pub(crate) fn snapshot(&self, id: Uuid) -> Result<Arc<Snapshot>> {
        let snapshots = self.snapshots.lock();
        let mut snapshots = snapshots.iter().map(|shown| &shown.snapshot);
        snapshots.find(|s| s.id() == id).cloned().ok_or(ESRCH)
    }

    /// All snapshots, in the order in which they were created.
    fn snapshots(&self) -> Result<KVec<Arc<Snapshot>>> {
        let snapshots = self.snapshots.lock();
        let mut all = KVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for shown in &*snapshots {
            all.push(shown.snapshot.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Calls `f` with all snapshots, in the order in which they were created.
    pub(crate) fn for_each_snapshot(&self, mut f: impl FnMut(&Snapshot) -> Result) -> Result {
        self.snapshots
            .lock()
            .iter()
            .try_for_each(|shown| f(&shown.snapshot))
    }

    /// The number of snapshots.
    pub(crate) fn snapshot_count(&self) -> usize {
        self.snapshots.lock().len()
    }

    /// Calls `f` with the trackers of devices that are there, in the order in which they were
    /// added.
    pub(crate) fn with_trackers<R>(&self, f: impl FnOnce(&[Shown<Tracking>]) -> R) -> R {
        let mut trackers = self.trackers.lock();
        self.forget_gone_devices(&mut trackers);
        f(&trackers)
    }

    /// Forgets the trackers of devices that have gone, or have another medium.
    fn forget_gone_devices(&self, trackers: &mut KVec<Shown<Tracking>>) {
        trackers.retain(|shown| {
            let tracker = shown.data();
            !tracker.device_is_gone() && tracker.disk_seq() == Some(tracker.disk().seq())
        });
    }

    /// Finds the tracker of an open device, and forgets those of devices that had its number.
    fn find(&self, trackers: &mut KVec<Shown<Tracking>>, file: &BdevFile) -> Option<TrackerRef> {
        let bdev = file.bdev();
        trackers.retain(|shown| shown.data().id() != bdev.id() || shown.data().is_of(bdev));
        let mut trackers = trackers.iter().map(Shown::data);
        trackers.find(|tracker| tracker.is_of(bdev)).cloned()
    }

    /// Finds the tracker of a device by number, without opening one that is not tracked. Fails
    /// with the error of opening one that is, unless it has gone.
    fn find_by_id(
        &self,
        trackers: &mut KVec<Shown<Tracking>>,
        id: DevId,
    ) -> Result<Option<TrackerRef>> {
        if !trackers.iter().any(|shown| shown.data().id() == id) {
            return Ok(None);
        }
        match BdevFile::open(id) {
            Ok(file) => Ok(self.find(trackers, &file)),
            Err(err) if err == ENXIO || err == ENODEV => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Ends tracking of a device.
    ///
    /// Fails with `ENODATA` if it is not tracked, `EBUSY` if it is in a snapshot, or with the
    /// error of opening it.
    pub(crate) fn remove_tracker(&self, id: DevId) -> Result {
        let file = BdevFile::open(id)?;
        let mut trackers = self.trackers.lock();
        let tracker = self.find(&mut trackers, &file).ok_or(ENODATA)?;
        if tracker.membership().is_some() {
            return Err(EBUSY);
        }
        trackers.retain(|shown| !Arc::ptr_eq(shown.data(), &tracker));
        delay(Point::Forgotten);
        tracker.detach();
        Ok(())
    }

    /// The map of a device that is in a taken snapshot. Fails with `ENODATA` if it is not tracked,
    /// `EPERM` if it is in no taken snapshot.
    pub(crate) fn taken_map(&self, id: DevId) -> Result<Arc<Cbt>> {
        let mut trackers = self.trackers.lock();
        let tracker = self.find_by_id(&mut trackers, id)?.ok_or(ENODATA)?;
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
        let mut trackers = self.trackers.lock();
        let tracker = if id.major == self.major() {
            let snapshots = self.snapshots.lock();
            let mut snapshots = snapshots.iter().map(|shown| &shown.snapshot);
            snapshots.find_map(|snapshot| snapshot.tracker_of_image(id))
        } else {
            self.find_by_id(&mut trackers, id)?
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
        let mut trackers = self.trackers.lock();
        if ids.is_empty() {
            return Err(EINVAL);
        }
        let mut devices = KVec::with_capacity(ids.len(), GFP_KERNEL)?;
        let mut added = KVec::with_capacity(ids.len(), GFP_KERNEL)?;
        for (i, &id) in ids.iter().enumerate() {
            if ids.iter().take(i).any(|&other| other == id) {
                return Err(EINVAL);
            }
            if id.major == self.major() {
                kernel::pr_warn_once!("device {id} is an image, and cannot be captured\n");
                return Err(EOPNOTSUPP);
            }
            let file = BdevFile::open(id)?;
            let tracker = match self.find(&mut trackers, &file) {
                Some(tracker) if tracker.membership().is_some() => return Err(EBUSY),
                Some(tracker) => tracker,
                None => {
                    let data = Tracker::new(&file, self.clone())?;
                    let new = Arc::pin_init(Registration::new(&file, data), GFP_KERNEL)?;
                    added.push(self.sysfs.tracker(new.clone())?, GFP_KERNEL)?;
                    new
                }
            };
            devices.push(Device { tracker, file }, GFP_KERNEL)?;
        }
        // On failure the new trackers are dropped, and so detached.
        let snapshot = Snapshot::new(devices, params::diff_storage_minimum(), self.clone())?;
        let id = snapshot.id();
        trackers.reserve(added.len(), GFP_KERNEL)?;
        self.snapshots.lock().reserve(1, GFP_KERNEL)?;
        // The last that can fail: from here on there is room for all.
        let shown = self.sysfs.snapshot(snapshot)?;
        shown.snapshot.enter(false);
        drop(self.snapshots.lock().push_within_capacity(shown));
        for tracker in added {
            drop(trackers.push_within_capacity(tracker));
        }
        // It could not be found when its first event came.
        self.as_arc_borrow().announce();
        Ok(id)
    }

    /// Destroys a snapshot. Fails with `ENODEV` if there is none of that name.
    pub(crate) fn destroy(&self, id: Uuid) -> Result {
        let _serial = self.trackers.lock();
        let snapshot = self.snapshot(id).map_err(|_| ENODEV)?;
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
        let _serial = self.trackers.lock();
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
        let smaller =
            |device: &Device| device.file.bdev().logical_block_size() < bdev.logical_block_size();
        if device.major == self.major() || snapshot.devices.iter().any(smaller) {
            kernel::pr_warn_once!(
                "device {device} cannot be difference storage: an image, or too large blocks\n"
            );
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
        self.for_each_snapshot(|other| other.space.check_overlap(&file, &disjoint))?;
        let room = snapshot.space.with_room(ranges.len())?;
        // Before anything is stored there.
        let snapshots = self.snapshots()?;
        for captured in &snapshots {
            if feeds(&snapshots, captured, &snapshot)? {
                captured.exclude(&file, ranges)?;
            }
        }
        delay(Point::Excluded);
        if all {
            snapshot.keep_claim(writable.clone())?;
        }
        snapshot.space.append(room, &writable, ranges)
    }

    /// Takes a snapshot. Fails with `ESRCH` if there is none of that name; see [`take::take`] for
    /// the other errors.
    pub(crate) fn take(&self, id: Uuid) -> Result {
        let _serial = self.trackers.lock();
        let snapshot = self.snapshot(id)?;
        let common = take::Common {
            clones: &self.clones,
            major: &self.major,
            group: self.sysfs.images(),
        };
        let snapshots = self.snapshots()?;
        let result = take::take(&snapshot, &common, |device, cow| {
            let disk = device.file.bdev().disk_id();
            snapshots.iter().try_for_each(|other| {
                let ranges = other.space.ranges_on(disk)?;
                if ranges.is_empty() || !feeds(&snapshots, &snapshot, other)? {
                    return Ok(());
                }
                snapshot::exclude(&device.file, cow, ranges.iter().copied())
            })
        });
        if result.is_err() && !snapshot.is_taken() {
            for device in &snapshot.devices {
                device.tracker.set_cow(None);
            }
        }
        result
    }

    /// Destroys all snapshots and ends all tracking, for the module to be unloaded.
    pub(crate) fn shut_down(&self) {
        let trackers = {
            let mut trackers = self.trackers.lock();
            let snapshots = core::mem::take(&mut *self.snapshots.lock());
            for mut shown in snapshots {
                shown.snapshot.close();
                drop(shown.hide());
                shown.snapshot.destroy();
            }
            core::mem::take(&mut *trackers)
        };
        delay(Point::Unloading);
        for shown in &trackers {
            shown.data().detach();
        }
        drop(trackers);
        // No work of ours may run when the module's code goes.
        self.queue.flush();
    }
}

impl Watch for Registry {
    fn device_gone(self: ArcBorrow<'_, Self>) {
        // If it is queued already, it has not looked yet.
        let _ = self.queue.enqueue::<_, REAP>(Arc::from(self));
    }
}

impl Announce for Registry {
    fn announce(self: ArcBorrow<'_, Self>) {
        // As above.
        let _ = self.queue.enqueue::<_, ANNOUNCE>(Arc::from(self));
    }
}

impl Listener for Registry {
    fn hibernation(this: ArcBorrow<'_, Self>) {
        let trackers = this.trackers.lock();
        if !trackers.is_empty() {
            pr_info!("hibernation: changes are tracked from the beginning again, and images end\n");
        }
        for shown in &*trackers {
            shown.data().data_replaced();
        }
    }
}

impl WorkItem<REAP> for Registry {
    type Pointer = Arc<Registry>;

    fn run(this: Arc<Registry>) {
        this.with_trackers(|_| {});
    }
}

impl WorkItem<ANNOUNCE> for Registry {
    type Pointer = Arc<Registry>;

    fn run(this: Arc<Registry>) {
        this.snapshots
            .lock()
            .iter()
            .for_each(ShownSnapshot::announce);
    }
}
