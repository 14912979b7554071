// SPDX-License-Identifier: GPL-2.0

//! The copies under way of one engine, and which of them are to be stored together.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bio::{
            BioList,
            OwnedBio, //
        },
        filter::HeldList, //
    },
    prelude::*,
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use core::ops::Range;

use crate::{
    base::units::UNIT_SHIFT,
    copying::{
        inflight::Busy,
        memory::Memory, //
    }, //
};

/// Copies that are stored by one bio at the most.
pub(super) const BATCH: usize = 16;

/// Units that are stored by one bio at the most: as many as its pages.
const MAX_UNITS: u64 = (kernel::block::bio_set::MAX_BUFFER_BIO >> UNIT_SHIFT) as u64;

/// A copy under way.
pub(super) struct Flight {
    /// The chunks.
    pub(super) run: Range<u64>,
    /// How many of them were needed; the others are copied ahead.
    pub(super) needed: u64,
    pub(super) memory: Memory,
    /// The units of difference storage that it takes.
    pub(super) units: u64,
    /// The first of them, once there is a place.
    pub(super) unit: Option<u32>,
    /// Since when the old data is in memory.
    in_memory: Option<Instant<Monotonic>>,
    /// Writes that wait until it is.
    pub(super) writers: HeldList,
    /// Parts of image bios that wait until it was stored.
    images: BioList,
    /// How many flights began before.
    number: u64,
    busy: Busy,
}

impl Flight {
    /// Begins to copy `run`, of which `needed` chunks are needed and which takes `units` units.
    pub(super) fn new(
        memory: Memory,
        run: Range<u64>,
        needed: u64,
        units: u64,
        busy: Busy,
    ) -> Self {
        Self {
            run,
            needed,
            memory,
            units,
            unit: None,
            in_memory: None,
            writers: HeldList::new(),
            images: BioList::new(),
            number: 0,
            busy,
        }
    }

    /// The number of chunks.
    pub(super) fn chunks(&self) -> u64 {
        self.run.end - self.run.start
    }

    fn overlaps(&self, from: u64, to: u64) -> bool {
        self.run.start < to && from < self.run.end
    }

    /// Whether image bios wait until it was stored.
    pub(super) fn has_parked_bios(&self) -> bool {
        !self.images.is_empty()
    }

    /// Takes the image bios that waited.
    pub(super) fn take_images(&mut self) -> BioList {
        self.images.take()
    }

    /// The memory, to be given back, and what is to be dropped last.
    pub(super) fn into_parts(self) -> (Memory, Busy) {
        (self.memory, self.busy)
    }
}

/// The copies under way. A flight's index is that of its slot.
pub(super) struct Flights {
    slots: KVec<Option<Flight>>,
    count: usize,
    /// Flights whose old data is in memory.
    in_memory: usize,
    /// Flights that parts of image bios wait for.
    with_parked_bios: usize,
    /// How many ever began.
    began: u64,
    /// Flights that were read and have no place, in the order in which that happened.
    unstored: KVec<usize>,
    /// What these need.
    unstored_units: u64,
    /// How many units are worth a bio, however few copies these are of.
    worth: u64,
}

impl Flights {
    /// Nothing is under way; at the most `copies` copies will be, with `memory` bytes of memory.
    pub(super) fn new(copies: usize, memory: usize) -> Result<Self> {
        let mut slots = KVec::with_capacity(copies, GFP_KERNEL)?;
        for _ in 0..copies {
            slots.push(None, GFP_KERNEL)?;
        }
        Ok(Self {
            slots,
            count: 0,
            in_memory: 0,
            with_parked_bios: 0,
            began: 0,
            unstored: KVec::with_capacity(copies, GFP_KERNEL)?,
            unstored_units: 0,
            // Writers shall not wait for memory that waits to be stored.
            worth: ((memory / 4) as u64 >> UNIT_SHIFT).clamp(1, MAX_UNITS),
        })
    }

