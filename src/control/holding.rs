// SPDX-License-Identifier: GPL-2.0

//! What the kernel does with storage that it holds: lets it grow, and sees that nothing which is
//! stored there has to be copied first.
//!
//! Blocks that a file gets after the instant may have been another one's then, which the image has
//! to show. So where what is stored would be left out of a captured device's copying, a file grows
//! before the instant only, as far as it may.

use kernel::{
    block::{
        bdev::{
            BlockDevice,
            DiskId, //
        },
        bio_set::Target, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    uuid::Uuid,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

use crate::{
    base::{
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
        registry::Registry, //
    },
    snapshot::{
        check_blocks,
        Snapshot, //
    },
    storage::{
        held::Held,
        space::Grow,
        trial::Mark, //
    }, //
};

/// Devices that were refused.
static REFUSED: Logged = Logged::never();

/// Growth that has failed.
static NOT_GROWN: Logged = Logged::never();

/// The number of sectors that held storage grows by: at least two chunks, and whole ones.
pub(super) fn portion() -> u64 {
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

impl Grower {
    /// Of a snapshot with that name. May sleep.
    pub(super) fn new(snapshot: Uuid, registry: &Arc<Registry>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                snapshot,
                registry: registry.clone(),
                work <- new_work!("blksnap::Grower"),
            }),
            GFP_KERNEL,
        )
    }
}

impl Registry {
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
        let written = snapshot.trial.write(&extent.target, extent.sector, &mark);
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
