// SPDX-License-Identifier: GPL-2.0

//! Writes to the captured device: passed, or held until their chunks are safe.

use kernel::{
    block::{
        bio::Op,
        filter::{
            Incoming,
            Verdict, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

use super::{
    claim::{
        Next,
        Reads,
        Wants, //
    },
    Cow,
    Inner,
    Kick,
    LARGE, //
};
use crate::{
    base::faults::{
        planted,
        Fault, //
    },
    copying::chunk_map::Overwrite, //
};

impl Cow {
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
        if to - from > LARGE && !this.is_large_write_passable(from, to) {
            return Self::filter_uncopied(this, bio, (sector, end), (from, to));
        }
        match this.map.overwrite(from, to) {
            Overwrite::Yes => bio.pass(),
            Overwrite::Ahead => {
                let mut inner = this.inner.lock();
                inner.account.hit(this.map.take_ahead(from, to));
                drop(inner);
                bio.pass()
            }
            Overwrite::No => Self::filter_uncopied(this, bio, (sector, end), (from, to)),
        }
    }

    /// Whether all chunks from `from` to before `to` are safe or unused. Remembers those that are.
    fn is_large_write_passable(&self, from: u64, to: u64) -> bool {
        let known = self.inner.lock().skip_safe(from, to);
        let end = self.passable_until(known, to);
        self.inner.lock().safe = from..end;
        end == to
    }

    /// The rest of [`filter`](Self::filter), when something has to be copied.
    fn filter_uncopied<'a>(
        this: &Arc<Self>,
        bio: Incoming<'a>,
        (sector, end): (u64, u64),
        (from, to): (u64, u64),
    ) -> Verdict<'a> {
        if this.is_passable(from, to) || this.passes_writes() || this.is_excluded(sector, end) {
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
        let next = this.advance(&mut inner, (from, to), Wants::Write, may_claim, &mut reads);
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
    pub(super) fn wait_for_copies(&self, inner: &mut Inner) -> Kick {
        let hurried = self.hurry.load(Relaxed);
        self.hurry.store(true, Relaxed);
        inner.flush = true;
        Kick {
            // After a failure nothing else may be under way whose end lets it go.
            writers: inner.all_is_idle() || self.image_has_failed(),
            // From now on the end of a store has it queued; what has ended was not processed.
            store: inner.flights.has_unstored() || (!hurried && inner.flights.in_memory() != 0),
        }
    }

    /// Lets the writes that wait for a copy try again.
    pub(super) fn serve_writers(self: &Arc<Self>) {
        loop {
            let mut reads = Reads::default();
            let mut inner = self.inner.lock();
            let Some(held) = inner.writers.pop() else {
                let images = inner.images_to_try();
                drop(inner);
                return self.requeue(images);
            };
            let start = self.origin.bdev().start_sector();
            let (from, to) = self.chunks(
                held.sector().saturating_sub(start),
                held.end_sector().saturating_sub(start),
            );
            let next = if self.image_has_failed() {
                Next::Safe
            } else {
                self.advance(&mut inner, (from, to), Wants::Write, true, &mut reads)
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
            let stuck = !go_on && inner.all_is_idle();
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
