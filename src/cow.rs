// SPDX-License-Identifier: GPL-2.0

//! The copy engine of one captured device.
//!
//! A write to the device comes from the filter. If all its chunks are safe it passes, without a
//! lock. Otherwise the untouched ones are claimed, in runs, and their reads are submitted; the write
//! is held with one of the copies and let go when that was read, after which it is shown again and
//! either finds all chunks safe or waits for the next copy. Storing what was read goes on behind its
//! back.
//!
//! When all copies are in use, or memory is short, writes wait in order, and the work item serves
//! them as copies end.
//!
//! [`image_io`](crate::image_io) serves the image from the same states.
//!
//! # Locking
//!
//! `inner` is taken in the submission path and in work, never in interrupts. Nothing is submitted,
//! resubmitted or waited for under it. Below it: the locks of [`Copy`] and of [`Storage`].

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_ATOMIC,
        GFP_KERNEL,
    },
    block::{
        bdev::BdevFile,
        bio::{
            BioList,
            Op,
            OwnedBio, //
        },
        bio_set::NewBio,
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
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        new_spinlock_irq,
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

use crate::{
    cbt::Cbt,
    chunk_map::{
        ChunkMap,
        Place, //
    },
    copy::{
        Copy,
        CopyIo, //
    },
    engine::{
        Busy,
        Engine,
        InFlight, //
    },
    excluded::Excluded,
    image_io,
    storage::Storage,
    units::{
        Geometry,
        SECTOR_SHIFT, //
    }, //
};

/// The largest run that is copied at once, in bytes, if chunks are smaller.
const MAX_RUN: u64 = 256 << 10;

/// Copies that have memory for a chunk whatever happens.
const RESERVED: usize = 4;

/// Runs that one write claims at a time.
const MAX_CLAIMS: usize = 4;

/// A copy under way.
struct Flight {
    first: u64,
    end: u64,
    copy: Arc<Copy>,
    /// The old data is in memory.
    ready: bool,
    /// Writes that wait until it is.
    writers: HeldList,
    /// Parts of image bios that wait until it was stored.
    images: BioList,
}

impl Flight {
    fn overlaps(&self, from: u64, to: u64) -> bool {
        self.first < to && from < self.end
    }
}

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
}

/// The bios of the runs that were claimed, to be submitted without the lock.
type Reads = [Option<NewBio<CopyIo>>; MAX_CLAIMS];

/// What to do with something that wants chunks to be copied.
enum Next {
    /// Go on: all of them are safe.
    Safe,
    /// Wait for this flight.
    Flight(usize),
    /// Wait for a copy.
    Later,
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
    inflight: Arc<InFlight>,
    #[pin]
    work: Work<Cow>,
}

impl_has_work! {
    impl HasWork<Self> for Cow { self.work }
}

