// SPDX-License-Identifier: GPL-2.0

//! All trackers and snapshots: how they are found, and what keeps clients apart.
//!
//! What each command does to them is in [`commands`](super::commands) and
//! [`storing`](super::storing).
//!
//! # Locking
//!
//! A command that may wait for a device holds no lock that other devices' commands need. In the
//! order in which they are taken:
//!
//! - `taking`, by takes: there is one at a time, since two of them could each stop what the other
//!   one needs. It may be held for as long as the file systems and devices take to come to rest.
//! - [`Snapshot::commands`], by what changes, takes, feeds or destroys this snapshot; it waits for
//!   its devices.
//! - `attaching`, by what attaches and detaches filters, which may wait for the device.
//! - [`Snapshot::held`], by what lets its file grow, as long as the file system takes for that.
//! - `appending`, where storage is appended, and where a take finds out which storage not to copy:
//!   so each sees the other. Nothing is waited for.
//! - `trackers` and `snapshots`, for looking things up and changing the lists. Nothing is waited
//!   for.
//! - The locks of snapshots and trackers.
//!
//! Devices are opened with none of them held.
//!
//! Entries of `trackers` and of `snapshots` have a directory in sysfs. Removing one waits for those
//! who read its files, which take the locks of snapshots and trackers; so that is done with none of
//! `appending`, `trackers` and `snapshots` held.
//!
//! The callback for a device that goes takes no lock, and leaves the rest to a work item.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            DevId, //
        },
        bio_disk::Major, //
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
    control::{
        front_end::FrontEnd,
        sysfs::{
            Shown,
            ShownSnapshot,
            Sysfs, //
        }, //
    },
    image::io::Clones,
    snapshot::Snapshot,
    storage::events::Announce,
    tracking::tracker::{
        TrackerRef,
        Tracking,
        Watch, //
    }, //
};

/// The work item that forgets the trackers of devices that have gone.
const REAP: u64 = 0;

/// The work item that announces events in sysfs and by uevents.
const ANNOUNCE: u64 = 1;

/// All trackers and snapshots.
#[pin_data]
pub(crate) struct Registry {
    pub(super) clones: Arc<Clones>,
    /// The images' major number.
    pub(super) major: Arc<Major>,
    #[pin]
    pub(super) taking: Mutex<()>,
    #[pin]
    pub(super) attaching: Mutex<()>,
    #[pin]
    pub(super) appending: Mutex<()>,
    /// In the order in which they were added. Changed with `attaching` held, too.
    #[pin]
    pub(super) trackers: Mutex<KVec<Shown<Tracking>>>,
    /// In the order in which they were created.
    #[pin]
    pub(super) snapshots: Mutex<KVec<ShownSnapshot>>,
    #[pin]
    reap: Work<Registry, REAP>,
    #[pin]
    announce: Work<Registry, ANNOUNCE>,
    /// What waits for devices.
    reaping: OwnedQueue,
    /// What clients wait for.
    announcing: OwnedQueue,
    /// What waits for file systems.
    pub(super) growing: OwnedQueue,
    pub(super) sysfs: Sysfs,
}

impl_has_work! {
    impl HasWork<Self, REAP> for Registry { self.reap }
    impl HasWork<Self, ANNOUNCE> for Registry { self.announce }
}

