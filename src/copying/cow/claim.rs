// SPDX-License-Identifier: GPL-2.0

//! Claiming untouched chunks, and beginning to copy them.

use kernel::{
    block::bio_set::NewBio,
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
    ends::ReadIo,
    flights::Flight,
    Cow,
    Inner,
    MAX_OLD,
    REAP, //
};
use crate::{
    base::{
        delays::{
            delay,
            Point, //
        },
        units::{
            COPY_WINDOW,
            SECTOR_SHIFT,
            UNIT_SECTORS, //
        }, //
    },
    copying::{
        chunk_map::{
            OldWindow,
            PreparedRun, //
        },
        memory::Memory, //
    }, //
};

/// Runs that one write claims at a time.
const MAX_CLAIMS: usize = 4;

/// The bios of the runs that were claimed, to be submitted without the lock.
pub(super) type Reads = [Option<NewBio<ReadIo>>; MAX_CLAIMS];

/// What wants chunks to be copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A write to the original: those that are not unused.
    Write,
    /// A write to the image: all.
    Image,
}

/// What to do with something that wants chunks to be copied.
pub(super) enum Next {
    /// Go on: all that it needs are safe.
    Safe,
    /// Wait for this flight, which is being read.
    Flight(usize),
    /// Wait for a copy.
    Later,
}

impl Cow {
    /// Claims untouched chunks between `from` and `to`, as far as `wants` needs them, and says what
    /// to wait for.
    pub(super) fn advance(
        self: &Arc<Self>,
        inner: &mut Inner,
        (from, to): (u64, u64),
        wants: Wants,
        may_claim: bool,
        reads: &mut Reads,
    ) -> Next {
        let most = (COPY_WINDOW >> (self.geometry.chunk_shift + SECTOR_SHIFT)).max(1);
        let from = inner.skip_safe(from, to);
        let mut at = from;
        let mut short = false;
        let mut last = None;
        for slot in reads {
            let run = match wants {
                Wants::Write => self.needed_run(at, to, most),
                Wants::Image => self.map.untouched_run(at, to, most),
            };
            let Some(run) = run else {
                break;
            };
            if !may_claim {
                short = true;
                break;
            }
            match self.claim(inner, run) {
                Ok((bio, flight, end)) => {
                    *slot = Some(bio);
                    last = Some(flight);
                    at = end;
                }
                Err(_) => {
                    short = true;
                    break;
                }
            }
        }
        // The one that began last: when it was read, most likely the others were, too.
        match last.or_else(|| inner.flights.last_reading(from, to)) {
            Some(i) => Next::Flight(i),
            None if short => Next::Later,
            None => Next::Safe,
        }
    }

    /// Begins a copy of the untouched chunks of `needed`, with neighbours that are copied ahead; or
    /// of as many of them as there is memory for. Returns the bio to submit, the flight and the
    /// end of the run.
    fn claim(
        self: &Arc<Self>,
        inner: &mut Inner,
        needed: Range<u64>,
    ) -> Result<(NewBio<ReadIo>, usize, u64)> {
        if !inner.has_room_for_old() {
            return Err(EBUSY);
        }
        let spare = || self.space.spare() >> self.geometry.chunk_shift;
        let (map, geometry) = (&self.map, &self.geometry);
        let wanted = inner.account.extend(map, geometry, needed.clone(), spare);
        let wanted = self.without_unused(wanted, &needed);
        let shift = geometry.chunk_shift + SECTOR_SHIFT;
        // CAST: At most `COPY_WINDOW` or a chunk.
        let bytes = |run: &Range<u64>| ((run.end - run.start) << shift) as usize;
        let chunk = geometry.chunk_bytes();
        let memory = inner.idle.take([bytes(&wanted), bytes(&needed), chunk])?;
        let run = if memory.len() < bytes(&wanted) {
            let end = needed.start + (memory.len() >> shift) as u64;
            needed.start..needed.end.min(end)
        } else {
            wanted
        };
        let (bio, prepared) = match self.start(&memory, &needed, &run) {
            Ok(started) => started,
            Err(err) => {
                // What is dropped under the lock are pages, and only when memory is short.
                drop(inner.idle.put(memory));
                return Err(err);
            }
        };
        let needs = needed.end.min(run.end) - needed.start;
        inner.account.add(run.end - run.start, needs);
        let sectors = geometry.sectors_in(run.start, run.end - run.start);
        let units = sectors.div_ceil(UNIT_SECTORS);
        self.space.book(units);
        let flight = Flight::new(memory, run.clone(), needs, units, self.busy());
        let index = inner.flights.begin(flight);
        // Before the bio is submitted: see `chunk_map`.
        for old in self.map.claim(prepared).into_iter().flatten() {
            // `has_room_for_old()` has seen to it that there is room.
            let _ = inner.old.push_within_capacity(old);
        }
        if inner.old.len() >= MAX_OLD / 2 {
            let _ = self.resources.storing.enqueue::<_, REAP>(self.clone());
        }
        Ok((bio, index, run.end))
    }

    /// Makes all that it takes to copy `run`, of which `needed` chunks are needed.
    fn start(
        self: &Arc<Self>,
        memory: &Memory,
        needed: &Range<u64>,
        run: &Range<u64>,
    ) -> Result<(NewBio<ReadIo>, PreparedRun)> {
        let prepared = self.map.prepare(run.clone(), needed)?;
        let sector = self.geometry.sector(run.start);
        let sectors = self.geometry.sectors_in(run.start, run.end - run.start);
        let context = ReadIo::new(self, &memory.slot);
        let bio = memory.read(sector, sectors, context)?;
        Ok((bio, prepared))
    }

    /// Frees the windows of the map that were replaced. May sleep.
    pub(super) fn free_old(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        let spare = take(&mut inner.spare);
        let mut old = replace(&mut inner.old, spare);
        drop(inner);
        delay(Point::Replaced);
        OldWindow::free_all(&mut old);
        let mut inner = self.inner.lock();
        inner.spare = old;
        let (kick, images) = inner.let_waiting_try();
        drop(inner);
        self.kick(kick);
        self.requeue(images);
    }

    /// Sends the bios of what was claimed on their way.
    pub(super) fn submit(reads: Reads) {
        delay(Point::Claimed);
        reads.into_iter().flatten().for_each(NewBio::submit);
    }
}
