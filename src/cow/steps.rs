// SPDX-License-Identifier: GPL-2.0

//! The steps of a copy after it was read, and what its end lets others do. All of it is work.

use kernel::{
    block::bio::BioList,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    workqueue::WorkItem, //
};

use super::{
    claim::{
        Next,
        Reads, //
    },
    Cow,
    REAP, //
};
use crate::{
    chunk_map::Place,
    copy::Copy,
    image_io,
    units::SECTOR_SHIFT, //
};

impl Cow {
    /// A copy was read, or failed to be.
    pub(crate) fn read_done(self: &Arc<Self>, copy: &Arc<Copy>) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let flight = inner
            .flights
            .iter_mut()
            .find(|flight| Arc::ptr_eq(&flight.copy, copy));
        let Some(flight) = flight else { return };
        let (first, end, needed) = (flight.first, flight.end, flight.needed);
        if let Err(err) = copy.result() {
            if needed < end - first && !self.has_failed() {
                // What could not be read may be what nobody needs: once more, without that.
                inner.account.give_up(end - first, needed);
                self.map.unclaim(first..end);
                drop(guard);
                return self.finish(copy);
            }
            self.fail(err);
        }
        flight.ready = true;
        let writers = flight.writers.take();
        if !self.has_failed() {
            self.map.set(first..end, |_| Place::InMemory);
        }
        drop(guard);
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

    /// Finds a place for what was read and begins to store it; tells whether that goes on.
    fn store(&self, copy: &Arc<Copy>, sectors: u64) -> Result<bool> {
        if self.has_failed() {
            return Err(EIO);
        }
        let unit = self.storage.alloc(sectors)?;
        self.storage.copied.fetch_add(sectors, Relaxed);
        // CAST: At most `WINDOW` or a chunk.
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
            // CAST: The storage ends before `u32` does.
            let place = |i: u64| Place::Stored(unit + (i * step) as u32);
            self.map.set(first..first + count, place);
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
        let waiting = inner.is_waiting();
        drop(inner);
        drop(late);
        if waiting {
            Self::kick(self);
        }
        image_io::submit_list(self, images);
        drop(job);
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
                Next::Flight(i) => match inner.flights.get_mut(i) {
                    Some(flight) => flight.writers.push(held),
                    None => Err(held),
                },
                Next::Later => {
                    go_on = false;
                    inner.writers.push_front(held)
                }
            };
            let stuck = !go_on && inner.flights.is_empty() && inner.may_replace();
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

impl WorkItem<REAP> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        this.free_old();
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
