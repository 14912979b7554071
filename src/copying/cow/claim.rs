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
        swap,
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

/// What to do with something that wants chunks to be copied.
pub(super) enum Next {
    /// Go on: all of them are safe.
    Safe,
    /// Wait for this flight, which is being read.
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
        let most = (COPY_WINDOW >> (self.geometry.chunk_shift + SECTOR_SHIFT)).max(1);
        let from = inner.skip_safe(from, to);
        let mut at = from;
        let mut short = false;
        let mut last = None;
        for slot in reads {
            let Some(run) = self.map.untouched_run(at, to, most) else {
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
        let mut memory = inner.free.pop().ok_or(EBUSY)?;
        inner.idle_bytes -= memory.len();
        let spare = || self.space.spare() >> self.geometry.chunk_shift;
        let (map, geometry) = (&self.map, &self.geometry);
        let wanted = inner.account.extend(map, geometry, needed.clone(), spare);
        let mut started = self.start(&mut memory, &needed, &wanted);
        if started.is_err() {
            // One of the reserved ones has memory.
            let chunk = self.geometry.chunk_bytes();
            if let Some(other) = inner.free.iter_mut().find(|other| other.len() >= chunk) {
                inner.idle_bytes += memory.len();
                inner.idle_bytes -= other.len();
                swap(&mut memory, other);
                started = self.start(&mut memory, &needed, &wanted);
            }
        }
        let (bio, prepared, run) = match started {
            Ok(started) => started,
            Err(err) => {
                inner.idle_bytes += memory.len();
                let _ = inner.free.push_within_capacity(memory);
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

    /// Makes all that it takes to copy `wanted`, or as much of `needed` as there is memory for.
    fn start(
        self: &Arc<Self>,
        memory: &mut Memory,
        needed: &Range<u64>,
        wanted: &Range<u64>,
    ) -> Result<(NewBio<ReadIo>, PreparedRun, Range<u64>)> {
        let shift = self.geometry.chunk_shift + SECTOR_SHIFT;
        // CAST: At most `COPY_WINDOW` or a chunk.
        let all = ((wanted.end - wanted.start) << shift) as usize;
        let room = memory.grow(all, self.geometry.chunk_bytes())?;
        let run = if room < all {
            let end = needed.start + (room >> shift) as u64;
            needed.start..needed.end.min(end)
        } else {
            wanted.clone()
        };
        let prepared = self.map.prepare(run.clone(), needed)?;
        let sector = self.geometry.sector(run.start);
        let sectors = self.geometry.sectors_in(run.start, run.end - run.start);
        let context = ReadIo::new(self, &memory.slot);
        let bio = memory.read(&self.origin, sector, sectors, context)?;
        Ok((bio, prepared, run))
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
