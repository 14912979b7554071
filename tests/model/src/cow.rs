// SPDX-License-Identifier: GPL-2.0

//! `src/copying/cow.rs` and `src/copying/cow/`.

use core::{
    ops::Range,
    sync::atomic::{AtomicU32 as Counter, Ordering::Relaxed as Counting},
};
use kernel::{
    planted::{Fault, planted},
    sync::turn::Turn,
};
use loom::sync::{
    Mutex,
    atomic::{
        AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use crate::{
    Failed, ZERO,
    chunk_map::{ChunkMap, OldWindow, Overwrite, Place},
    device::{Origin, Storage},
    image_io::{self, ImageBio},
    unused::Unused,
};

/// Runs that one write claims at a time.
const MAX_CLAIMS: usize = 2;

/// A write to the original.
#[derive(Clone, Debug)]
pub struct Write {
    pub chunks: Range<u64>,
    pub data: u32,
    pub thread: usize,
}

/// A copy whose read is to be submitted.
pub struct Copy(Range<u64>);

struct Flight {
    run: Range<u64>,
    needed: u64,
    in_memory: bool,
    writers: Vec<Write>,
    images: Vec<ImageBio>,
}

impl Flight {
    fn overlaps(&self, from: u64, to: u64) -> bool {
        self.run.start < to && from < self.run.end
    }
}

struct Inner {
    flights: Vec<Flight>,
    /// Copies that do nothing.
    free: usize,
    writers: Vec<Write>,
    images: Vec<ImageBio>,
    /// Whether neighbours are copied ahead.
    ahead: bool,
    /// Kept until the end.
    old: Vec<OldWindow>,
}

impl Inner {
    /// A flight ends. The copy is free at once; in the driver a little later, and `all_is_idle()` there
    /// allows for that.
    fn end(&mut self, copy: &Copy) -> Flight {
        let at = self.flights.iter().position(|f| f.run == copy.0);
        self.free += 1;
        self.flights.remove(at.unwrap())
    }
}

#[derive(Clone, Copy)]
enum Wants {
    Write,
    Image,
}

enum Next {
    Safe,
    Flight(usize),
    Later,
}

/// What a scenario begins with.
#[derive(Clone)]
pub struct Setup {
    pub chunks: u64,
    pub units: usize,
    pub copies: usize,
    pub ahead: bool,
    pub bad: Option<u64>,
    /// These were copied before.
    pub copied: Range<u64>,
    /// One thread only, so that what comes after a failure is known to.
    pub strict: bool,
}

pub struct Cow {
    pub map: ChunkMap,
    pub unused: Unused,
    pub origin: Origin,
    pub storage: Storage,
    inner: Mutex<Inner>,
    error: Turn<AtomicU32>,
    /// Whether chunks were said to be unused. Without a turn, which would take three times as long.
    blank: AtomicU32,
    pub setup: Setup,
    /// Whether it has failed, to those who know all.
    pub failures: Counter,
    /// Chunks of which the image has shown zeroes.
    pub zeroes: Vec<Counter>,
    /// Bios of the image that have ended.
    pub ended: Counter,
    /// Writes to the original that have ended.
    pub written: Counter,
}

impl Cow {
    pub fn new(setup: &Setup) -> Self {
        let this = Self {
            map: ChunkMap::new(setup.chunks).unwrap(),
            unused: Unused::new(setup.chunks),
            origin: Origin::new(setup.chunks, setup.bad),
            storage: Storage::new(setup.units, setup.chunks),
            inner: Mutex::new(Inner {
                flights: Vec::new(),
                free: setup.copies,
                writers: Vec::new(),
                images: Vec::new(),
                ahead: setup.ahead,
                old: Vec::new(),
            }),
            error: Turn::new(AtomicU32::new(0)),
            blank: AtomicU32::new(0),
            setup: setup.clone(),
            failures: Counter::new(0),
            zeroes: (0..setup.chunks).map(|_| Counter::new(0)).collect(),
            ended: Counter::new(0),
            written: Counter::new(0),
        };
        if !setup.copied.is_empty() {
            let mut inner = this.inner.lock().unwrap();
            let copy = this.claim(&mut inner, setup.copied.clone());
            drop(inner);
            this.submit(copy.ok().into_iter().collect());
        }
        this
    }

    pub fn image_has_failed(&self) -> bool {
        self.error.take().load(Acquire) != 0
    }

    pub fn fail(&self) {
        if self.image_has_failed() {
            return;
        }
        let _ = self.error.take().compare_exchange(0, 5, AcqRel, Relaxed);
        self.failures.fetch_add(1, Counting);
    }

    pub fn blank(&self) -> bool {
        self.blank.load(Acquire) != 0
    }

    /// Chunks had no meaning at the instant.
    pub fn give_unused(&self, chunks: Range<u64>) {
        for part in self.unused.parts(chunks) {
            if !self.blank() {
                self.blank.fetch_add(1, Release);
            }
            self.unused.prepare(&part).unwrap();
            let _inner = self.inner.lock().unwrap();
            self.unused.give(part);
        }
    }

    fn passable_until(&self, from: u64, to: u64) -> u64 {
        let mut at = from;
        while at < to {
            let end = self.unused.until(self.map.safe_until(at, to), to);
            if end == at {
                break;
            }
            at = end;
        }
        at
    }

    fn needed_run(&self, from: u64, to: u64, most: u64) -> Option<Range<u64>> {
        let mut at = from;
        loop {
            let run = self.map.untouched_run(at, to, most)?;
            if !self.blank() {
                return Some(run);
            }
            let start = self.unused.until(run.start, to);
            if start < run.end {
                return Some(start..self.unused.next(start, run.end));
            }
            at = start;
        }
    }

    /// A write to the original comes from its filter, for the first time or again.
    pub fn filter(&self, write: Write) {
        let (from, to) = (write.chunks.start, write.chunks.end);
        if self.image_has_failed() {
            return self.pass(write);
        }
        match self.map.overwrite(from, to) {
            Overwrite::Yes => self.pass(write),
            Overwrite::Ahead => {
                let inner = self.inner.lock().unwrap();
                self.map.take_ahead(from, to);
                drop(inner);
                self.pass(write);
            }
            Overwrite::No => self.filter_uncopied(write),
        }
    }

    fn pass(&self, write: Write) {
        for chunk in write.chunks {
            // It was let pass for the one reason or for the other: only one of them orders it.
            if self.unused.until(chunk, chunk + 1) == chunk {
                self.origin.write(chunk, write.data, write.thread);
            } else {
                self.origin.write_unused(chunk, write.data);
            }
        }
        self.written.fetch_add(1, Counting);
    }

    fn filter_uncopied(&self, write: Write) {
        let (from, to) = (write.chunks.start, write.chunks.end);
        if self.blank() && self.passable_until(from, to) == to {
            return self.pass(write);
        }
        let mut reads = Vec::new();
        let mut let_go = None;
        let mut inner = self.inner.lock().unwrap();
        let may_claim = inner.writers.is_empty();
        match self.advance(&mut inner, (from, to), Wants::Write, may_claim, &mut reads) {
            Next::Safe => {
                drop(inner);
                return self.pass(write);
            }
            Next::Flight(_) if planted(Fault::ReleaseBeforeRead) => let_go = Some(write),
            Next::Flight(i) => inner.flights[i].writers.push(write),
            Next::Later => inner.writers.push(write),
        }
        let kick = inner.flights.is_empty();
        drop(inner);
        if let Some(write) = let_go {
            self.pass(write);
        }
        self.submit(reads);
        if kick {
            self.run();
        }
    }

    fn advance(
        &self,
        inner: &mut Inner,
        (from, to): (u64, u64),
        wants: Wants,
        may_claim: bool,
        reads: &mut Vec<Copy>,
    ) -> Next {
        let mut at = from;
        let mut short = false;
        for _ in 0..MAX_CLAIMS {
            let mut run = match wants {
                Wants::Write => self.needed_run(at, to, 8),
                Wants::Image => self.map.untouched_run(at, to, 8),
            };
            if planted(Fault::CopyTwice) && self.map.get(at) == Place::Reading {
                run = Some(at..to);
            }
            let Some(run) = run else { break };
            if !may_claim {
                short = true;
                break;
            }
            match self.claim(inner, run) {
                Ok(copy) => {
                    at = copy.0.end;
                    reads.push(copy);
                }
                Err(Failed) => {
                    short = true;
                    break;
                }
            }
        }
        let reading = |flight: &Flight| !flight.in_memory && flight.overlaps(from, to);
        match inner.flights.iter().rposition(reading) {
            Some(i) => Next::Flight(i),
            None if short => Next::Later,
            None => Next::Safe,
        }
    }

    fn claim(&self, inner: &mut Inner, needed: Range<u64>) -> Result<Copy, Failed> {
        if inner.free == 0 {
            return Err(Failed);
        }
        inner.free -= 1;
        let run = if inner.ahead {
            let since = self.map.untouched_since(0, needed.start);
            let until = self.map.untouched_until(needed.end, self.setup.chunks);
            if self.blank() {
                self.unused.needed_since(since, needed.start)..self.unused.next(needed.end, until)
            } else {
                since..until
            }
        } else {
            needed.clone()
        };
        let prepared = self.map.prepare(run.clone(), &needed).unwrap();
        inner.flights.push(Flight {
            run: run.clone(),
            needed: needed.end - needed.start,
            in_memory: false,
            writers: Vec::new(),
            images: Vec::new(),
        });
        let old = self.map.claim(prepared).into_iter().flatten();
        inner.old.extend(old);
        Ok(Copy(run))
    }

    fn submit(&self, reads: Vec<Copy>) {
        for copy in reads {
            let data = self.origin.read(copy.0.clone());
            self.read_done(copy, data);
        }
    }

    fn read_done(&self, copy: Copy, mut data: Result<Vec<u32>, Failed>) {
        let mut guard = self.inner.lock().unwrap();
        let inner = &mut *guard;
        let flight = inner.flights.iter_mut().find(|flight| flight.run == copy.0);
        let Some(flight) = flight else { return };
        let mut again = false;
        if data.is_err() {
            again = flight.needed < copy.0.end - copy.0.start && !self.image_has_failed();
            if again {
                inner.ahead = false;
                self.map.unclaim(copy.0.clone());
            } else {
                self.fail();
            }
        }
        let writers = core::mem::take(&mut flight.writers);
        if again || self.image_has_failed() && !planted(Fault::StoreAfterFailure) || data.is_err() {
            let flight = inner.end(&copy);
            drop(guard);
            writers.into_iter().for_each(|write| self.filter(write));
            return self.recycle(flight);
        }
        flight.in_memory = true;
        for (chunk, data) in copy.0.clone().zip(data.iter_mut().flatten()) {
            if self.unused.until(chunk, chunk + 1) != chunk && !planted(Fault::StoreUnused) {
                *data = ZERO;
            }
        }
        self.map.set(copy.0.clone(), |_| Place::InMemory);
        drop(guard);
        writers.into_iter().for_each(|write| self.filter(write));
        match data.and_then(|data| self.store(&copy, data)) {
            Ok(unit) => self.finish_store(copy, unit),
            Err(Failed) => {
                self.fail();
                let flight = self.inner.lock().unwrap().end(&copy);
                self.recycle(flight);
            }
        }
    }

    fn store(&self, copy: &Copy, data: Vec<u32>) -> Result<u32, Failed> {
        let failed_before = self.failures.load(Counting) > 0;
        let unit = self.place(data.len())?;
        if planted(Fault::StoredTooEarly) {
            let place = |i| Place::Stored(unit + i as u32);
            let _inner = self.inner.lock().unwrap();
            self.map.set(copy.0.clone(), place);
        }
        for (at, data) in (unit..).zip(data) {
            self.storage.store(at, data);
        }
        assert!(
            !(self.setup.strict && failed_before),
            "stored after a failure"
        );
        Ok(unit)
    }

    fn place(&self, units: usize) -> Result<u32, Failed> {
        if self.image_has_failed() && !planted(Fault::StoreAfterFailure) {
            return Err(Failed);
        }
        self.storage.alloc(units)
    }

    fn finish_store(&self, copy: Copy, unit: u32) {
        for chunk in copy.0.clone() {
            let before = self.storage.stored[chunk as usize].fetch_add(1, Counting);
            assert_eq!(before, 0, "copied more than once");
        }
        let mut inner = self.inner.lock().unwrap();
        self.map
            .set(copy.0.clone(), |i| Place::Stored(unit + i as u32));
        let mut early = Vec::new();
        if planted(Fault::EndInTwoSteps) {
            let flight = inner.flights.iter_mut().find(|f| f.run == copy.0).unwrap();
            early = core::mem::take(&mut flight.images);
            drop(inner);
            inner = self.inner.lock().unwrap();
        }
        let mut flight = inner.end(&copy);
        drop(inner);
        if planted(Fault::EndInTwoSteps) {
            flight.images = early;
        }
        self.recycle(flight);
    }

    /// A flight has ended. Then the work item runs.
    fn recycle(&self, flight: Flight) {
        let mut inner = self.inner.lock().unwrap();
        inner.images.extend(flight.images);
        drop(inner);
        // When a held write is dropped it is resubmitted.
        flight.writers.into_iter().for_each(|w| self.filter(w));
        self.run();
    }

    /// A part of an image bio waits; gives it back if there is nothing to wait for.
    pub fn park(&self, bio: ImageBio, chunk: u64) -> Option<ImageBio> {
        let claim = bio.write.is_some();
        let mut reads = Vec::new();
        let mut inner = self.inner.lock().unwrap();
        let mut later = false;
        if claim && self.map.get(chunk) == Place::Untouched {
            let run = (chunk, bio.chunks.end);
            let next = self.advance(&mut inner, run, Wants::Image, true, &mut reads);
            later = matches!(next, Next::Later);
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
        self.submit(reads);
        if kick && rest.is_none() {
            self.run();
        }
        rest
    }

    /// What `park` does for a write to the image, without one.
    pub fn copy_for_image(&self, chunk: u64) {
        let mut reads = Vec::new();
        let mut inner = self.inner.lock().unwrap();
        if self.map.get(chunk) == Place::Untouched {
            let _ = self.advance(
                &mut inner,
                (chunk, chunk + 1),
                Wants::Image,
                true,
                &mut reads,
            );
        }
        drop(inner);
        self.submit(reads);
    }

    fn serve_writers(&self) {
        loop {
            let mut reads = Vec::new();
            let mut inner = self.inner.lock().unwrap();
            if inner.writers.is_empty() {
                return;
            }
            let write = inner.writers.remove(0);
            let (from, to) = (write.chunks.start, write.chunks.end);
            let next = if self.image_has_failed() {
                Next::Safe
            } else {
                self.advance(&mut inner, (from, to), Wants::Write, true, &mut reads)
            };
            let mut go_on = true;
            let mut rejected = None;
            match next {
                Next::Safe => rejected = Some(write),
                Next::Flight(i) => inner.flights[i].writers.push(write),
                Next::Later => {
                    go_on = false;
                    inner.writers.insert(0, write);
                }
            }
            let stuck = !go_on && inner.flights.is_empty();
            drop(inner);
            self.submit(reads);
            if let Some(write) = rejected {
                self.filter(write);
            }
            if stuck {
                self.fail();
            } else if !go_on {
                return;
            }
        }
    }

    /// The work item.
    fn run(&self) {
        self.serve_writers();
        let images = core::mem::take(&mut self.inner.lock().unwrap().images);
        images
            .into_iter()
            .for_each(|bio| image_io::submit(self, bio));
    }

    /// The original's data of a chunk as of the instant, when all is over.
    pub fn final_image(&self, chunk: u64) -> Result<u32, Failed> {
        if self.image_has_failed() {
            return Err(Failed);
        }
        match self.map.get(chunk) {
            Place::Untouched if self.unused.until(chunk, chunk + 1) != chunk => Ok(ZERO),
            Place::Untouched => Ok(self.origin.read_optimistic(chunk)),
            place => Ok(self.storage.read_place(place)),
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.flights.is_empty() && inner.writers.is_empty() && inner.images.is_empty()
    }
}
