// SPDX-License-Identifier: GPL-2.0

//! The steps of a copy after its read: letting writes go, storing, the end. And the work item.

use kernel::{
    block::{
        bio::BioList,
        filter::HeldList, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::msecs_to_jiffies,
    workqueue::WorkItem, //
};

use core::{
    array,
    mem::{
        swap,
        take, //
    },
};

use super::{
    claim::{
        Next,
        Reads, //
    },
    flights::Flight,
    Cow,
    Inner,
    IDLE_BYTES,
    REAP,
    TICK,
    TICK_MS, //
};
use crate::{
    chunk_map::Place,
    copy::{
        self,
        Copy, //
    },
    engine::BATCH,
    image_io,
    units::UNIT_SECTORS_SHIFT, //
};

/// What comes of a read that has ended.
#[derive(Default)]
struct ReadDone {
    /// The writes that may go on.
    writers: HeldList,
    /// The flight, if it ends here.
    ended: Option<Flight>,
    /// There is something to do for the work item.
    to_do: bool,
}

impl Cow {
    /// The bio that reads for `copy` has ended. For any context.
    pub(crate) fn leave_read(this: &Arc<Self>, copy: Arc<Copy>) {
        let mut ended = this.ended.lock();
        // There is room for each copy.
        let _ = ended.read.push_within_capacity(copy);
        let kick = !ended.is_seen;
        ended.is_seen = true;
        drop(ended);
        if kick {
            Self::kick(this);
        }
    }

    /// All bios that store for `copies` have ended. For any context.
    ///
    /// If nobody waits for that, it will be looked at when there is something else to do.
    pub(crate) fn leave_stored(this: &Arc<Self>, copies: [Option<Arc<Copy>>; BATCH]) {
        let mut ended = this.ended.lock();
        let mut bad = false;
        for copy in copies.into_iter().flatten() {
            bad |= copy.result().is_err();
            // There is room for each copy.
            let _ = ended.stored.push_within_capacity(copy);
        }
        // Who begins to wait after this look has the work item queued.
        let wanted = bad || this.hurry.load(Relaxed) || this.has_failed();
        let kick = !ended.is_seen && !ended.stored.is_empty() && wanted;
        ended.is_seen |= kick;
        drop(ended);
        if kick {
            Self::kick(this);
        }
    }

    /// A copy was read, or failed to be, and here [`submission_is_queued`] is true: lets go the
    /// writes that wait.
    ///
    /// [`submission_is_queued`]: kernel::block::bio::submission_is_queued
    pub(crate) fn read_done_inline(this: &Arc<Self>, copy: &Copy) {
        let done = this.read_done(copy);
        done.writers.resubmit();
        if let Some(flight) = done.ended {
            this.recycle(flight);
        }
        if done.to_do {
            Self::kick(this);
        }
    }

    /// A copy was read, or failed to be. Does not sleep.
    fn read_done(self: &Arc<Self>, copy: &Copy) -> ReadDone {
        let index = copy.index();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(flight) = inner.flights.get(index) else {
            return ReadDone::default();
        };
        let (run, chunks, needed) = (flight.run.clone(), flight.chunks(), flight.needed);
        let mut again = false;
        if let Err(err) = copy.result() {
            // What could not be read may be what nobody needs: once more, without that.
            again = needed < chunks && !self.has_failed();
            if again {
                inner.account.give_up(chunks, needed);
                self.map.unclaim(run.clone());
            } else {
                self.fail(err);
            }
        }
        if again || self.has_failed() {
            return ReadDone {
                writers: take(&mut flight.writers),
                ended: inner.flights.end(index),
                to_do: true,
            };
        }
        let waited_for = flight.is_waited_for();
        inner.flush |= waited_for || inner.is_waiting();
        self.map.set(run, |_| Place::InMemory);
        let writers = inner.flights.read(index);
        let to_do = inner.flush || inner.flights.is_due();
        if !to_do {
            Self::arm_tick(self, inner);
        }
        ReadDone {
            writers,
            ended: None,
            to_do,
        }
    }

    /// Has what waits stored, and what was stored looked at, some time later.
    fn arm_tick(this: &Arc<Self>, inner: &mut Inner) {
        if inner.tick.is_none() {
            inner.tick = Some(this.busy());
            let queue = &this.engine.queue;
            let _ = queue.enqueue_delayed::<_, TICK>(this.clone(), msecs_to_jiffies(TICK_MS));
        }
    }

    /// Stores the next batch of what was read, if `all` or if it is worth a bio. Tells whether
    /// there was one. May sleep.
    fn store(self: &Arc<Self>, all: bool) -> bool {
        let mut inner = self.inner.lock();
        if !all && !inner.flights.is_due() {
            return false;
        }
        let (mut count, mut units) = inner.flights.batch(BATCH);
        if count == 0 {
            return false;
        }
        let mut place = self.place(units);
        if place.is_err() && count > 1 {
            // What is left may be enough for one.
            (count, units) = inner.flights.batch(1);
            place = self.place(units);
        }
        let unit = match place {
            Ok(unit) => unit,
            Err(err) => {
                drop(inner);
                self.fail(err);
                return false;
            }
        };
        let mut next = unit;
        let mut copied = 0;
        let batch = array::from_fn(|i| {
            if i >= count {
                return None;
            }
            let flight = inner.flights.place(next)?;
            // CAST: The storage ends before `u32` does.
            next += flight.units as u32;
            let sectors = self.geometry.sectors_in(flight.run.start, flight.chunks());
            copied += sectors;
            flight.memory.unstored(sectors)
        });
        drop(inner);
        self.storage.copied.fetch_add(copied, Relaxed);
        copy::store(self, unit, &batch);
        true
    }

    /// Finds a place for `units` units of old data.
    fn place(&self, units: u64) -> Result<u32> {
        if self.has_failed() {
            return Err(EIO);
        }
        self.storage.alloc(units << UNIT_SECTORS_SHIFT)
    }

    /// A copy was stored, or failed to be.
    fn store_done(&self, copy: &Copy) {
        let index = copy.index();
        let mut inner = self.inner.lock();
        if let Err(err) = copy.result() {
            self.fail(err);
        } else if let Some(flight) = inner.flights.get(index) {
            if let Some(unit) = flight.unit {
                let step = self.geometry.units_per_chunk();
                // CAST: The storage ends before `u32` does.
                let place = |i: u64| Place::Stored(unit + (i * step) as u32);
                self.map.set(flight.run.clone(), place);
            }
        }
        let flight = inner.flights.end(index);
        drop(inner);
        if let Some(flight) = flight {
            self.recycle(flight);
        }
    }

    /// A flight has ended, good or bad. The work item has to run after this.
    fn recycle(&self, mut flight: Flight) {
        let images = flight.take_images();
        let writers = take(&mut flight.writers);
        let mut inner = self.inner.lock();
        let buffer = if inner.idle_bytes + flight.memory.len() > IDLE_BYTES {
            flight.memory.shrink()
        } else {
            None
        };
        inner.idle_bytes += flight.memory.len();
        let busy = flight.recycle(&mut inner.free);
        inner.images.append(images);
        drop(inner);
        drop(buffer);
        drop(writers);
        drop(busy);
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
            let next = if self.has_failed() {
                Next::Safe
            } else {
                self.advance(&mut inner, from, to, true, &mut reads)
            };
            let mut go_on = true;
            let rejected = match next {
                Next::Safe => Err(held),
                Next::Flight(i) => match inner.flights.get(i) {
                    Some(flight) => flight.writers.push(held),
                    None => Err(held),
                },
                Next::Later => {
                    go_on = false;
                    inner.writers.push_front(held)
                }
            };
            let stuck = !go_on && inner.flights.count() == 0 && inner.may_replace();
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

    /// Looks at the copies whose bios have ended.
    fn look_at_ended(self: &Arc<Self>) {
        let mut ended = take(&mut self.inner.lock().ended);
        {
            let mut new = self.ended.lock();
            swap(&mut ended.read, &mut new.read);
            swap(&mut ended.stored, &mut new.stored);
            new.is_seen = true;
        }
        for copy in ended.read.drain_all() {
            let done = self.read_done(&copy);
            done.writers.resubmit();
            if let Some(flight) = done.ended {
                self.recycle(flight);
            }
        }
        for copy in ended.stored.drain_all() {
            self.store_done(&copy);
        }
        self.inner.lock().ended = ended;
    }

    /// Stores what has to be stored now, or throws it away if it is of no use any more.
    fn store_what_is_due(self: &Arc<Self>) {
        let flush = take(&mut self.inner.lock().flush);
        while self.store(flush) {}
        while self.has_failed() {
            let Some(flight) = self.inner.lock().flights.end_unstored() else {
                break;
            };
            self.recycle(flight);
        }
    }

    /// Whether the work item may end, since nothing more has ended.
    fn may_end(this: &Arc<Self>) -> bool {
        let mut inner = this.inner.lock();
        let mut ended = this.ended.lock();
        if !ended.read.is_empty() || !ended.stored.is_empty() {
            return false;
        }
        ended.is_seen = false;
        drop(ended);
        let waits = inner.is_waiting() || inner.flights.are_waited_for();
        this.hurry.store(waits, Relaxed);
        if inner.flights.ready() != 0 {
            Self::arm_tick(this, &mut inner);
        }
        true
    }
}

impl WorkItem<REAP> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.free_old();
    }
}

impl WorkItem<TICK> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        let mut inner = this.inner.lock();
        inner.flush = true;
        let busy = inner.tick.take();
        drop(inner);
        Self::kick(&this);
        drop(busy);
    }
}

impl WorkItem for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        loop {
            this.look_at_ended();
            this.store_what_is_due();
            this.serve_writers();
            let images = this.inner.lock().images.take();
            image_io::submit_list(&this, images);
            let retry: BioList = this.retry.lock().take();
            image_io::submit_list(&this, retry);
            if Self::may_end(&this) {
                return;
            }
        }
    }
}