    /// How many there can be.
    pub(super) fn most(&self) -> usize {
        self.slots.len()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many of them have their old data in memory.
    pub(super) fn in_memory(&self) -> usize {
        self.in_memory
    }

    /// Whether parts of image bios wait for one of them.
    pub(super) fn have_parked_bios(&self) -> bool {
        self.with_parked_bios != 0
    }

    /// A flight begins. Returns its index.
    pub(super) fn begin(&mut self, mut flight: Flight) -> usize {
        let index = flight.memory.slot.index();
        flight.number = self.began;
        if let Some(slot) = self.slots.get_mut(index) {
            self.began += 1;
            self.count += 1;
            *slot = Some(flight);
        }
        index
    }

    /// A flight.
    pub(super) fn get(&mut self, index: usize) -> Option<&mut Flight> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// The flight that began last of those that are still being read and have chunks from `from`
    /// to before `to`.
    pub(super) fn last_reading(&self, from: u64, to: u64) -> Option<usize> {
        let reading = |flight: &&Flight| flight.in_memory.is_none() && flight.overlaps(from, to);
        let all = self.slots.iter().flatten().filter(reading);
        let last = all.max_by_key(|flight| flight.number)?;
        Some(last.memory.slot.index())
    }

    /// Has a part of an image bio wait for the flight that copies `chunk`. Gives the bio back if
    /// there is none.
    pub(super) fn park(&mut self, chunk: u64, bio: OwnedBio) -> Option<OwnedBio> {
        let mut all = self.slots.iter_mut().flatten();
        let Some(flight) = all.find(|flight| flight.overlaps(chunk, chunk + 1)) else {
            return Some(bio);
        };
        self.with_parked_bios += usize::from(flight.images.is_empty());
        flight.images.push(bio);
        None
    }

    /// Takes the image bios that wait for any of them.
    pub(super) fn take_parked(&mut self) -> BioList {
        let mut parked = BioList::new();
        for flight in self.slots.iter_mut().flatten() {
            parked.append(flight.images.take());
        }
        self.with_parked_bios = 0;
        parked
    }

    /// The old data of a flight is in memory, and is to be stored. Returns the writes that waited
    /// for it.
    pub(super) fn mark_read(&mut self, index: usize) -> HeldList {
        let Some(flight) = self.slots.get_mut(index).and_then(Option::as_mut) else {
            return HeldList::new();
        };
        self.in_memory += usize::from(flight.in_memory.is_none());
        flight.in_memory = Some(Instant::now());
        // There is room for all.
        let _ = self.unstored.push_within_capacity(index);
        self.unstored_units += flight.units;
        flight.writers.take()
    }

    /// For how long the oldest copy has been in memory, and not been stored.
    pub(super) fn oldest_in_memory(&self) -> Delta {
        let all = self.slots.iter().flatten();
        let ages = all.filter_map(|flight| Some(flight.in_memory?.elapsed()));
        ages.max().unwrap_or(Delta::ZERO)
    }

    /// Whether there is something to be stored.
    pub(super) fn has_unstored(&self) -> bool {
        !self.unstored.is_empty()
    }

    /// Whether enough has been read to be stored.
    pub(super) fn has_full_batch(&self) -> bool {
        self.unstored.len() >= BATCH || self.unstored_units >= self.worth
    }

    /// The next flights to be stored by one bio, at the most `most`: how many, and what they need.
    pub(super) fn batch(&self, most: usize) -> (usize, u64) {
        let (mut count, mut units) = (0, 0);
        for &index in self.unstored.iter().take(most.min(BATCH)) {
            let Some(Some(flight)) = self.slots.get(index) else {
                break;
            };
            if count > 0 && units + flight.units > MAX_UNITS {
                break;
            }
            count += 1;
            units += flight.units;
        }
        (count, units)
    }

    /// Gives the next flight to be stored its place.
    pub(super) fn place(&mut self, unit: u32) -> Option<&mut Flight> {
        let index = self.next_unstored()?;
        let flight = self.slots.get_mut(index)?.as_mut()?;
        flight.unit = Some(unit);
        Some(flight)
    }

    /// Takes the next flight out of those to be stored.
    fn next_unstored(&mut self) -> Option<usize> {
        let index = self.unstored.remove(0).ok()?;
        self.unstored_units -= self.get(index)?.units;
        Some(index)
    }

    /// Ends the next flight that was to be stored.
    pub(super) fn end_unstored(&mut self) -> Option<Flight> {
        let index = self.next_unstored()?;
        self.end(index)
    }

    /// A flight ends. It must not be one to be stored.
    pub(super) fn end(&mut self, index: usize) -> Option<Flight> {
        let flight = self.slots.get_mut(index)?.take()?;
        self.count -= 1;
        self.in_memory -= usize::from(flight.in_memory.is_some());
        self.with_parked_bios -= usize::from(!flight.images.is_empty());
        Some(flight)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kernel::macros::kunit_tests(blksnap_flights)]
mod tests {
    use super::*;
    use crate::copying::{
        inflight::InFlight,
        memory::Idle, //
    };

    /// More than matters.
    const MEMORY: usize = 1 << 30;

    /// Begins a flight that copies `run` in the slot `index`; a chunk is a unit.
    fn begin(flights: &mut Flights, index: usize, run: Range<u64>) -> Result {
        let units = run.end - run.start;
        let busy = Busy::new(&InFlight::new()?);
        // The one that is taken last.
        let mut idle = Idle::new(index + 1, 0, 1 << UNIT_SHIFT, usize::MAX)?;
        let mut memory = idle.take([1 << UNIT_SHIFT; 3])?;
        while memory.slot.index() < index {
            memory = idle.take([1 << UNIT_SHIFT; 3])?;
        }
        let flight = Flight::new(memory, run, 1, units, busy);
        assert_eq!(flights.begin(flight), index);
        Ok(())
    }

    #[test]
    fn the_one_that_began_last_is_with_parked_bios() -> Result {
        let mut flights = Flights::new(4, MEMORY)?;
        begin(&mut flights, 3, 0..8)?;
        begin(&mut flights, 0, 8..16)?;
        begin(&mut flights, 2, 16..17)?;
        assert_eq!(flights.last_reading(0, 16), Some(0));
        assert_eq!(flights.last_reading(7, 8), Some(3));
        assert_eq!(flights.last_reading(15, 99), Some(2));
        assert_eq!(flights.last_reading(17, 99), None);
        let _ = flights.mark_read(0);
        assert_eq!(flights.last_reading(0, 16), Some(3));
        assert_eq!((flights.count(), flights.in_memory()), (3, 1));
        Ok(())
    }

    #[test]
    fn a_batch_is_what_one_bio_takes() -> Result {
        let mut flights = Flights::new(4 * BATCH, MEMORY)?;
        for i in 0..BATCH + 3 {
            let chunk = i as u64 * 2;
            begin(&mut flights, i, chunk..chunk + 2)?;
            assert!(!flights.has_full_batch());
        }
        assert_eq!(flights.batch(BATCH), (0, 0));
        for i in 0..BATCH + 3 {
            assert_eq!(flights.has_full_batch(), i >= BATCH);
            let _ = flights.mark_read(i);
        }
        assert_eq!(flights.batch(1), (1, 2));
        assert_eq!(flights.batch(BATCH), (BATCH, 2 * BATCH as u64));
        for i in 0..BATCH {
            let flight = flights.place(2 * i as u32).ok_or(EINVAL)?;
            assert_eq!(flight.run.start, 2 * i as u64);
        }
        assert!(!flights.has_full_batch());
        assert_eq!(flights.batch(BATCH), (3, 6));
        for i in 0..BATCH {
            assert_eq!(
                flights.end(i).and_then(|flight| flight.unit),
                Some(2 * i as u32)
            );
        }
        assert!(flights.end(0).is_none());
        assert_eq!(
            flights.end_unstored().map(|flight| flight.run),
            Some(32..34)
        );
        assert_eq!((flights.count(), flights.in_memory()), (2, 2));
        Ok(())
    }

    #[test]
    fn a_bio_has_so_many_pages() -> Result {
        let mut flights = Flights::new(16, MEMORY)?;
        for i in 0..3 {
            let chunk = i as u64 * MAX_UNITS;
            begin(&mut flights, i, chunk..chunk + MAX_UNITS / 2 + 1)?;
            let _ = flights.mark_read(i);
        }
        assert!(flights.has_full_batch());
        assert_eq!(flights.batch(BATCH), (1, MAX_UNITS / 2 + 1));
        Ok(())
    }

    #[test]
    fn what_is_unstored_takes_a_fourth_of_the_memory() -> Result {
        let mut flights = Flights::new(2, 128 << UNIT_SHIFT)?;
        begin(&mut flights, 0, 0..31)?;
        begin(&mut flights, 1, 32..33)?;
        let _ = flights.mark_read(0);
        assert!(!flights.has_full_batch());
        let _ = flights.mark_read(1);
        assert!(flights.has_full_batch());
        Ok(())
    }
}
