// SPDX-License-Identifier: GPL-2.0

//! The steps of a copy after its read: letting writes go, the end. And the work items.

use kernel::{
    block::{
        filter::HeldList, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    workqueue::{
        owned::OwnedQueue,
        WorkItem, //
    }, //
};

use core::mem::take;

use super::{
    ends::Ended,
    flights::Flight,
    Cow,
    Inner,
    Kick,
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
        },
        params, //
    },
    copying::{
        chunk_map::Place,
        memory::CopySlot, //
    }, //
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
    /// A copy was read, or failed to be: lets the writes go that wait. Does not sleep if
    /// [`submission_is_queued`].
    ///
    /// [`submission_is_queued`]: kernel::block::bio::submission_is_queued
    pub(super) fn finish_read(self: &Arc<Self>, slot: &CopySlot) {
        let done = self.read_done(slot);
        delay(Point::InMemory);
        done.writers.resubmit();
        if let Some(flight) = done.ended {
            self.recycle(flight);
        }
        self.kick(done.kick);
    }

    /// A copy was read, or failed to be. Does not sleep.
    fn read_done(self: &Arc<Self>, slot: &CopySlot) -> ReadDone {
        let index = slot.index();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(flight) = inner.flights.get(index) else {
            return ReadDone::default();
        };
        let (run, chunks, needed) = (flight.run.clone(), flight.chunks(), flight.needed);
        let mut again = false;
        let result = match slot.result() {
            // Whatever was read: it is zeroed.
            _ if self.unused_until(run.start, run.end) == run.end => Ok(()),
            Ok(()) if self.device_was_too_small(run.end) => Err(EIO),
            result => result,
        };
        if let Err(err) = result {
            // What could not be read may be what nobody needs: once more, without that.
            again = needed < chunks && !self.image_has_failed();
            if again {
                inner.account.give_up(chunks, needed);
                self.map.unclaim(run.clone());
            } else {
                self.fail(err);
            }
        }
        if again || self.passes_writes() {
            return ReadDone {
                writers: take(&mut flight.writers),
                ended: inner.flights.end(index),
                kick: Kick::default(),
            };
        }
        self.zero_unused(&run, &flight.memory);
        let parked = flight.has_parked_bios();
        inner.flush |= parked || inner.has_waiting_bios();
        self.map.set(run, |_| Place::InMemory);
        let writers = inner.flights.mark_read(index);
        // Whatever is stored at once: the work item that does it may hang.
        self.arm_tick(inner);
        ReadDone {
            writers,
            ended: None,
            kick: Kick {
                store: inner.flush || inner.flights.has_full_batch(),
                ..Kick::default()
            },
        }
    }

    /// The queue of [`TICK`]: it watches the storage, so it must not wait behind who waits for it.
    fn tick_queue(&self) -> &OwnedQueue {
        &self.resources.letting_go
    }

    /// Has [`STORE`] run after [`TICK_MS`], for what was read and for the ends of stores.
    fn arm_tick(self: &Arc<Self>, inner: &mut Inner) {
        if inner.tick.is_none() {
            inner.tick = Some(self.busy());
            let delay = msecs_to_jiffies(TICK_MS);
            let _ = OwnedQueue::enqueue_delayed::<_, TICK>(self.clone(), Self::tick_queue, delay);
        }
    }

    /// Whether the storage has not answered for so long that writes shall not wait for it.
    fn storage_hangs(&self, inner: &Inner) -> bool {
        let limit = params::diff_storage_timeout();
        limit != 0
            && inner.flights.oldest_in_memory() > Delta::from_secs(limit)
            && !planted(Fault::WaitForEver)
    }

    /// A flight has ended, good or bad. Does not sleep if no writes wait for it, or if
    /// [`submission_is_queued`](kernel::block::bio::submission_is_queued).
    pub(super) fn recycle(self: &Arc<Self>, mut flight: Flight) {
        if flight.unit.is_none() {
            self.space.unbook(flight.units);
        }
        let mut images = flight.take_images();
        let writers = take(&mut flight.writers);
        let mut inner = self.inner.lock();
        let (memory, busy) = flight.into_parts();
        let buffer = inner.idle.put(memory);
        let (kick, others) = inner.let_waiting_try();
        images.append(others);
        drop(inner);
        drop(buffer);
        drop(writers);
        self.kick(kick);
        self.requeue(images);
        drop(busy);
    }

    /// After a failure: ends the copies that were to be stored, and lets go what waits for one.
    fn give_up(self: &Arc<Self>) {
        delay(Point::GivingUp);
        loop {
            let mut inner = self.inner.lock();
            let Some(flight) = inner.flights.end_unstored() else {
                // The writes are let go by the work item that serves them. What is being stored may
                // never end, so nothing waits for that, either.
                let mut images = inner.images.take();
                images.append(inner.flights.take_parked());
                drop(inner);
                return self.requeue(images);
            };
            drop(inner);
            self.recycle(flight);
        }
    }
}

impl WorkItem<WRITERS> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.process_read_ends();
        this.serve_writers();
        if this.image_has_failed() {
            this.give_up();
        }
        // One pass at a time: who flushes the queue waits for no more than that.
        if !Ended::all_processed(&this.read) {
            this.kick(Kick::WRITERS);
        }
    }
}

impl WorkItem<STORE> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.process_store_ends();
        let flush = take(&mut this.inner.lock().flush);
        while this.store_batch(flush) {}
        // Where a store completes at once, its slot can be used again at once.
        this.process_store_ends();
        if this.image_has_failed() {
            this.give_up();
        }
        let inner = this.inner.lock();
        let waits = inner.has_waiting_bios() || inner.flights.have_parked_bios();
        this.hurry.store(waits, Relaxed);
        let done = Ended::all_processed(&this.stored);
        drop(inner);
        if !done {
            this.kick(Kick::STORE);
        }
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
        let failed = this.image_has_failed();
        if inner.flights.in_memory() != 0 && !failed {
            this.arm_tick(&mut inner);
        }
        let hangs = !inner.writers.is_empty() && this.storage_hangs(&inner);
        drop(inner);
        if hangs {
            this.fail(ETIMEDOUT);
        }
        // Also if another device has lost the snapshot: what is being stored may never end.
        if hangs || failed {
            this.kick(Kick::WRITERS);
        }
        this.kick(Kick::STORE);
        drop(busy);
    }
}
