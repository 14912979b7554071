// SPDX-License-Identifier: GPL-2.0

//! The copy engine of one captured device.
//!
//! A write to the device comes from the filter ([`writes`]). If all its chunks are safe it passes,
//! without a lock. Otherwise the untouched ones are [claimed](claim), in runs, and their reads are
//! submitted; the write is held with one of these copies, and let go when that was read ([`ends`],
//! [`steps`]). Then the filter shows it again: it finds all its chunks safe, or waits for the next
//! copy.
//!
//! What was read waits to be [stored](store), several copies at once: until there are enough of
//! them for one bio, somebody waits for it, or [`TICK_MS`] have passed. Those who wait are readers
//! of the image, whose bios are [parked](parked), and writes, in order, when all copies are in use
//! or memory is short. The end of a store is processed together with the next one if nobody waits.
//!
//! There is a work item for each thing that may block in its own way, so that no other waits
//! behind it: [`WRITERS`] lets writes go, [`STORE`] stores, [`REQUEUE`] gives bios of the image
//! back to their disk.
//!
//! # Locking
//!
//! `inner` is taken in the submission path, also by completions inside of it (possibly under a
//! driver's mutex or in an RCU read side), and in work; never in interrupts. Nothing is submitted,
//! resubmitted or waited for under it. Below it: the locks of [`Space`], of the events and of the
//! workqueue. `read`, `stored` and `requeued` are leaves and taken in interrupts.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bdev::{
            BdevFile,
            DiskId, //
        },
        bio::BioList,
        filter::HeldList, //
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
        medium::Medium,
        params,
        units::{
            Geometry,
            COPY_WINDOW, //
        }, //
    },
    copying::{
        ahead::Account,
        chunk_map::{
            ChunkMap,
            OldWindow,
            MAX_WINDOWS, //
        },
        excluded::Excluded,
        inflight::{
            Busy,
            InFlight, //
        },
        memory::{
            CopySlot,
            Idle, //
        },
        unused::Unused, //
    },
    storage::{
        health::Health,
        space::Space, //
    }, //
};

use core::ops::Range;

use ends::Ended;
use flights::Flights;
use resources::Resources;

mod claim;
mod ends;
mod failure;
mod flights;
mod parked;
mod resources;
mod steps;
mod store;
mod unused;
mod writes;

/// How many copies can have memory for a chunk whatever happens.
const RESERVED: usize = 4;

/// How many copies can be under way at least, if they are small.
const COPIES: usize = 128;

/// How many replaced windows of the map may wait to be freed.
const MAX_OLD: usize = 1024;

/// The work item that processes the ends of reads, and lets writes go.
const WRITERS: u64 = 0;

/// The work item that processes the ends of stores, and stores what was read.
const STORE: u64 = 1;

/// The work item that gives bios of the image back to their disk.
const REQUEUE: u64 = 2;

/// The work item that frees windows that were replaced.
const REAP: u64 = 3;

/// The work item that has stored what waits for more.
const TICK: u64 = 4;

/// How long what was read waits for more to be stored with it, in milliseconds.
const TICK_MS: Msecs = 10;

/// A write of more chunks is so large that those which are safe are not looked at each time that it
/// comes.
const LARGE: u64 = 1 << 12;

/// What `inner` protects.
struct Inner {
    flights: Flights,
    /// What no copy uses.
    idle: Idle,
    /// All that was read is to be stored now.
    flush: bool,
    /// Until the next tick, if one is coming.
    tick: Option<Busy>,
    /// Room for the next ends of reads, while those that were queued are processed.
    read_room: KVec<Arc<CopySlot>>,
    /// The same for stores.
    stored_room: KVec<Arc<CopySlot>>,
    /// Writes that wait for a copy.
    writers: HeldList,
    /// Parts of image bios that wait for a copy.
    images: BioList,
    excluded: Arc<Excluded>,
    account: Account,
    /// The chunks that a large write begins with and that were found to be safe or unused, as they
    /// stay.
    safe: Range<u64>,
    /// Windows of the map that were replaced and are to be freed.
    old: KVec<OldWindow>,
    /// Room for the next ones, while those are being freed.
    spare: KVec<OldWindow>,
}

/// Work items to be queued.
#[derive(Clone, Copy, Default)]
#[must_use]
struct Kick {
    writers: bool,
    store: bool,
}

impl Kick {
    /// What lets writes go.
    const WRITERS: Self = Self {
        writers: true,
        store: false,
    };

    /// What stores.
    const STORE: Self = Self {
        writers: false,
        store: true,
    };
}

impl Inner {
    /// Where to begin to look for chunks from `from` to before `to` that a write has to wait for:
    /// of a [large](LARGE) one, behind those that it is known not to.
    fn skip_safe(&self, from: u64, to: u64) -> u64 {
        if self.safe.start == from && to - from > LARGE {
            self.safe.end.max(from).min(to)
        } else {
            from
        }
    }

