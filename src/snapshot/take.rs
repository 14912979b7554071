// SPDX-License-Identifier: GPL-2.0

//! Taking a snapshot: one instant for all its devices.
//!
//! 1. All that is needed is allocated, the images are added, and the queues are
//!    [made ready](QuickFreeze) to be frozen at once.
//! 2. The file systems are frozen, so that their dirty data is on the devices.
//! 3. The devices are stopped: bio based ones by the [gates](Registration::gate) of their filters,
//!    then all of them by freezing their queues. From then on no write is under way to any of
//!    them.
//! 4. The instant: the maps go on to the next interval, and the copy engines are armed. Nothing is
//!    allocated, copied or waited for.
//! 5. All is let go, in reverse order, and the images get ready.
//!
//! Until the instant a failure undoes, by the guards' drops, all that was done. After it nothing
//! fails.

use kernel::{
    alloc::AllocError,
    block::{
        bdev::BdevFile,
        bio_disk::{
            BioDisk,
            Major,
            Options, //
        },
        filter::WriteGate,
        fs_freeze::{
            FsFreeze,
            FsFreezing, //
        },
        queue::{
            Freezing,
            Frozen,
            NoIoScope,
            QuickFreeze, //
        }, //
    },
    fmt::Write,
    prelude::*,
    sync::Arc,
    sysfs::Group,
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
    types::ScopeGuard, //
};

use crate::{
    base::{
        clock::real_seconds,
        delays::{
            delay,
            Point, //
        },
        faults::{
            planted,
            Fault, //
        },
        params,
        units::Geometry, //
    },
    copying::cow::Cow,
    image::{
        io::{
            Clones,
            ImageIo, //
        },
        Image,
        Naming, //
    },
    snapshot::{
        Captured,
        Engine,
        Snapshot,
        State,
        Taken, //
    },
    tracking::tracker::TrackerRef, //
};

/// How long the devices may take to finish their writes, and the file systems to go on with theirs.
const TIMEOUT_MS: u32 = 10_000;

/// How long they may take if they are stopped all at once.
const SHORT_TIMEOUT_MS: u32 = 500;

/// How many orders are tried, for stopping devices and for freezing file systems.
const ORDERS: u32 = 4;

/// Guards that are dropped in reverse order: what is stacked on something else was frozen before
/// it, and thawing may write to it.
struct Guards<T>(KVec<T>);

impl<T> Guards<T> {
    fn clear(&mut self) {
        while self.0.pop().is_some() {}
    }
}

impl<T> Drop for Guards<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Lets what is at this place be the first one.
fn to_front<T>(items: &mut KVec<T>, at: usize) -> Result {
    let first = items.remove(at).map_err(|_| EINVAL)?;
    items.insert_within_capacity(0, first).map_err(|_| EINVAL)
}

/// Freezes file systems, in the order of `files` or, if that does not work, in another one; then
/// `files` has the order that did.
///
/// A file system that makes no progress may have to write to a file on one that was frozen before
/// it. So these are thawed, and it is frozen first.
fn freeze_in_some_order(files: &mut KVec<Arc<BdevFile>>) -> Result<Guards<FsFreeze>> {
    let mut frozen = Guards(KVec::with_capacity(files.len(), GFP_KERNEL)?);
    let mut orders = 1;
    while let Some(file) = files.get(frozen.0.len()) {
        let freezing = FsFreezing::start(file)?;
        let at = frozen.0.len();
        let mut ended = freezing.wait(msecs_to_jiffies(TIMEOUT_MS));
        if !ended && at != 0 && orders != ORDERS {
            frozen.clear();
            orders += 1;
            ended = freezing.wait(msecs_to_jiffies(TIMEOUT_MS));
        }
        if !ended {
            // Whenever it comes to an end, it is undone.
            let id = file.bdev().id();
            pr_err!("device {id}: freezing its file system does not come to an end\n");
            return Err(ETIMEDOUT);
        }
        if frozen.0.len() != at {
            to_front(files, at)?;
        }
        frozen.0.push(freezing.finish()?, GFP_KERNEL)?;
    }
    Ok(frozen)
}