/// Whether a tracker's device has gone, or has another medium.
fn is_stale(tracker: &Tracking) -> bool {
    tracker.device_is_gone() || tracker.disk_seq() != Some(tracker.disk().seq())
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
                taking <- new_mutex!(()),
                attaching <- new_mutex!(()),
                appending <- new_mutex!(()),
                trackers <- new_mutex!(KVec::new()),
                snapshots <- new_mutex!(KVec::new()),
                reap <- new_work!("blksnap::Registry::reap"),
                announce <- new_work!("blksnap::Registry::announce"),
                reaping: OwnedQueue::new_mem_reclaim(c"blksnap_reap")?,
                announcing: OwnedQueue::new_mem_reclaim(c"blksnap_events")?,
                growing: OwnedQueue::new_mem_reclaim(c"blksnap_growth")?,
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

    /// Finds a snapshot of these clients. Fails with `ESRCH`.
    pub(crate) fn snapshot_of(&self, front_end: FrontEnd, id: Uuid) -> Result<Arc<Snapshot>> {
        let snapshots = self.snapshots.lock();
        let mut snapshots = snapshots.iter().filter(|s| s.front_end == front_end);
        let found = snapshots.find(|shown| shown.snapshot.id() == id);
        Ok(found.ok_or(ESRCH)?.snapshot.clone())
    }

    /// The snapshots of these clients, in the order in which they were created.
    pub(crate) fn snapshots_of(&self, front_end: FrontEnd) -> Result<KVVec<Arc<Snapshot>>> {
        let snapshots = self.snapshots.lock();
        let mut all = KVVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for shown in snapshots.iter().filter(|s| s.front_end == front_end) {
            all.push(shown.snapshot.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// All snapshots, in the order in which they were created.
    pub(crate) fn snapshots(&self) -> Result<KVVec<Arc<Snapshot>>> {
        let snapshots = self.snapshots.lock();
        let mut all = KVVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for shown in &*snapshots {
            all.push(shown.snapshot.clone(), GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// The trackers of devices that are there, in the order in which they were added.
    pub(crate) fn trackers(self: &Arc<Self>) -> Result<KVVec<TrackerRef>> {
        let trackers = self.trackers.lock();
        let mut all = KVVec::with_capacity(trackers.len(), GFP_KERNEL)?;
        for shown in &*trackers {
            if is_stale(shown.data()) {
                self.as_arc_borrow().device_gone();
            } else {
                all.push(shown.data().clone(), GFP_KERNEL)?;
            }
        }
        Ok(all)
    }

    /// Forgets the trackers of which `which` is true; with `attaching` held. They are detached when
    /// nobody uses them any more: a snapshot that has one may be being taken.
    pub(super) fn forget(&self, which: impl Fn(&Tracking) -> bool) {
        loop {
            let mut trackers = self.trackers.lock();
            let Some(at) = trackers.iter().position(|shown| which(shown.data())) else {
                return;
            };
            let shown = trackers.remove(at);
            drop(trackers);
            // Without the lock, as it may be the last one to use it.
            drop(shown);
        }
    }

    /// Finds the tracker of an open device.
    pub(super) fn find(&self, bdev: &BlockDevice) -> Option<TrackerRef> {
        let trackers = self.trackers.lock();
        let mut trackers = trackers.iter().map(Shown::data);
        trackers.find(|tracker| tracker.is_of(bdev)).cloned()
    }

    /// Finds the tracker of a device by number, without opening one that is not tracked. Fails
    /// with the error of opening one that is, unless it has gone.
    pub(super) fn find_by_id(&self, id: DevId) -> Result<Option<TrackerRef>> {
        let trackers = self.trackers.lock();
        let known = trackers.iter().any(|shown| shown.data().id() == id);
        drop(trackers);
        if !known {
            return Ok(None);
        }
        match BdevFile::open(id) {
            Ok(file) => Ok(self.find(file.bdev())),
            Err(err) if err == ENXIO || err == ENODEV => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Waits until no work item runs. No work of ours may run when the module's code goes.
    pub(super) fn flush(&self) {
        self.growing.flush();
        self.reaping.flush();
        self.announcing.flush();
    }
}

impl Watch for Registry {
    fn device_gone(self: ArcBorrow<'_, Self>) {
        // If it is queued already, it has not looked yet.
        let _ = self.reaping.enqueue::<_, REAP>(Arc::from(self));
    }
}

impl Announce for Registry {
    fn announce(self: ArcBorrow<'_, Self>) {
        // As above.
        let _ = self.announcing.enqueue::<_, ANNOUNCE>(Arc::from(self));
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
        let _attaching = this.attaching.lock();
        this.forget(is_stale);
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