    /// Whether chunks can be claimed: whether there is room for the windows of the map that are
    /// replaced then.
    fn has_room_for_old(&self) -> bool {
        // What is replaced by a claim must not be dropped under the lock.
        self.old.len() + MAX_WINDOWS <= self.old.capacity()
    }

    /// Whether nothing is under way whose end could let a copy begin.
    fn all_is_idle(&self) -> bool {
        self.idle.count() == self.flights.most() && self.has_room_for_old()
    }

    /// Whether writes or bios of the image wait for a copy.
    fn has_waiting_bios(&self) -> bool {
        !self.writers.is_empty() || !self.images.is_empty()
    }

    /// A copy, or memory, can be had again. Returns the bios of the image that may try, to be
    /// [requeued](Cow::requeue).
    fn let_waiting_try(&mut self) -> (Kick, BioList) {
        let kick = Kick {
            writers: !self.writers.is_empty(),
            store: false,
        };
        (kick, self.images_to_try())
    }

    /// Those of the bios of the image that wait for a copy that may try: as many as there are
    /// copies, when no writes wait. All of them if nothing is under way whose end would let the
    /// next ones try.
    fn images_to_try(&mut self) -> BioList {
        if self.flights.count() == 0 {
            return self.images.take();
        }
        let mut bios = BioList::new();
        if self.writers.is_empty() {
            for _ in 0..self.idle.count() {
                match self.images.pop() {
                    Some(bio) => bios.push(bio),
                    None => break,
                }
            }
        }
        bios
    }
}

/// Whether there are parts of the device that the image shows as zeroes: how often something was
/// excluded, and whether chunks were said not to have been used. One number for both, as most
/// engines have neither.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blank(u32);

impl Blank {
    /// There are unused chunks.
    const UNUSED: u32 = 1;

    /// How much an exclusion adds.
    const EXCLUSION: u32 = 2;

    /// Something is excluded.
    #[inline]
    pub(crate) fn has_excluded(self) -> bool {
        self.0 >= Self::EXCLUSION
    }

    /// There are unused chunks, or are about to be.
    #[inline]
    pub(crate) fn has_unused(self) -> bool {
        self.0 & Self::UNUSED != 0
    }
}

/// The copy engine of one captured device.
#[pin_data]
pub(crate) struct Cow {
    resources: Resources,
    space: Arc<Space>,
    health: Arc<Health>,
    origin: Arc<BdevFile>,
    /// The disk that `origin` is, or is on.
    disk: DiskId,
    /// What became of its data without a bio.
    medium: Arc<Medium>,
    /// [`Medium::shrinks`] when the engine was made.
    shrinks: u32,
    geometry: Geometry,
    map: ChunkMap,
    /// Changed under `inner`'s lock.
    unused: Unused,
    #[pin]
    inner: SpinLock<Inner>,
    /// See [`Blank`].
    blank: Atomic<u32>,
    /// What interrupts leave for [`WRITERS`].
    #[pin]
    read: SpinLockIrq<Ended>,
    /// What interrupts leave for [`STORE`].
    #[pin]
    stored: SpinLockIrq<Ended>,
    /// Somebody waits for copies to be stored. Changed under `inner`'s lock.
    hurry: Atomic<bool>,
    /// Bios of the image that are to be submitted again. Pushed to in interrupts.
    #[pin]
    requeued: SpinLockIrq<BioList>,
    /// The device has gone, and writes may have been missed.
    device_gone: Atomic<bool>,
    inflight: Arc<InFlight>,
    #[pin]
    writers_work: Work<Cow, WRITERS>,
    #[pin]
    store_work: Work<Cow, STORE>,
    #[pin]
    requeue_work: Work<Cow, REQUEUE>,
    #[pin]
    reap: Work<Cow, REAP>,
    #[pin]
    tick: DelayedWork<Cow, TICK>,
}

impl_has_work! {
    impl HasWork<Self, WRITERS> for Cow { self.writers_work }
    impl HasWork<Self, STORE> for Cow { self.store_work }
    impl HasWork<Self, REQUEUE> for Cow { self.requeue_work }
    impl HasWork<Self, REAP> for Cow { self.reap }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Cow, TICK> for Cow { self.tick }
}