/// Devices that are stopped. Dropped in the order of declaration.
struct Stopped {
    frozen: Guards<Frozen>,
    _gates: Guards<WriteGate>,
}

/// Why devices could not be stopped.
enum NotStopped {
    /// The one at this place does not come to rest.
    Busy(usize),
    /// Something else.
    Failed(Error),
}

impl NotStopped {
    fn new(at: usize, err: Error) -> Self {
        if err == ETIMEDOUT {
            Self::Busy(at)
        } else {
            Self::Failed(err)
        }
    }
}

impl From<AllocError> for NotStopped {
    fn from(err: AllocError) -> Self {
        Self::Failed(err.into())
    }
}

/// Stops devices, one after the other or `together`.
///
/// Together takes no longer for many than for one, but a device whose driver writes to another one
/// of them does not come to rest then, and is given little time for it.
fn stop(order: &[&Prepared], scope: &NoIoScope, together: bool) -> Result<Stopped, NotStopped> {
    let timeout = msecs_to_jiffies(if together {
        SHORT_TIMEOUT_MS
    } else {
        TIMEOUT_MS
    });
    let count = order.len();
    let mut gates = Guards(KVec::with_capacity(count, GFP_KERNEL)?);
    let mut frozen = Guards(KVec::with_capacity(count, GFP_KERNEL)?);
    let mut freezing = KVec::with_capacity(count, GFP_KERNEL)?;
    let drain = |at: usize, gate: &WriteGate| {
        if planted(Fault::NoDrain) {
            return Ok(());
        }
        gate.drain(timeout).map_err(|err| NotStopped::new(at, err))
    };
    for (at, this) in order.iter().enumerate() {
        let gate = this.captured.tracker.gate(this.file(), timeout);
        let gate = gate.map_err(|err| NotStopped::new(at, err))?;
        if !together {
            drain(at, &gate)?;
            let this = Freezing::start(this.file(), scope).wait(timeout);
            let this = this.map_err(|err| NotStopped::new(at, err))?;
            frozen.0.push(this, GFP_KERNEL)?;
        }
        gates.0.push(gate, GFP_KERNEL)?;
    }
    if together {
        for (at, gate) in gates.0.iter().enumerate() {
            drain(at, gate)?;
        }
        for this in order {
            freezing.push(Freezing::start(this.file(), scope), GFP_KERNEL)?;
        }
    }
    for (at, freezing) in freezing.into_iter().enumerate() {
        let this = freezing.wait(timeout);
        let this = this.map_err(|err| NotStopped::new(at, err))?;
        frozen.0.push(this, GFP_KERNEL)?;
    }
    Ok(Stopped {
        frozen,
        _gates: gates,
    })
}

/// Stops devices, together or, if that does not work, in this order or another one; then `order`
/// has the one that did.
///
/// A device that does not come to rest may need one that was stopped before it, so it is stopped
/// first the next time. If it was the first one already, nothing helps.
fn stop_in_some_order(order: &mut KVec<&Prepared>, scope: &NoIoScope) -> Result<Stopped> {
    let mut together = true;
    for _ in 0..=ORDERS {
        let busy = match stop(order, scope, together) {
            Ok(stopped) => return Ok(stopped),
            Err(NotStopped::Failed(err)) => return Err(err),
            Err(NotStopped::Busy(at)) => at,
        };
        if busy == 0 && !together {
            break;
        }
        together = false;
        to_front(order, busy)?;
    }
    if let Some(this) = order.first() {
        let id = this.captured.tracker.id();
        pr_err!("device {id}: its writes do not come to an end\n");
    }
    Err(ETIMEDOUT)
}