impl Cow {
    /// Makes an engine with `copies` copies. May sleep.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        storage: &Arc<Storage>,
        origin: &Arc<BdevFile>,
        geometry: Geometry,
        copies: usize,
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
                }),
                has_excluded: Atomic::new(false),
                retry <- new_spinlock_irq!(BioList::new()),
                inflight: InFlight::new()?,
                work <- new_work!("blksnap::Cow"),
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

    /// Ends the use of the snapshot's images because of `err`.
    fn fail(&self, err: Error) {
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
        if this.storage.has_failed() || this.map.is_safe(from, to) {
            return bio.pass();
        }
        Self::filter_unsafe(this, bio, (sector, end), (from, to))
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
        let kick = inner.flights.is_empty();
        drop(inner);
        Self::submit(reads);
        if kick {
            Self::kick(this);
        }
        // The bios of one engine come from one filter, so that nothing is ever rejected.
        drop(rejected);
        verdict
    }

    /// Claims untouched chunks between `from` and `to`, and says what to wait for.
    fn advance(
        self: &Arc<Self>,
        inner: &mut Inner,
        from: u64,
        to: u64,
        may_claim: bool,
        reads: &mut Reads,
    ) -> Next {
        let most = (MAX_RUN >> (self.geometry.chunk_shift + SECTOR_SHIFT)).max(1);
        let mut at = from;
        let mut short = false;
        for slot in reads {
            let Some((first, count)) = self.map.untouched_run(at, to, most) else {
                break;
            };
            if !may_claim {
                short = true;
                break;
            }
            match self.claim(inner, first, count) {
                Ok((bio, end)) => {
                    *slot = Some(bio);
                    at = end;
                }
                Err(_) => {
                    short = true;
                    break;
                }
            }
        }
        // The one that began last: when it was read, most likely the others were, too.
        let reading = |flight: &Flight| !flight.ready && flight.overlaps(from, to);
        match inner.flights.iter().rposition(reading) {
            Some(i) => Next::Flight(i),
            None if short => Next::Later,
            None => Next::Safe,
        }
    }

    /// Begins a copy of `count` untouched chunks from `first` on, or of as many as there is memory
    /// for. Returns the bio to submit and the end of the run.
    fn claim(
        self: &Arc<Self>,
        inner: &mut Inner,
        first: u64,
        count: u64,
    ) -> Result<(NewBio<CopyIo>, u64)> {
        let chunk = self.geometry.chunk_bytes();
        let shift = self.geometry.chunk_shift + SECTOR_SHIFT;
        let copy = inner.free.pop().ok_or(EBUSY)?;
        let start = |copy: &Arc<Copy>| -> Result<(NewBio<CopyIo>, u64)> {
            // CAST: At most `MAX_RUN` or a chunk.
            let bytes = copy.reserve((count << shift) as usize, chunk)?;
            let count = count.min((bytes >> shift) as u64);
            self.map.prepare(first, count, GFP_ATOMIC | __GFP_NOWARN)?;
            Ok((Copy::start(copy, self, first, count)?, first + count))
        };
        let (copy, started) = match start(&copy) {
            Err(_) => {
                // One of the reserved ones has memory.
                let reserved = inner
                    .free
                    .iter()
                    .position(|other| other.reserve(chunk, chunk).is_ok());
                match reserved.and_then(|i| inner.free.remove(i).ok()) {
                    Some(other) => {
                        let _ = inner.free.push_within_capacity(copy);
                        let started = start(&other);
                        (other, started)
                    }
                    None => (copy, Err(ENOMEM)),
                }
            }
            ok => (copy, ok),
        };
        let (bio, end) = match started {
            Ok(started) => started,
            Err(err) => {
                let _ = inner.free.push_within_capacity(copy);
                return Err(err);
            }
        };
        let flight = Flight {
            first,
            end,
            copy,
            ready: false,
            writers: HeldList::new(),
            images: BioList::new(),
        };
        // There is room for as many flights as there are copies.
        inner
            .flights
            .push_within_capacity(flight)
            .map_err(|_| ENOMEM)?;
        // Before the bio is submitted: see `chunk_map`.
        for chunk in first..end {
            self.map.set(chunk, Place::Reading);
        }
        Ok((bio, end))
    }

    fn submit(reads: Reads) {
        reads.into_iter().flatten().for_each(NewBio::submit);
    }

    /// Queues the work item.
    fn kick(this: &Arc<Self>) {
        // If it is queued already, it has not looked at the lists yet.
        let _ = this.engine.queue.enqueue(this.clone());
    }

    /// A copy was read, or failed to be.
    pub(crate) fn read_done(self: &Arc<Self>, copy: &Arc<Copy>) {
        if let Err(err) = copy.result() {
            self.fail(err);
        }
        let mut inner = self.inner.lock();
        let flight = inner
            .flights
            .iter_mut()
            .find(|flight| Arc::ptr_eq(&flight.copy, copy));
        let Some(flight) = flight else { return };
        let (first, end) = (flight.first, flight.end);
        flight.ready = true;
        let writers = flight.writers.take();
        if !self.storage.has_failed() {
            for chunk in first..end {
                self.map.set(chunk, Place::InMemory);
            }
        }
        drop(inner);
        writers.resubmit();

        let sectors = self.geometry.sectors_in(first, end - first);
        match self.store(copy, sectors) {
            Ok(true) => {}
            Ok(false) => self.store_done(copy),
            Err(err) => {
                self.fail(err);
                self.finish(copy);
            }
        }
    }

    fn store(&self, copy: &Arc<Copy>, sectors: u64) -> Result<bool> {
        if self.storage.has_failed() {
            return Err(EIO);
        }
        let unit = self.storage.alloc(sectors)?;
        self.storage.copied.fetch_add(sectors, Relaxed);
        // CAST: At most `MAX_RUN` or a chunk.
        Copy::store(copy, self, unit, (sectors << SECTOR_SHIFT) as usize)
    }

    /// A copy was stored, or failed to be.
    pub(crate) fn store_done(self: &Arc<Self>, copy: &Arc<Copy>) {
        if let Err(err) = copy.result() {
            self.fail(err);
        } else if let Some((first, count, Some(unit))) =
            copy.job(|job| (job.first, job.count, job.unit))
        {
            let step = self.geometry.units_per_chunk();
            let _inner = self.inner.lock();
            for i in 0..count {
                // CAST: The storage ends before `u32` does.
                self.map
                    .set(first + i, Place::Stored(unit + (i * step) as u32));
            }
        }
        self.finish(copy);
    }

    /// A copy's end, good or bad.
    fn finish(self: &Arc<Self>, copy: &Arc<Copy>) {
        let job = copy.finish();
        let mut inner = self.inner.lock();
        let at = inner
            .flights
            .iter()
            .position(|flight| Arc::ptr_eq(&flight.copy, copy));
        let flight = at.and_then(|at| inner.flights.remove(at).ok());
        let mut images = BioList::new();
        let mut late = None;
        if let Some(flight) = flight {
            let _ = inner.free.push_within_capacity(flight.copy);
            images = flight.images;
            late = Some(flight.writers);
        }
        let waiting = !inner.writers.is_empty() || !inner.images.is_empty();
        drop(inner);
        drop(late);
        if waiting {
            Self::kick(self);
        }
        image_io::submit_list(self, images);
        drop(job);
    }

    /// Parks a part of an image bio that is about `chunk`, until it was stored. `claim` says whether
    /// it is to be copied if untouched.
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
        let kick = inner.flights.is_empty();
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
    }

    /// Serves the writes that wait for a copy.
    fn serve_writers(self: &Arc<Self>) {
        loop {
            let mut reads = Reads::default();
            let mut inner = self.inner.lock();
            let Some(held) = inner.writers.pop() else {
                return;
            };
            let start = self.origin.bdev().start_sector();
            let (from, to) = self.chunks(
                held.sector().saturating_sub(start),
                held.end_sector().saturating_sub(start),
            );
            let next = if self.storage.has_failed() {
                Next::Safe
            } else {
                self.advance(&mut inner, from, to, true, &mut reads)
            };
            let mut go_on = true;
            let rejected = match next {
                Next::Safe => Err(held),
                Next::Flight(i) => match inner.flights.get_mut(i) {
                    Some(flight) => flight.writers.push(held),
                    None => Err(held),
                },
                Next::Later => {
                    go_on = false;
                    inner.writers.push_front(held)
                }
            };
            let stuck = !go_on && inner.flights.is_empty();
            drop(inner);
            Self::submit(reads);
            drop(rejected);
            if stuck {
                // Nothing is under way whose end could give us memory.
                self.fail(ENOMEM);
            } else if !go_on {
                return;
            }
        }
    }
}

impl WorkItem for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.serve_writers();
        let images = this.inner.lock().images.take();
        image_io::submit_list(&this, images);
        let retry = this.retry.lock().take();
        image_io::submit_list(&this, retry);
    }
}