impl Cow {
    /// Makes an engine for the device `origin`, with as much memory for copies, and as much copying
    /// ahead, as the parameters say now. May sleep.
    pub(crate) fn new(
        space: &Arc<Space>,
        health: &Arc<Health>,
        origin: &Arc<BdevFile>,
        medium: &Arc<Medium>,
        geometry: Geometry,
    ) -> Result<Arc<Self>> {
        let large = params::chunk_maximum_in_cache().max(RESERVED);
        let copies = large.max(COPIES);
        let chunk = geometry.chunk_bytes();
        // CAST: Small.
        let memory = large.saturating_mul(chunk.max(COPY_WINDOW as usize));
        Arc::pin_init(
            try_pin_init!(Self {
                resources: Resources::new()?,
                space: space.clone(),
                health: health.clone(),
                origin: origin.clone(),
                disk: origin.bdev().disk_id(),
                medium: medium.clone(),
                shrinks: medium.shrinks(),
                geometry,
                map: ChunkMap::new(geometry.chunks())?,
                unused: Unused::new(geometry.chunks()),
                inner <- new_spinlock!(Inner {
                    flights: Flights::new(copies, memory)?,
                    idle: Idle::new(copies, RESERVED, chunk, memory)?,
                    flush: false,
                    tick: None,
                    read_room: KVec::with_capacity(copies, GFP_KERNEL)?,
                    stored_room: KVec::with_capacity(copies, GFP_KERNEL)?,
                    writers: HeldList::new(),
                    images: BioList::new(),
                    excluded: Arc::new(Excluded::new(), GFP_KERNEL)?,
                    account: Account::new(params::copy_ahead_maximum_ratio()),
                    safe: 0..0,
                    old: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                    spare: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                }),
                blank: Atomic::new(0),
                read <- new_spinlock_irq!(Ended::new(copies)?),
                stored <- new_spinlock_irq!(Ended::new(copies)?),
                hurry: Atomic::new(false),
                requeued <- new_spinlock_irq!(BioList::new()),
                device_gone: Atomic::new(false),
                inflight: InFlight::new()?,
                writers_work <- new_work!("blksnap::Cow::writers"),
                store_work <- new_work!("blksnap::Cow::store"),
                requeue_work <- new_work!("blksnap::Cow::requeue"),
                reap <- new_work!("blksnap::Cow::reap"),
                tick <- new_delayed_work!("blksnap::Cow::tick"),
            }),
            GFP_KERNEL,
        )
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

    /// How many copies are under way, and how many bytes of memory the maps and the copies take.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let maps = self.map.memory() + self.unused.memory();
        (inner.flights.count(), maps + inner.idle.memory())
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

    /// Queues work items. One that is queued already has not begun to look.
    fn kick(self: &Arc<Self>, kick: Kick) {
        if kick.writers {
            let _ = self
                .resources
                .letting_go
                .enqueue::<_, WRITERS>(self.clone());
        }
        if kick.store {
            let _ = self.resources.storing.enqueue::<_, STORE>(self.clone());
        }
    }

    /// Excludes parts of the device, given as first sector and number of sectors. May sleep; calls
    /// must not overlap in time.
    pub(crate) fn exclude(&self, ranges: &[(u64, u64)]) -> Result {
        // Made without the lock, for which writers wait.
        let old = self.inner.lock().excluded.clone();
        let new = Arc::new(old.with(ranges)?, GFP_KERNEL)?;
        drop(core::mem::replace(&mut self.inner.lock().excluded, new));
        drop(old);
        // Release, paired with `blank()`: who sees the number sees the ranges, and who reads from
        // the original what was stored there sees the number, as this storage is not in use yet.
        self.blank.fetch_add(Blank::EXCLUSION, Release);
        Ok(())
    }

    /// Whether the image has parts that show zeroes. What was read from the original is not to be
    /// used if that is another value now than before.
    #[inline]
    pub(crate) fn blank(&self) -> Blank {
        Blank(self.blank.load(Acquire))
    }

    /// Calls `f` with each excluded range, as first sector and number of sectors. May sleep.
    pub(crate) fn for_each_excluded(&self, mut f: impl FnMut(u64, u64)) {
        let excluded = self.inner.lock().excluded.clone();
        for &(start, end) in excluded.ranges() {
            f(start, end - start);
        }
    }

    /// Whether all sectors from `sector` to before `end`, of those that the device has, are
    /// excluded.
    pub(crate) fn is_excluded(&self, sector: u64, end: u64) -> bool {
        let end = end.min(self.geometry.sectors);
        self.blank().has_excluded() && self.inner.lock().excluded.covers(sector, end)
    }

    /// The first excluded range that ends after `sector`.
    pub(crate) fn next_excluded(&self, sector: u64) -> Option<(u64, u64)> {
        self.inner.lock().excluded.next(sector)
    }

    /// Lets go whatever waits, and waits until nothing is in flight. To be called once, when no
    /// writes and image bios come any more, the image's disk was removed and the health closed.
    pub(crate) fn shut_down(this: &Arc<Self>) {
        this.kick(Kick {
            writers: true,
            store: true,
        });
        this.inflight.wait();
        // Nothing is copied any more, so all of these are let go: parked bios to a disk that is
        // not there, which gives them an error.
        this.free_old();
        this.serve_writers();
        this.resources.flush();
        this.free_old();
    }
}