/// What all snapshots use.
pub(crate) struct Common<'a> {
    /// For the I/O of images.
    pub(crate) clones: &'a Arc<Clones>,
    /// The images' major number.
    pub(crate) major: &'a Arc<Major>,
    /// The files that images have in sysfs.
    pub(crate) group: &'a Arc<Group<Image>>,
    /// What the images are called.
    pub(crate) naming: Naming,
}

/// What is allocated for a device before the instant.
struct Prepared {
    captured: Captured,
    /// The map is a new one.
    fresh: bool,
}

impl Prepared {
    fn new(
        tracker: TrackerRef,
        file: &Arc<BdevFile>,
        snapshot: &Snapshot,
        common: &Common<'_>,
    ) -> Result<Self> {
        let bdev = file.bdev();
        if bdev.sectors() == 0 {
            return Err(ENXIO);
        }
        bdev.check_filters()?;
        // A chunk is read and stored by itself, so it is whole blocks of the device.
        let block_shift = bdev.logical_block_size().max(1).ilog2();
        let min_shift = params::chunk_minimum_shift().max(block_shift);
        let geometry = Geometry::new(
            bdev.sectors(),
            min_shift,
            params::chunk_maximum_shift(),
            params::chunk_maximum_count(),
        );
        let cow = Cow::new(
            &snapshot.space,
            &snapshot.health,
            file,
            tracker.medium(),
            geometry,
        )?;
        let next = tracker.next_map(bdev)?;
        let fresh = next.is_some();
        let options = Options {
            major: common.major,
            sectors: bdev.sectors(),
            like: Some(bdev),
            group: common.group,
        };
        let image = Image::new(&ImageIo::new(&cow, common.clones)?)?;
        let cbt = next.unwrap_or_else(|| tracker.cbt());
        let engine = Arc::new(Engine { cow, cbt }, GFP_KERNEL)?;
        let name = |minor, out: &mut dyn Write| common.naming.write(bdev.id(), minor, out);
        // Nothing may fail after this: the removal of a disk waits for who reads it, and they wait
        // for the take.
        let image = BioDisk::new(name, options, image)?;
        Ok(Self {
            captured: Captured {
                tracker,
                engine,
                image,
            },
            fresh,
        })
    }

    /// The open device.
    fn file(&self) -> &Arc<BdevFile> {
        self.captured.engine.cow.origin()
    }
}

