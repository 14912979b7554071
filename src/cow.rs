// SPDX-License-Identifier: GPL-2.0

//! The copy engine of one captured device.
//!
//! A write to the device comes from the filter. If all its chunks are safe it passes, without a
//! lock. Otherwise the untouched ones are claimed, in runs, and their reads are submitted; the
//! write is held with one of the copies and let go when that was read, after which it is shown
//! again and either finds all chunks safe or waits for the next copy. Storing what was read goes
//! on behind its back.
//!
//! When all copies are in use, or memory is short, writes wait in order, and the work item serves
//! them as copies end.
//!
//! [`image_io`](crate::image_io) serves the image from the same states.
//!
//! # Locking
//!
//! `inner` is taken in the submission path and in work, never in interrupts. Nothing is submitted,
//! resubmitted or waited for under it. Below it: the locks of [`Copy`], of [`Storage`] and of the
//! workqueue.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bdev::BdevFile,
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
    impl_has_work,
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
    workqueue::Work, //
};

use crate::{
    ahead::Account,
    cbt::Cbt,
    chunk_map::{
        ChunkMap,
        OldWindow,
        Overwrite,
        Place,
        MAX_WINDOWS, //
    },
    copy::Copy,
    engine::{
        Busy,
        Engine,
        InFlight, //
    },
    excluded::Excluded,
    storage::Storage,
    units::Geometry, //
};

use claim::{
    Flight,
    Next,
    Reads, //
};

mod claim;
mod steps;

/// Copies that have memory for a chunk whatever happens.
const RESERVED: usize = 4;

/// How many replaced windows of the map may wait to be freed.
const MAX_OLD: usize = 1024;

/// The number of the work item that frees them.
const REAP: u64 = 1;

/// What `inner` protects.
struct Inner {
    /// Copies under way, in the order in which they began.
    flights: KVec<Flight>,
    /// Copies that do nothing; the last used first.
    free: KVec<Arc<Copy>>,
    /// Writes that wait for a copy.
    writers: HeldList,
    /// Parts of image bios that wait for a copy.
    images: BioList,
    excluded: Excluded,
    account: Account,
    /// Windows of the map that were replaced and are to be freed.
    old: KVec<OldWindow>,
    /// Room for the next ones, while those are being freed.
    spare: KVec<OldWindow>,
}

impl Inner {
    /// Whether chunks can be claimed without waiting for what is to be freed.
    fn may_replace(&self) -> bool {
        // What is replaced by a claim must not be dropped under the lock.
        self.old.len() + MAX_WINDOWS <= self.old.capacity()
    }

    /// Whether something waits for a copy.
    fn is_waiting(&self) -> bool {
        !self.writers.is_empty() || !self.images.is_empty()
    }
}

/// The copy engine of one captured device.
#[pin_data]
pub(crate) struct Cow {
    engine: Arc<Engine>,
    storage: Arc<Storage>,
    origin: Arc<BdevFile>,
    geometry: Geometry,
    map: ChunkMap,
    #[pin]
    inner: SpinLock<Inner>,
    /// Whether anything is excluded. Set before the storage that it tells of is in use.
    has_excluded: Atomic<bool>,
    /// Image reads to be done again, see [`image_io`]. Pushed to in interrupts.
    #[pin]
    retry: SpinLockIrq<BioList>,
    /// The device has gone, and writes may have been missed.
    gone: Atomic<bool>,
    inflight: Arc<InFlight>,
    #[pin]
    work: Work<Cow>,
    #[pin]
    reap: Work<Cow, REAP>,
}

impl_has_work! {
    impl HasWork<Self> for Cow { self.work }
    impl HasWork<Self, REAP> for Cow { self.reap }
}

