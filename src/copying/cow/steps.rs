// SPDX-License-Identifier: GPL-2.0

//! The steps of a copy after its read: letting writes go, storing, the end. And the work items.

use kernel::{
    block::{
        bio::BioList,
        filter::HeldList, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        owned::OwnedQueue,
        WorkItem, //
    }, //
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
    Ended,
    Inner,
    Kick,
    IDLE_BYTES,
    IMAGES,
    REAP,
    STORE,
    TICK,
    TICK_MS,
    WRITERS, //
};
use crate::{
    base::{
        delays::{
            delay,
            Point, //
        },
        faults::{
            planted,
            Fault, //
        }, //
    },
    copying::{
        chunk_map::Place,
        copy::{
            self,
            Copy, //
        },
        engine::BATCH, //
    },
    image::io, //
};

/// What comes of a read that has ended.
#[derive(Default)]
struct ReadDone {
    /// The writes that may go on.
    writers: HeldList,
    /// The flight, if it ends here.
    ended: Option<Flight>,
    kick: Kick,
}

impl Cow {
    /// The bio that reads for `copy` has ended. For any context.
    pub(crate) fn leave_read(this: &Arc<Self>, copy: Arc<Copy>) {
        let mut ended = this.read.lock();
        // There is room for each copy.
        let _ = ended.copies.push_within_capacity(copy);
        let kick = !ended.is_seen;
        ended.is_seen = true;
        drop(ended);
        if kick {
            let _ = this.engine.queue.enqueue::<_, WRITERS>(this.clone());
        }
    }

    /// All bios that store for `copies` have ended. For any context.
    ///
    /// If nobody waits for that, it will be looked at when there is something else to store.
    pub(crate) fn leave_stored(this: &Arc<Self>, copies: [Option<Arc<Copy>>; BATCH]) {
        let mut ended = this.stored.lock();
        let mut bad = false;
        for copy in copies.into_iter().flatten() {
            bad |= copy.result().is_err();
            // There is room for each copy.
            let _ = ended.copies.push_within_capacity(copy);
        }
        // Who begins to wait after this look has the work item queued.
        let wanted = bad || this.hurry.load(Relaxed) || this.has_failed();
        let kick = !ended.is_seen && !ended.copies.is_empty() && wanted;
        ended.is_seen |= kick;
        drop(ended);
        if kick {
            let _ = this.engine.queue.enqueue::<_, STORE>(this.clone());
        }
    }

    /// A copy was read, or failed to be: lets the writes go that wait. Does not sleep if
    /// [`submission_is_queued`].
    ///
    /// [`submission_is_queued`]: kernel::block::bio::submission_is_queued
    pub(crate) fn end_read(this: &Arc<Self>, copy: &Copy) {
        let done = this.read_done(copy);
        delay(Point::InMemory);
        done.writers.resubmit();
        if let Some(flight) = done.ended {
            this.recycle(flight);
        }
        this.kick(done.kick);
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
        let result = copy.result().and_then(|()| {
            if self.was_too_small(run.end) {
                return Err(EIO);
            }
            Ok(())
        });
        if let Err(err) = result {
            // What could not be read may be what nobody needs: once more, without that.
            again = needed < chunks && !self.has_failed();
            if again {
                inner.account.give_up(chunks, needed);
                self.map.unclaim(run.clone());
            } else {
                self.fail(err);
            }
        }
        if again || self.has_stopped() {
            return ReadDone {
                writers: take(&mut flight.writers),
                ended: inner.flights.end(index),
                kick: Kick::default(),
            };
        }
        let waited_for = flight.is_waited_for();
        inner.flush |= waited_for || inner.is_waiting();
        self.map.set(run, |_| Place::InMemory);
        let writers = inner.flights.read(index);
        let store = inner.flush || inner.flights.is_due();
        if !store {
            self.arm_tick(inner);
        }
        ReadDone {
            writers,
            ended: None,
            kick: Kick {
                store,
                ..Kick::default()
            },
        }
    }

    fn queue(&self) -> &OwnedQueue {
        &self.engine.queue
    }

