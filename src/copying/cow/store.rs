// SPDX-License-Identifier: GPL-2.0

//! Storing what was read: a batch of copies gets a place, and is written there.
//!
//! One bio stores the data of several copies if their place is in one piece. Nobody waits for that
//! but readers of the image, and writers that find no copy.

use kernel::{
    block::{
        bio::Op,
        bio_set::{
            bytes_to_sectors,
            EndIo,
            NewBio,
            Piece, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

use core::{
    array,
    ops::Range, //
};

use super::{
    ends::StoreIo,
    flights::BATCH,
    Cow, //
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
        units::SECTOR_SHIFT, //
    },
    copying::{
        chunk_map::Place,
        memory::{
            CopySlot,
            Unstored, //
        }, //
    }, //
};

/// Copies that are stored together.
type Batch = [Option<Unstored>; BATCH];

/// What the bytes from `from` to before `to` of a batch consist of: copies, and bytes of them.
fn parts(
    batch: &Batch,
    from: usize,
    to: usize,
) -> impl Iterator<Item = (&Unstored, Range<usize>)> + Clone {
    let mut end = 0;
    batch.iter().flatten().filter_map(move |one| {
        let start = end;
        end += one.padded();
        let (from, to) = (from.max(start), to.min(end));
        (from < to).then(|| (one, from - start..to - start))
    })
}

impl Cow {
    /// Stores the next batch of what was read, if `all` or if it is worth a bio. Tells whether
    /// there was one. May sleep.
    pub(super) fn store_batch(self: &Arc<Self>, all: bool) -> bool {
        let mut inner = self.inner.lock();
        if !all && !inner.flights.has_full_batch() {
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
            Some(flight.memory.unstored(sectors))
        });
        drop(inner);
        self.space.copied.fetch_add(copied, Relaxed);
        self.submit_stores(unit, &batch);
        true
    }

    /// Finds a place for `units` units of old data.
    fn place(&self, units: u64) -> Result<u32> {
        if self.passes_writes() {
            return Err(EIO);
        }
        self.space.alloc(units)
    }

    /// Stores the data of a batch, one copy after the other from `unit` on. May sleep.
    ///
    /// At the end of each copy [`queue_store_ends`](Self::queue_store_ends) is called.
    fn submit_stores(self: &Arc<Self>, unit: u32, batch: &Batch) {
        let mut total = 0;
        for one in batch.iter().flatten() {
            one.zero_padding();
            total += one.padded();
            one.slot.begin_pending();
        }
        delay(Point::Placed);
        let mut done = 0;
        while done < total {
            let (skip, rest) = (bytes_to_sectors(done), bytes_to_sectors(total - done));
            let extent = self.space.locate(unit, skip, rest);
            let Some(extent) = extent.filter(|_| self.health.begin_write()) else {
                parts(batch, done, total).for_each(|(one, _)| one.slot.note(Err(EIO)));
                break;
            };
            // CAST: At most `total`.
            let end = done + (extent.sectors << SECTOR_SHIFT) as usize;
            let parts = parts(batch, done, end);
            let mut slots = parts.clone().map(|(one, _)| {
                one.slot.get_pending();
                one.slot.clone()
            });
            let context = StoreIo::new(self, array::from_fn(|_| slots.next()), extent.target);
            let pieces = parts.map(|(one, bytes)| Piece {
                buffer: &one.buffer,
                offset: bytes.start,
                bytes: bytes.end - bytes.start,
            });
            match NewBio::new(Op::Write, extent.sector, pieces, context) {
                Ok(bio) => bio.submit(),
                Err(context) => context.end_io(None, Err(ENOMEM)),
            }
            done = end;
        }
        let mut submitted = batch.iter().flatten();
        let ended = array::from_fn(|_| {
            let slot = &submitted.next()?.slot;
            slot.put_pending().then(|| slot.clone())
        });
        self.queue_store_ends(ended);
    }

    /// A copy was stored, or failed to be.
    pub(super) fn finish_store(self: &Arc<Self>, slot: &CopySlot) {
        delay(Point::Stored);
        let index = slot.index();
        let mut inner = self.inner.lock();
        if let Err(err) = slot.result() {
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
}