/// Takes `snapshot`. `begin` is called with the devices' engines before the instant: it excludes
/// what must not be copied, and calls [`Snapshot::begin_take`].
///
/// Calls must not overlap in time. Fails with `EALREADY` if it was taken, `ENODEV` if it has no
/// devices, or if one of them has gone, `EFAULT` if it has no storage, `EOPNOTSUPP` if not all that
/// is written to a device is seen any more, `ETIMEDOUT` if a device does not come to rest or the
/// file systems cannot be frozen in any of some orders.
pub(crate) fn take(
    snapshot: &Snapshot,
    common: &Common<'_>,
    begin: impl FnOnce(KVec<Arc<Engine>>) -> Result,
) -> Result {
    match &*snapshot.state.lock() {
        State::Created | State::Taking(_) => {}
        State::Taken(_) => return Err(EALREADY),
        State::Destroyed => return Err(ESRCH),
    }
    let devices = snapshot.open_devices()?;
    let count = devices.len();
    if count == 0 {
        return Err(ENODEV);
    }
    if snapshot.space.usage().capacity == 0 {
        return Err(EFAULT);
    }

    // On failure the last to be done.
    let undo = ScopeGuard::new(|| snapshot.give_up_take());
    // On failure the disks are removed, which waits for what is sent to them.
    let give_up = |prepared: KVec<Prepared>| {
        for this in &prepared {
            this.captured.image.data().give_up();
        }
    };
    let mut prepared = ScopeGuard::new_with_data(KVec::with_capacity(count, GFP_KERNEL)?, give_up);
    let mut engines = KVec::with_capacity(count, GFP_KERNEL)?;
    for (tracker, file) in devices {
        let this = Prepared::new(tracker.clone(), &file, snapshot, common)?;
        let engine = this.captured.engine.clone();
        // There is room: nothing is dropped here.
        prepared.push(this, GFP_KERNEL)?;
        delay(Point::Prepared);
        tracker.set_cow(Some(engine.cow.clone()));
        // If it went before that, the engine was not told.
        if tracker.device_is_gone() {
            return Err(ENODEV);
        }
        engines.push(engine, GFP_KERNEL)?;
    }
    begin(engines)?;
    let mut captured = KVec::with_capacity(count, GFP_KERNEL)?;
    let mut old = KVec::with_capacity(count, GFP_KERNEL)?;

    // Younger disks first: one that is stacked on another, by a file or a table, was made after
    // it, as a rule, and can come to rest only as long as the other one runs.
    let seq = |this: &Prepared| this.file().bdev().disk_id().seq();
    let mut order: KVec<&Prepared> = KVec::with_capacity(count, GFP_KERNEL)?;
    for this in prepared.iter() {
        let older = |other: &&Prepared| seq(other) < seq(this);
        let at = order.iter().position(older).unwrap_or(order.len());
        order.insert_within_capacity(at, this).map_err(|_| ENOMEM)?;
    }

    let mut quick = KVec::with_capacity(count, GFP_KERNEL)?;
    for this in &order {
        quick.push(this.file().clone(), GFP_KERNEL)?;
    }
    let quick = QuickFreeze::start(quick);
    let mut files = KVec::new();
    for this in &order {
        for file in this.file().with_partitions()? {
            files.push(file, GFP_KERNEL)?;
        }
    }

    // Declared before what freezes and stops, and so dropped after it on failure.
    let scope = NoIoScope::new();
    let file_systems = freeze_in_some_order(&mut files)?;
    let start = Instant::<Monotonic>::now();
    let stopped = stop_in_some_order(&mut order, &scope)?;

    // The instant.
    for (this, frozen) in order.into_iter().zip(&stopped.frozen.0) {
        delay(Point::Stopped);
        let Captured {
            tracker, engine, ..
        } = &this.captured;
        let Engine { cow, cbt } = &**engine;
        match tracker.arm(frozen, cbt.clone(), this.fresh, cow.clone()) {
            // There is room, so nothing is dropped here.
            Ok(hooked) => drop(old.push_within_capacity(hooked)),
            // Excluded by what was prepared; if it happens all the same, no image may be trusted.
            Err(err) => snapshot.health.fail(tracker.id(), err),
        }
    }

    let at = real_seconds();
    drop(stopped);
    let stopped = start.elapsed();
    drop(scope);
    drop(file_systems);
    drop(quick);
    drop(old);

    delay(Point::LetGo);
    for Prepared { captured: this, .. } in prepared.dismiss() {
        let Engine { cow, cbt } = &*this.engine;
        if cow.device_was_too_small(cow.geometry().chunks()) {
            // Since the engine and the map were made. If it had grown again before the instant, the
            // map does not tell that there may be another's data at its end.
            cow.device_gone();
        }
        this.tracker.set_map(cbt.clone());
        this.engine.mark_excluded();
        this.image.data().set_ready(cbt.clone());
        // There is room for all.
        drop(captured.push_within_capacity(this));
    }
    *snapshot.taken.lock() = Taken { at, stopped };
    undo.dismiss();
    let engines = core::mem::replace(&mut *snapshot.state.lock(), State::Taken(captured));
    drop(engines);
    snapshot.enter(true);
    pr_info!(
        "snapshot {}: {} device(s) were stopped for {} us\n",
        snapshot.id(),
        count,
        stopped.as_nanos() / 1000
    );
    Ok(())
}