    /// Has what waits stored, and what was stored looked at, some time later.
    fn arm_tick(self: &Arc<Self>, inner: &mut Inner) {
        if inner.tick.is_none() {
            inner.tick = Some(self.busy());
            let delay = msecs_to_jiffies(TICK_MS);
            let _ = OwnedQueue::enqueue_delayed::<_, TICK>(self.clone(), Self::queue, delay);
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
        self.space.copied.fetch_add(copied, Relaxed);
        copy::store(self, unit, &batch);
        true
    }

    /// Finds a place for `units` units of old data.
    fn place(&self, units: u64) -> Result<u32> {
        if self.has_stopped() {
            return Err(EIO);
        }
        self.space.alloc(units)
    }

    /// A copy was stored, or failed to be.
    fn store_done(self: &Arc<Self>, copy: &Copy) {
        delay(Point::Stored);
        let index = copy.index();
        let mut inner = self.inner.lock();
        if let Err(err) = copy.result() {
            self.fail(err);
        } else if let Some(flight) = inner.flights.get(index) {
            if let Some(unit) = flight.unit {
                let step = self.geometry.units_per_chunk();
                // CAST: The storage ends before `u32` does.
                let place = |i: u64| Place::Stored(unit + (i * step) as u32);
                if planted(Fault::CopyTwice) {
                    self.map.unclaim(flight.run.clone());
                } else {
                    self.map.set(flight.run.clone(), place);
                }
            }
        }
        let flight = inner.flights.end(index);
        drop(inner);
        if let Some(flight) = flight {
            self.recycle(flight);
        }
    }

    /// A flight has ended, good or bad. Does not sleep if no writes wait for it, or if
    /// [`submission_is_queued`](kernel::block::bio::submission_is_queued).
    fn recycle(self: &Arc<Self>, mut flight: Flight) {
        if flight.unit.is_none() {
            self.space.unbook(flight.units);
        }
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
        let kick = inner.let_waiting_try();
        drop(inner);
        drop(buffer);
        drop(writers);
        self.kick(kick);
        drop(busy);
    }

    /// Serves the writes that wait for a copy.
    pub(super) fn serve_writers(self: &Arc<Self>) {
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
            let stuck = !go_on && inner.is_stuck();
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

    /// Looks at what was read.
    fn look_at_read(this: &Arc<Self>) {
        let mut copies = take(&mut this.inner.lock().read_room);
        let mut ended = this.read.lock();
        swap(&mut copies, &mut ended.copies);
        ended.is_seen = true;
        drop(ended);
        for copy in copies.drain_all() {
            Self::end_read(this, &copy);
        }
        this.inner.lock().read_room = copies;
    }

    /// Looks at what was stored.
    fn look_at_stored(self: &Arc<Self>) {
        let mut copies = take(&mut self.inner.lock().stored_room);
        let mut ended = self.stored.lock();
        swap(&mut copies, &mut ended.copies);
        ended.is_seen = true;
        drop(ended);
        for copy in copies.drain_all() {
            self.store_done(&copy);
        }
        self.inner.lock().stored_room = copies;
    }

    /// Whether nothing more has ended; then the work item is queued when something has.
    fn is_done(ended: &SpinLockIrq<Ended>) -> bool {
        let mut ended = ended.lock();
        ended.is_seen = !ended.copies.is_empty();
        !ended.is_seen
    }

    /// Ends what was read and is of no use any more, and lets go what waits for copies.
    fn give_up(self: &Arc<Self>) {
        delay(Point::GivingUp);
        loop {
            let mut inner = self.inner.lock();
            let Some(flight) = inner.flights.end_unstored() else {
                let kick = inner.let_waiting_try();
                drop(inner);
                self.kick(Kick {
                    writers: false,
                    ..kick
                });
                return;
            };
            drop(inner);
            self.recycle(flight);
        }
    }

    /// Serves the bios of the image that may try again.
    pub(super) fn serve_images(self: &Arc<Self>) {
        let images = self.inner.lock().images_ready.take();
        io::submit_list(self, images);
        let retry: BioList = self.retry.lock().take();
        io::submit_list(self, retry);
    }
}

impl WorkItem<WRITERS> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        Self::look_at_read(&this);
        this.serve_writers();
        if this.has_failed() {
            this.give_up();
        }
        // One pass at a time: who flushes the queue waits for no more than that.
        if !Self::is_done(&this.read) {
            this.kick(Kick::WRITERS);
        }
    }
}

impl WorkItem<STORE> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.look_at_stored();
        let flush = take(&mut this.inner.lock().flush);
        while this.store(flush) {}
        // Where a store completes at once, its copy is of use again at once.
        this.look_at_stored();
        if this.has_failed() {
            this.give_up();
        }
        let mut inner = this.inner.lock();
        let waits = inner.is_waiting() || inner.flights.are_waited_for();
        this.hurry.store(waits, Relaxed);
        if inner.flights.ready() != 0 {
            this.arm_tick(&mut inner);
        }
        let done = Self::is_done(&this.stored);
        drop(inner);
        if !done {
            this.kick(Kick::STORE);
        }
    }
}

impl WorkItem<IMAGES> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.serve_images();
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
        this.kick(Kick::STORE);
        drop(busy);
    }
}