impl Cow {
    /// Makes an engine with `copies` copies, that copies at the most `ratio` times of what is
    /// overwritten. May sleep.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        storage: &Arc<Storage>,
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
            free.push(Copy::new(engine, reserve)?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            try_pin_init!(Self {
                engine: engine.clone(),
                storage: storage.clone(),
                origin: origin.clone(),
                geometry,
                map: ChunkMap::new(geometry.chunks())?,
                inner <- new_spinlock!(Inner {
                    flights: KVec::with_capacity(copies, GFP_KERNEL)?,
                    free,
                    writers: HeldList::new(),
                    images: BioList::new(),
                    excluded: Excluded::new(),
                    account: Account::new(ratio),
                    old: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                    spare: KVec::with_capacity(MAX_OLD, GFP_KERNEL)?,
                }),
                has_excluded: Atomic::new(false),
                retry <- new_spinlock_irq!(BioList::new()),
                gone: Atomic::new(false),
                inflight: InFlight::new()?,
                work <- new_work!("blksnap::Cow"),
                reap <- new_work!("blksnap::Cow::reap"),
            }),
            GFP_KERNEL,
        )
    }

    /// The bio sets and the workqueue.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where old data is stored.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
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

    /// Whether the image is of no use any more. Acquire, see [`Storage::has_failed`].
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.storage.has_failed() || self.gone.load(Acquire)
    }

    /// The error since which the image is of no use, as a positive errno, or 0.
    pub(crate) fn error(&self) -> i32 {
        self.storage.device_error(self.origin.bdev().id())
    }

    /// How many copies are under way, and how many bytes of memory the map and the copies take.
    pub(crate) fn usage(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let flying = inner.flights.iter().map(|flight| flight.copy.memory());
        let free = inner.free.iter().map(|copy| copy.memory());
        let copies = flying.sum::<usize>() + free.sum::<usize>();
        (inner.flights.len(), self.map.memory() + copies)
    }

    /// The device is going: ends the use of its image. Does not sleep.
    pub(crate) fn device_gone(&self) {
        self.gone.store(true, Release);
        self.storage.fail_device(self.origin.bdev().id(), ENODEV);
    }

    /// Ends the use of the snapshot's images because of `err`.
    fn fail(&self, err: Error) {
        if self.has_failed() {
            return;
        }
        self.storage.fail(self.origin.bdev().id(), err);
    }

    /// The chunks, from the first to before the last, that have sectors from `sector` to before
    /// `end`.
    fn chunks(&self, sector: u64, end: u64) -> (u64, u64) {
        let end = end.min(self.geometry.sectors);
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
        if this.has_failed() {
            return bio.pass();
        }
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
        if this.is_excluded(sector, end) {
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
        let next = this.advance(&mut inner, from, to, may_claim, &mut reads);
        let (rejected, verdict) = match next {
            Next::Safe => {
                drop(inner);
                return bio.pass();
            }
            Next::Flight(i) => {
                let (held, verdict) = bio.hold();
                let list = inner.flights.get_mut(i).map(|flight| &mut flight.writers);
                (list.map_or(Ok(()), |list| list.push(held)), verdict)
            }
            Next::Later => {
                let (held, verdict) = bio.hold();
                (inner.writers.push(held), verdict)
            }
        };
        let kick = inner.flights.is_empty() && inner.may_replace();
        drop(inner);
        Self::submit(reads);
        if kick {
            Self::kick(this);
        }
        // The bios of one engine come from one filter, so that nothing is ever rejected.
        drop(rejected);
        verdict
    }

    /// Queues the work item.
    fn kick(this: &Arc<Self>) {
        // If it is queued already, it has not looked at the lists yet.
        let _ = this.engine.queue.enqueue::<_, 0>(this.clone());
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
        let mut rest = None;
        if let Some(flight) = inner
            .flights
            .iter_mut()
            .find(|f| f.overlaps(chunk, chunk + 1))
        {
            flight.images.push(bio);
        } else if later {
            inner.images.push(bio);
        } else {
            rest = Some(bio);
        }
        let kick = inner.flights.is_empty() && inner.may_replace();
        drop(inner);
        Self::submit(reads);
        if kick && rest.is_none() {
            Self::kick(self);
        }
        rest
    }

    /// Has an image read done again, from any context.
    pub(crate) fn retry(this: &Arc<Self>, bio: OwnedBio) {
        this.retry.lock().push(bio);
        this.storage.retried.fetch_add(1, Relaxed);
        Self::kick(this);
    }

    /// Excludes parts of the device, given as first sector and number of sectors. May sleep; calls
    /// must not overlap in time.
    pub(crate) fn exclude(&self, ranges: &[(u64, u64)]) -> Result {
        let len = self.inner.lock().excluded.len();
        let room = Excluded::with_room(len, ranges.len())?;
        let old = self.inner.lock().excluded.add(room, ranges);
        drop(old);
        self.has_excluded.store(true, Relaxed);
        Ok(())
    }

    /// Marks what is excluded as changed, for this increment and for the next one: it reads as
    /// zeroes as long as this snapshot is held, and only so long.
    pub(crate) fn mark_excluded(&self, cbt: &Cbt) {
        let inner = self.inner.lock();
        for &(start, end) in inner.excluded.ranges() {
            cbt.mark_both(start, end - start);
        }
    }

    /// Whether all sectors from `sector` to before `end` are excluded.
    fn is_excluded(&self, sector: u64, end: u64) -> bool {
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
        Self::kick(this);
        this.inflight.wait();
        // What an interrupt has parked until then.
        Self::kick(this);
        this.engine.queue.flush();
        this.free_old();
    }
}
