// SPDX-License-Identifier: GPL-2.0

//! The original device and the difference storage. A chunk has one sector.

use core::{
    ops::Range,
    sync::atomic::{AtomicU32 as Counter, Ordering::Relaxed as Counting},
};
use kernel::sync::turn::Turn;
use loom::{
    cell::UnsafeCell,
    sync::atomic::{
        AtomicU32,
        Ordering::{Acquire, Release},
    },
};

use crate::{Failed, JUNK, OLD, chunk_map::Place};

/// The original.
pub struct Origin {
    sectors: Vec<Sector>,
    /// Cannot be read.
    bad: Option<u64>,
}

struct Sector {
    data: Turn<AtomicU32>,
    /// Who overwrites it, by the number of the thread, is ordered after the copier's read.
    order: [UnsafeCell<()>; 3],
}

impl Origin {
    pub fn new(chunks: u64, bad: Option<u64>) -> Self {
        let sector = |_| Sector {
            data: Turn::new(AtomicU32::new(OLD)),
            order: core::array::from_fn(|_| UnsafeCell::new(())),
        };
        Self {
            sectors: (0..chunks).map(sector).collect(),
            bad,
        }
    }

    /// The read of a copier: nobody may overwrite meanwhile.
    pub fn read(&self, run: Range<u64>) -> Result<Vec<u32>, Failed> {
        let read = |chunk| {
            let sector = &self.sectors[chunk as usize];
            sector.order.iter().for_each(|order| order.with(|_| ()));
            let data = sector.data.take().load(Acquire);
            sector.order.iter().for_each(|order| order.with(|_| ()));
            data
        };
        match self.bad {
            Some(bad) if run.contains(&bad) => Err(Failed),
            _ => Ok(run.map(read).collect()),
        }
    }

    /// The read of an image's reader: somebody may.
    pub fn read_optimistic(&self, chunk: u64) -> u32 {
        self.sectors[chunk as usize].data.take().load(Acquire)
    }

    pub fn write(&self, chunk: u64, data: u32, thread: usize) {
        self.sectors[chunk as usize].order[thread].with_mut(|_| ());
        self.write_unused(chunk, data);
    }

    /// A write to an unused chunk waits for no copier.
    pub fn write_unused(&self, chunk: u64, data: u32) {
        self.sectors[chunk as usize]
            .data
            .take()
            .store(data, Release);
    }
}

/// 4 KiB of the difference storage.
struct Unit {
    data: Turn<AtomicU32>,
    /// Who looks at it is ordered after the copier's store.
    order: UnsafeCell<()>,
}

/// The difference storage.
pub struct Storage {
    units: Vec<Unit>,
    /// Not loom's: as if this ordered nothing.
    filled: Counter,
    /// How often each chunk was stored.
    pub stored: Vec<Counter>,
}

impl Storage {
    pub fn new(units: usize, chunks: u64) -> Self {
        Self {
            units: (0..units)
                .map(|_| Unit {
                    data: Turn::new(AtomicU32::new(JUNK)),
                    order: UnsafeCell::new(()),
                })
                .collect(),
            filled: Counter::new(0),
            stored: (0..chunks).map(|_| Counter::new(0)).collect(),
        }
    }

    pub fn alloc(&self, units: usize) -> Result<u32, Failed> {
        let first = self.filled.load(Counting);
        if first as usize + units > self.units.len() {
            return Err(Failed);
        }
        self.filled.store(first + units as u32, Counting);
        Ok(first)
    }

    /// The write of a copier.
    pub fn store(&self, unit: u32, data: u32) {
        let unit = &self.units[unit as usize];
        unit.order.with_mut(|_| ());
        unit.data.take().store(data, Release);
    }

    /// A write to the image.
    pub fn write(&self, unit: u32, data: u32) {
        let unit = &self.units[unit as usize];
        unit.order.with(|_| ());
        unit.data.take().store(data, Release);
    }

    pub fn read(&self, unit: u32) -> u32 {
        let unit = &self.units[unit as usize];
        unit.order.with(|_| ());
        unit.data.take().load(Acquire)
    }

    pub fn read_place(&self, place: Place) -> u32 {
        match place {
            Place::Stored(unit) => self.read(unit),
            _ => JUNK,
        }
    }
}
