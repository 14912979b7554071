// SPDX-License-Identifier: GPL-2.0

//! The copy engine of one captured device.
//!
//! A write to the device comes from the filter. If all its chunks are safe it passes, without a
//! lock. Otherwise the untouched ones are claimed, in runs, and their reads are submitted; the
//! write is held with one of the copies and let go when that was read, after which it is shown
//! again and either finds all chunks safe or waits for the next copy.
//!
//! Nobody waits for what was read to be stored, but readers of the image and, when all copies are
//! in use or memory is short, writes, in order. So that is done for several copies at once: when
//! there are enough of them for one bio, when somebody waits, or after [`TICK_MS`]. And that they
//! were stored is looked at when there is something else to store, too.
//!
//! There is a work item for each thing that may block in its own way, so that no other waits
//! behind it: [`WRITERS`] lets writes go, [`STORE`] stores, [`IMAGES`] serves the image.
//!
//! [`image::io`](crate::image::io) serves the image from the same states.
//!
//! # Locking
//!
//! `inner` is taken in the submission path, also by completions inside of it (possibly under a
//! driver's mutex or in an RCU read side), and in work; never in interrupts. Nothing is submitted,
//! resubmitted or waited for under it. Below it: the locks of [`Space`] and of the workqueue.
//! `read` and `stored` are leaves and taken in interrupts.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bdev::{
            BdevFile,
            DiskId, //
        },
        bio::{
            BioList,
            Op,
            OwnedBio, //
        },
        filter::{
            HeldList,
            Incoming,
            Verdict, //
        }, //
    },
    impl_has_delayed_work,
    impl_has_work,
    new_delayed_work,
    new_work,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        new_spinlock,
        new_spinlock_irq,
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
    time::Msecs,
    workqueue::{
        DelayedWork,
        Work, //
    }, //
};

use crate::{
    base::{
        faults::{
            planted,
            Fault, //
        },
        units::Geometry, //
    },
    copying::{
        ahead::Account,
        chunk_map::{
            ChunkMap,
            OldWindow,
            Overwrite,
            Place,
            MAX_WINDOWS, //
        },
        copy::{
            Copy,
            Memory, //
        },
        engine::{
            Busy,
            Engine,
            InFlight, //
        },
        excluded::Excluded, //
    },
    storage::{
        health::Health,
        space::Space, //
    },
    tracking::cbt::Cbt, //
};

use claim::{
    Next,
    Reads, //
};
use flights::Flights;

mod claim;
mod flights;
mod steps;

/// Copies that have memory for a chunk whatever happens.
const RESERVED: usize = 4;

/// How many replaced windows of the map may wait to be freed.
const MAX_OLD: usize = 1024;

/// The work item that looks at what was read, and lets writes go.
const WRITERS: u64 = 0;

/// The work item that stores what was read.
const STORE: u64 = 1;

/// The work item that serves bios of the image.
const IMAGES: u64 = 2;

/// The work item that frees windows that were replaced.
const REAP: u64 = 3;

/// The work item that has stored what waits for more.
const TICK: u64 = 4;

/// How long what was read waits for more to be stored with it, in milliseconds.
const TICK_MS: Msecs = 10;

/// The bytes of memory that copies which do nothing keep, all together, beside the reserve.
const IDLE_BYTES: usize = 4 << 20;

/// What `inner` protects.
struct Inner {
    flights: Flights,
    /// Copies that do nothing; the last used first.
    free: KVec<Memory>,
    /// The bytes of memory that these have.
    idle_bytes: usize,
    /// All that was read is to be stored now.
    flush: bool,
    /// Until the next tick, if one is coming.
    tick: Option<Busy>,
    /// Room for what was read, while that is looked at.
    read_room: KVec<Arc<Copy>>,
    /// The same for what was stored.
    stored_room: KVec<Arc<Copy>>,
    /// Writes that wait for a copy.
    writers: HeldList,
    /// Parts of image bios that wait for a copy.
    images: BioList,
    /// Those that may try again.
    images_ready: BioList,
    excluded: Arc<Excluded>,
    account: Account,
    /// Windows of the map that were replaced and are to be freed.
    old: KVec<OldWindow>,
    /// Room for the next ones, while those are being freed.
    spare: KVec<OldWindow>,
}

