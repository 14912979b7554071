// SPDX-License-Identifier: GPL-2.0

//! Claiming untouched chunks, and beginning to copy them.

use kernel::{
    block::{
        bio::BioList,
        bio_set::NewBio,
        filter::HeldList, //
    },
    prelude::*,
    sync::Arc, //
};

use core::{
    mem::{
        replace,
        take, //
    },
    ops::Range, //
};

use super::{
    Cow,
    Inner,
    MAX_OLD,
    REAP, //
};
use crate::{
    ahead::WINDOW,
    chunk_map::{
        OldWindow,
        Prepared, //
    },
    copy::{
        Copy,
        CopyIo, //
    },
    units::SECTOR_SHIFT, //
};

/// Runs that one write claims at a time.
const MAX_CLAIMS: usize = 4;

/// A copy under way.
pub(super) struct Flight {
    pub(super) first: u64,
    pub(super) end: u64,
    /// How many of them were needed; the others are copied ahead.
    pub(super) needed: u64,
    pub(super) copy: Arc<Copy>,
    /// The old data is in memory.
    pub(super) ready: bool,
    /// Writes that wait until it is.
    pub(super) writers: HeldList,
    /// Parts of image bios that wait until it was stored.
    pub(super) images: BioList,
}

impl Flight {
    pub(super) fn overlaps(&self, from: u64, to: u64) -> bool {
        self.first < to && from < self.end
    }
}

/// The bios of the runs that were claimed, to be submitted without the lock.
pub(super) type Reads = [Option<NewBio<CopyIo>>; MAX_CLAIMS];

/// What to do with something that wants chunks to be copied.
pub(super) enum Next {
    /// Go on: all of them are safe.
    Safe,
    /// Wait for this flight.
    Flight(usize),
    /// Wait for a copy.
    Later,
}

impl Cow {
    /// Claims untouched chunks between `from` and `to`, and says what to wait for.
    pub(super) fn advance(
        self: &Arc<Self>,
        inner: &mut Inner,
        from: u64,
        to: u64,
        may_claim: bool,
        reads: &mut Reads,
    ) -> Next {
        let most = (WINDOW >> (self.geometry.chunk_shift + SECTOR_SHIFT)).max(1);
        let mut at = from;
        let mut short = false;
        for slot in reads {
            let Some(run) = self.map.untouched_run(at, to, most) else {
                break;
            };
            if !may_claim {
                short = true;
                break;
            }
            match self.claim(inner, run) {
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

    /// Begins a copy of the untouched chunks of `needed`, with neighbours that are copied ahead; or
    /// of as many of them as there is memory for. Returns the bio to submit and the end of the run.
    fn claim(
        self: &Arc<Self>,
        inner: &mut Inner,
        needed: Range<u64>,
    ) -> Result<(NewBio<CopyIo>, u64)> {
        if !inner.may_replace() {
            return Err(EBUSY);
        }
        let chunk = self.geometry.chunk_bytes();
        let shift = self.geometry.chunk_shift + SECTOR_SHIFT;
        let copy = inner.free.pop().ok_or(EBUSY)?;
        let flights = &inner.flights;
        let spare = || {
            // What is under way has no place in the storage yet.
            let flying = flights.iter().map(|flight| flight.end - flight.first);
            (self.storage.spare() >> self.geometry.chunk_shift).saturating_sub(flying.sum())
        };
        let (map, geometry) = (&self.map, &self.geometry);
        let wanted = inner.account.extend(map, geometry, needed.clone(), spare);
        let start = |copy: &Arc<Copy>| -> Result<(NewBio<CopyIo>, Prepared, Range<u64>)> {
            // CAST: At most `WINDOW` or a chunk.
            let all = ((wanted.end - wanted.start) << shift) as usize;
            let room = copy.reserve(all, chunk)?;
            let run = if room < all {
                let end = needed.start + (room >> shift) as u64;
                needed.start..needed.end.min(end)
            } else {
                wanted.clone()
            };
            let prepared = map.prepare(run.clone(), &needed)?;
            Ok((Copy::start(copy, self, run.clone())?, prepared, run))
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
        let (bio, prepared, run) = match started {
            Ok(started) => started,
            Err(err) => {
                let _ = inner.free.push_within_capacity(copy);
                return Err(err);
            }
        };
        let needs = needed.end.min(run.end) - needed.start;
        inner.account.add(run.end - run.start, needs);
        let flight = Flight {
            first: run.start,
            end: run.end,
            needed: needs,
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
        for old in self.map.claim(prepared).into_iter().flatten() {
            // `may_replace()` has seen to it that there is room.
            let _ = inner.old.push_within_capacity(old);
        }
        if inner.old.len() >= MAX_OLD / 2 {
            let _ = self.engine.queue.enqueue::<_, REAP>(self.clone());
        }
        Ok((bio, run.end))
    }

    /// Frees the windows of the map that were replaced. May sleep.
    pub(super) fn free_old(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        let spare = take(&mut inner.spare);
        let mut old = replace(&mut inner.old, spare);
        drop(inner);
        OldWindow::free_all(&mut old);
        let mut inner = self.inner.lock();
        inner.spare = old;
        let waiting = inner.is_waiting();
        drop(inner);
        if waiting {
            Self::kick(self);
        }
    }

    /// Sends the bios of what was claimed on their way.
    pub(super) fn submit(reads: Reads) {
        reads.into_iter().flatten().for_each(NewBio::submit);
    }
}
