// SPDX-License-Identifier: GPL-2.0

//! What was not used at the instant, and need not be copied.
//!
//! Writes to the original pass there. The image shows zeroes, of an untouched chunk at least: one
//! that was copied before it was given stays as it is, as it may have been written to since. To
//! write to the image at an unused chunk it is copied like others, but what is stored are zeroes.
//!
//! Bits in [`Unused`] are set once, and never cleared; that, and a chunk's change from `Reading` to
//! `InMemory`, happen under `inner`'s lock. Before the first of them is set, [`Blank`] says so: who
//! sees a bit, or holds the lock after who has set it, sees that, too. So where it says that there
//! are none, nobody has to look at them. Why the image never shows what was written there to the
//! original:
//!
//! - *A copy.* When it was read, the bits of its chunks are looked at under the lock, and those
//!   that are unused are zeroed. If the read returned new data, a write had passed, before the
//!   device completed the read: either because the chunk was safe, which it was not, or because it
//!   was unused. Who let the write pass has seen the bit (acquire; it was set with release), so it
//!   is seen now.
//! - *A read of the original* by the image, sent when the chunk was needed: its end looks at the
//!   bits again, as it does at the places. If it returned new data because the chunk is unused, the
//!   bit is seen for the same reason, and the read is done again.
//! - *An untouched chunk* whose bit was seen first, and its place afterwards: no copy of what was
//!   on the original is made any more. One that had been read when the bit was set had left
//!   `Untouched` before, and under the lock, so that would have been seen; and what is read later
//!   is zeroed.

use kernel::{
    prelude::*,
    sync::atomic::Release, //
};

use core::ops::Range;

#[cfg(doc)]
use crate::copying::unused::Unused;
use crate::{
    base::{
        faults::{
            planted,
            Fault, //
        },
        units::SECTOR_SHIFT, //
    },
    copying::memory::Memory, //
};

use super::{
    Blank,
    Cow, //
};

impl Cow {
    /// Ranges of the device, given as first sector and number of sectors, had no meaning at the
    /// instant. Of chunks that are in such a range with a part only, nothing is remembered. May
    /// sleep; calls must not overlap in time. What was given before it fails with `ENOMEM` stays.
    pub(crate) fn give_unused(&self, ranges: &[(u64, u64)]) -> Result {
        for &(first, count) in ranges {
            let chunks = self
                .geometry
                .chunks_inside(first, first.saturating_add(count));
            for part in self.unused.parts(chunks) {
                if !self.blank().has_unused() {
                    // Release, as that of the bits, which come after it.
                    self.blank.fetch_add(Blank::UNUSED, Release);
                }
                self.unused.prepare(&part)?;
                let _inner = self.inner.lock();
                self.unused.give(part);
            }
        }
        Ok(())
    }

    /// How many sectors were given, in whole chunks.
    pub(crate) fn unused_sectors(&self) -> u64 {
        let chunks = self.geometry.chunks();
        let sectors = self.geometry.sector(self.unused.count());
        // The last chunk may be short.
        let missing = self.geometry.sector(chunks) - self.geometry.sectors;
        match self.unused.next(chunks.saturating_sub(1), chunks) {
            end if end == chunks => sectors,
            _ => sectors.saturating_sub(missing),
        }
    }

    /// The end, at the most `to`, of the run of unused chunks that begins at `from`. For readers of
    /// the image: to be called before they look at the places.
    #[inline]
    pub(crate) fn unused_until(&self, from: u64, to: u64) -> u64 {
        self.unused.until(from, to)
    }

    /// The first unused chunk from `from` on, or `to`.
    #[inline]
    pub(crate) fn next_unused(&self, from: u64, to: u64) -> u64 {
        self.unused.next(from, to)
    }

    /// The end, at the most `to`, of the run of chunks from `from` on that may be overwritten, as
    /// they are safe or unused. That stays so.
    pub(super) fn passable_until(&self, from: u64, to: u64) -> u64 {
        let mut at = from;
        while at < to {
            let end = self.unused.until(self.map.safe_until(at, to), to);
            if end == at {
                break;
            }
            at = end;
        }
        at
    }

    /// Whether a write may pass that is about unused chunks, and others that are safe.
    #[inline]
    pub(super) fn is_passable(&self, from: u64, to: u64) -> bool {
        self.blank().has_unused() && self.passable_until(from, to) == to
    }

    /// The first run of untouched chunks between `from` and `to` that are not unused, of at most
    /// `most` chunks.
    pub(super) fn needed_run(&self, from: u64, to: u64, most: u64) -> Option<Range<u64>> {
        let mut at = from;
        loop {
            let run = self.map.untouched_run(at, to, most)?;
            if !self.blank().has_unused() {
                return Some(run);
            }
            let start = self.unused.until(run.start, to);
            if start < run.end {
                return Some(start..self.unused.next(start, run.end));
            }
            at = start;
        }
    }

    /// The part of `wanted`, around `needed`, that has no unused chunks beside that.
    pub(super) fn without_unused(&self, wanted: Range<u64>, needed: &Range<u64>) -> Range<u64> {
        if !self.blank().has_unused() {
            return wanted;
        }
        let start = self.unused.needed_since(wanted.start, needed.start);
        let end = self.unused.next(needed.end, wanted.end);
        start..end
    }

    /// Zeroes what was read of unused chunks of `run`, which `memory` has from its beginning on.
    /// With `inner` locked.
    pub(super) fn zero_unused(&self, run: &Range<u64>, memory: &Memory) {
        let shift = self.geometry.chunk_shift + SECTOR_SHIFT;
        let mut at = self.unused.next(run.start, run.end);
        while at < run.end && !planted(Fault::StoreUnused) {
            let end = self.unused.until(at, run.end);
            // CAST: At most the memory's size.
            let bytes = |chunk: u64| ((chunk - run.start) << shift) as usize;
            memory.zero(bytes(at), bytes(end));
            at = self.unused.next(end, run.end);
        }
    }
}