/// Copies whose bios have ended, for one work item to look at. There is room for all.
struct Ended {
    copies: KVec<Arc<Copy>>,
    /// The work item is queued, or will look here again before it ends.
    is_seen: bool,
}

impl Ended {
    fn new(copies: usize) -> Result<Self> {
        Ok(Self {
            copies: KVec::with_capacity(copies, GFP_KERNEL)?,
            is_seen: false,
        })
    }
}

/// Work items to be queued.
#[derive(Clone, Copy, Default)]
#[must_use]
struct Kick {
    writers: bool,
    store: bool,
    images: bool,
}

impl Kick {
    /// What lets writes go.
    const WRITERS: Self = Self {
        writers: true,
        store: false,
        images: false,
    };

    /// What stores.
    const STORE: Self = Self {
        writers: false,
        store: true,
        images: false,
    };
}

impl Inner {
    /// Whether chunks can be claimed without waiting for what is to be freed.
    fn may_replace(&self) -> bool {
        // What is replaced by a claim must not be dropped under the lock.
        self.old.len() + MAX_WINDOWS <= self.old.capacity()
    }

    /// Whether nothing is under way whose end could let a copy begin.
    fn is_stuck(&self) -> bool {
        self.free.len() == self.flights.most() && self.may_replace()
    }

    /// Whether something waits for a copy.
    fn is_waiting(&self) -> bool {
        !self.writers.is_empty() || !self.images.is_empty()
    }

    /// A copy, or memory, can be had again; or nothing is copied any more.
    fn let_waiting_try(&mut self) -> Kick {
        let images = self.images.take();
        self.images_ready.append(images);
        Kick {
            writers: !self.writers.is_empty(),
            images: !self.images_ready.is_empty(),
            store: false,
        }
    }
}

/// The copy engine of one captured device.
#[pin_data]
pub(crate) struct Cow {
    engine: Arc<Engine>,
    space: Arc<Space>,
    health: Arc<Health>,
    origin: Arc<BdevFile>,
    /// The disk that `origin` is, or is on.
    disk: DiskId,
    /// How often it had got smaller before.
    shrinks: u32,
    geometry: Geometry,
    map: ChunkMap,
    #[pin]
    inner: SpinLock<Inner>,
    /// Whether anything is excluded. Set before the storage that it tells of is in use.
    has_excluded: Atomic<bool>,
    /// What interrupts leave for [`WRITERS`].
    #[pin]
    read: SpinLockIrq<Ended>,
    /// What interrupts leave for [`STORE`].
    #[pin]
    stored: SpinLockIrq<Ended>,
    /// Somebody waits for copies to be stored. Changed under `inner`'s lock.
    hurry: Atomic<bool>,
    /// Image reads to be done again, see [`io`]. Pushed to in interrupts.
    #[pin]
    retry: SpinLockIrq<BioList>,
    /// The device has gone, and writes may have been missed.
    gone: Atomic<bool>,
    inflight: Arc<InFlight>,
    #[pin]
    writers_work: Work<Cow, WRITERS>,
    #[pin]
    store_work: Work<Cow, STORE>,
    #[pin]
    images_work: Work<Cow, IMAGES>,
    #[pin]
    reap: Work<Cow, REAP>,
    #[pin]
    tick: DelayedWork<Cow, TICK>,
}

impl_has_work! {
    impl HasWork<Self, WRITERS> for Cow { self.writers_work }
    impl HasWork<Self, STORE> for Cow { self.store_work }
    impl HasWork<Self, IMAGES> for Cow { self.images_work }
    impl HasWork<Self, REAP> for Cow { self.reap }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Cow, TICK> for Cow { self.tick }
}

impl Cow {
    /// Makes an engine with `copies` copies, that copies at the most `ratio` times of what is
    /// overwritten. May sleep.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        space: &Arc<Space>,
        health: &Arc<Health>,
        origin: &Arc<BdevFile>,
        geometry: Geometry,
        copies: usize,
        ratio: u64,
    ) -> Result<Arc<Self>> {
        let copies = copies.max(RESERVED);
        let mut free = KVec::with_capacity(copies, GFP_KERNEL)?;
        for i in 0..copies {
            let reserve = if i < RESERVED {
                geometry.chunk_bytes()
            } else {
                0
            };
            free.push(Memory::new(i, reserve)?, GFP_KERNEL)?;
        }
        let idle_bytes = free.iter().map(Memory::len).sum();
        Arc::pin_init(
            try_pin_init!(Self {
                engine: engine.clone(),
                space: space.clone(),
                health: health.clone(),
                origin: origin.clone(),
                disk: origin.bdev().disk_id(),
                shrinks: origin.bdev().shrinks().count,
                geometry,
                map: ChunkMap::new(geometry.chunks())?,
                inner <- new_spinlock!(Inner {
                    flights: Flights::new(copies)?,
                    free,
                    idle_bytes,
                    flush: false,
                    tick: None,
                    read_room: KVec::with_capacity(copies, GFP_KERNEL)?,
                    stored_room: KVec::with_capacity(copies, GFP_KERNEL)?,
                    writers: HeldList::new(),
                    images: BioList::new(),
                    images_ready: BioList::new(),
                    excluded: Arc::new(Excluded::new(), GFP_KERNEL)?,
                    account: Account::new(ratio),
                    old: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                    spare: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                }),
                has_excluded: Atomic::new(false),
                read <- new_spinlock_irq!(Ended::new(copies)?),
                stored <- new_spinlock_irq!(Ended::new(copies)?),
                hurry: Atomic::new(false),
                retry <- new_spinlock_irq!(BioList::new()),
                gone: Atomic::new(false),
                inflight: InFlight::new()?,
                writers_work <- new_work!("blksnap::Cow::writers"),
                store_work <- new_work!("blksnap::Cow::store"),
                images_work <- new_work!("blksnap::Cow::images"),
                reap <- new_work!("blksnap::Cow::reap"),
                tick <- new_delayed_work!("blksnap::Cow::tick"),
            }),
            GFP_KERNEL,
        )
    }

    /// The bio sets and the workqueue.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where old data is stored.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Whether the images of the snapshot are still good.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// The captured device.
    pub(crate) fn origin(&self) -> &Arc<BdevFile> {
        &self.origin
    }

    /// How the device is divided.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where each chunk's data is.
    pub(crate) fn map(&self) -> &ChunkMap {
        &self.map
    }

    /// Something of this engine is in flight as long as the returned value lives.
    pub(crate) fn busy(&self) -> Busy {
        Busy::new(&self.inflight)
    }

    /// Whether the image is of no use any more. Acquire, see [`Health::snapshot_has_failed`].
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.health.snapshot_has_failed() || self.gone.load(Acquire) || self.has_another_medium()
    }

    /// Whether the device was given another medium since the engine was made.
    #[inline]
    fn has_another_medium(&self) -> bool {
        self.origin.bdev().disk_id() != self.disk
    }

    /// Whether the device has been too small for the chunks before `to` since the engine was made.
    /// What was read there is of no use then: it may be another's.
    pub(crate) fn was_too_small(&self, to: u64) -> bool {
        let bdev = self.origin.bdev();
        let now = bdev.shrinks();
        let end = self.geometry.sector(to).min(self.geometry.sectors);
        now.count != self.shrinks && bdev.start_sector() + end > now.least
    }

    /// Whether nothing is copied any more, and writes just pass.
    #[inline]
    fn has_stopped(&self) -> bool {
        self.has_failed() && !(planted(Fault::StoreAfterFailure) && self.space.has_room())
    }

    /// The error since which the image is of no use, as a positive errno, or 0.
    pub(crate) fn error(&self) -> i32 {
        self.health.device_error(self.origin.bdev().id())
    }

    /// How many copies are under way, and how many bytes of memory the map and the copies take.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let copies = inner.flights.memory() + inner.idle_bytes;
        (inner.flights.count(), self.map.memory() + copies)
    }

    /// The device is going: ends the use of its image. Does not sleep.
    pub(crate) fn device_gone(&self) {
        self.gone.store(true, Release);
        self.health.fail_device(self.origin.bdev().id(), ENODEV);
    }

    /// Tells the client if the image is of no use because the device was given another medium.
    /// Does not sleep.
    pub(crate) fn tell_of_medium(&self) {
        if self.has_another_medium() && !self.gone.load(Relaxed) {
            self.device_gone();
        }
    }

    /// Ends the use of the snapshot's images because of `err`.
    fn fail(&self, err: Error) {
        if self.has_failed() {
            return;
        }
        self.health.fail(self.origin.bdev().id(), err);
    }

    /// The chunks, from the first to before the last, that have sectors from `sector` to before
    /// `end`.
    fn chunks(&self, sector: u64, end: u64) -> (u64, u64) {
        let mut end = end.min(self.geometry.sectors);
        if planted(Fault::LoseTail) {
            let whole = self.geometry.chunk(self.geometry.sectors);
            end = end.min(self.geometry.sector(whole));
        }
        if sector >= end {
            return (0, 0);
        }
        (
            self.geometry.chunk(sector),
            self.geometry.chunk(end - 1) + 1,
        )
    }

    /// Decides about a write to the original's sectors from `sector` to before `end`, which are
    /// relative to the captured device.
    #[inline]
    pub(crate) fn filter<'a>(
        this: &Arc<Self>,
        bio: Incoming<'a>,
        sector: u64,
        end: u64,
    ) -> Verdict<'a> {
        let (from, to) = this.chunks(sector, end);
        match this.map.overwrite(from, to) {
            Overwrite::Yes => bio.pass(),
            Overwrite::Ahead => {
                let mut inner = this.inner.lock();
                inner.account.hit(this.map.take_ahead(from, to));
                drop(inner);
                bio.pass()
            }
            Overwrite::No => Self::filter_unsafe(this, bio, (sector, end), (from, to)),
        }
    }

    /// The rest of [`filter`](Self::filter), when something has to be copied.
    fn filter_unsafe<'a>(
        this: &Arc<Self>,
        bio: Incoming<'a>,
        (sector, end): (u64, u64),
        (from, to): (u64, u64),
    ) -> Verdict<'a> {
        if this.has_stopped() || this.is_excluded(sector, end) {
            return bio.pass();
        }
        match bio.op() {
            // An advice, which we are free not to follow.
            Op::Discard => return bio.end(Ok(())),
            Op::Write | Op::WriteZeroes | Op::SecureErase => {}
            // Not known here, so what it overwrites is not known either.
            _ => {
                this.fail(EOPNOTSUPP);
                return bio.pass();
            }
        }
        if bio.is_nowait() {
            return bio.end(Err(EAGAIN));
        }

        let mut reads = Reads::default();
        let mut inner = this.inner.lock();
        let may_claim = inner.writers.is_empty();
        let mut kick = Kick::default();
        let next = this.advance(&mut inner, from, to, may_claim, &mut reads);
        let (rejected, verdict) = match next {
            Next::Safe => {
                drop(inner);
                return bio.pass();
            }
            Next::Flight(_) if planted(Fault::ReleaseBeforeRead) => {
                drop(inner);
                Self::submit(reads);
                return bio.pass();
            }
            Next::Flight(i) => {
                let (held, verdict) = bio.hold();
                let rejected = match inner.flights.get(i) {
                    Some(flight) => flight.writers.push(held),
                    None => Err(held),
                };
                (rejected, verdict)
            }
            Next::Later => {
                let (held, verdict) = bio.hold();
                kick = this.wait_for_copies(&mut inner);
                (inner.writers.push(held), verdict)
            }
        };
        drop(inner);
        Self::submit(reads);
        this.kick(kick);
        // The bios of one engine come from one filter, so that nothing is ever rejected.
        drop(rejected);
        verdict
    }

    /// Something is about to wait for copies to end.
    fn wait_for_copies(&self, inner: &mut Inner) -> Kick {
        let hurried = self.hurry.load(Relaxed);
        self.hurry.store(true, Relaxed);
        inner.flush = true;
        Kick {
            writers: inner.is_stuck(),
            // From now on the end of a store has it queued; what has ended was not looked at.
            store: inner.flights.has_unstored() || (!hurried && inner.flights.ready() != 0),
            images: false,
        }
    }

    /// Queues work items. One that is queued already has not looked at anything yet.
    fn kick(self: &Arc<Self>, kick: Kick) {
        let queue = &self.engine.queue;
        if kick.writers {
            let _ = queue.enqueue::<_, WRITERS>(self.clone());
        }
        if kick.store {
            let _ = queue.enqueue::<_, STORE>(self.clone());
        }
        if kick.images {
            let _ = self.engine.images.enqueue::<_, IMAGES>(self.clone());
        }
    }

    /// Parks a part of an image bio that is about `chunk`, until it was stored. `claim` says
    /// whether it is to be copied if untouched.
    ///
    /// Gives it back if there is nothing to wait for.
    pub(crate) fn park(
        self: &Arc<Self>,
        bio: OwnedBio,
        chunk: u64,
        claim: bool,
    ) -> Option<OwnedBio> {
        let mut reads = Reads::default();
        let mut inner = self.inner.lock();
        let mut later = false;
        if claim && self.map.get(chunk) == Place::Untouched {
            let (_, to) = self.chunks(bio.sector(), bio.end_sector());
            later = matches!(
                self.advance(&mut inner, chunk, to, true, &mut reads),
                Next::Later
            );
        }
        let mut kick = Kick::default();
        let rest = match inner.flights.park(chunk, bio) {
            Some(bio) if later && !inner.is_stuck() => {
                inner.images.push(bio);
                None
            }
            rest => rest,
        };
        if rest.is_none() {
            kick = self.wait_for_copies(&mut inner);
        }
        drop(inner);
        Self::submit(reads);
        self.kick(kick);
        match rest {
            Some(bio) if later => {
                // Nothing is under way whose end could give us memory.
                bio.end(Err(ENOMEM));
                None
            }
            rest => rest,
        }
    }

    /// Has an image read done again, from any context.
    pub(crate) fn retry(this: &Arc<Self>, bio: OwnedBio) {
        this.retry.lock().push(bio);
        this.space.retried.fetch_add(1, Relaxed);
        let _ = this.engine.images.enqueue::<_, IMAGES>(this.clone());
    }

    /// Excludes parts of the device, given as first sector and number of sectors. May sleep; calls
    /// must not overlap in time.
    pub(crate) fn exclude(&self, ranges: &[(u64, u64)]) -> Result {
        // Made without the lock, for which writers wait.
        let old = self.inner.lock().excluded.clone();
        let new = Arc::new(old.with(ranges)?, GFP_KERNEL)?;
        drop(core::mem::replace(&mut self.inner.lock().excluded, new));
        drop(old);
        self.has_excluded.store(true, Relaxed);
        Ok(())
    }

    /// Marks what is excluded as changed, for this increment and for the next one: it reads as
    /// zeroes as long as this snapshot is held, and only so long.
    pub(crate) fn mark_excluded(&self, cbt: &Cbt) {
        let excluded = self.inner.lock().excluded.clone();
        for &(start, end) in excluded.ranges() {
            cbt.mark_both(start, end - start);
        }
    }

    /// Whether all sectors from `sector` to before `end`, of those that the device has, are
    /// excluded.
    fn is_excluded(&self, sector: u64, end: u64) -> bool {
        let end = end.min(self.geometry.sectors);
        self.has_excluded.load(Relaxed) && self.inner.lock().excluded.covers(sector, end)
    }

    /// The first excluded range that ends after `sector`.
    pub(crate) fn next_excluded(&self, sector: u64) -> Option<(u64, u64)> {
        if !self.has_excluded.load(Relaxed) {
            return None;
        }
        self.inner.lock().excluded.next(sector)
    }

    /// Lets go whatever waits, and waits until nothing is in flight. To be called once, when no
    /// writes and image bios come any more and the storage was closed.
    pub(crate) fn shut_down(this: &Arc<Self>) {
        let all = Kick {
            writers: true,
            store: true,
            images: true,
        };
        this.kick(all);
        this.inflight.wait();
        // Nothing is copied any more, so all of these are let go.
        this.free_old();
        this.serve_writers();
        this.serve_images();
        this.engine.flush();
        this.free_old();
    }
}
