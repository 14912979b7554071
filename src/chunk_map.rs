// SPDX-License-Identifier: GPL-2.0

//! Where is the data of each chunk, as of the snapshot's instant?
//!
//! One word per chunk, in segments that are allocated when their first chunk is touched: an
//! untouched chunk costs a fraction of a bit, a copied one four bytes, and a snapshot of any size
//! begins with a small table.
//!
//! A chunk's life:
//!
//! ```text
//! Untouched --claim--> Reading --read--> InMemory --stored--> Stored(unit)
//!     ^-----failed-------'
//! ```
//!
//! Only the holder of the copy engine's lock changes states, in that direction. They are looked at
//! without a lock. What the orderings guarantee:
//!
//! - A writer that sees `InMemory` or `Stored` ([`is_safe`](ChunkMap::is_safe), acquire) sees all
//!   that the copier did before (release): the old data has left the device, it may be
//!   overwritten.
//! - A reader of the original that sees `Untouched` *after* its read has completed got old data:
//!   `Reading` is stored before the copier's own read is submitted, hence before the overwriting
//!   write is, and a read that returned the new data was completed by the device after that. A
//!   chunk from which nothing could be read becomes `Untouched` again before any write was let
//!   through.
//!
//! A chunk that is copied although nobody overwrites it yet, see [`ahead`](crate::ahead), has one
//! bit more in its word until somebody does, who takes it away without a lock.

use kernel::{
    alloc::{
        flags::GFP_KERNEL,
        Flags, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        SetOnce, //
    }, //
};

/// The chunk was copied ahead, and has not been overwritten since.
const AHEAD: u32 = 1 << 31;

/// log2 of the number of chunks in a segment: a page of words.
const SEGMENT_SHIFT: u32 = 10;

/// Chunks in a segment.
const SEGMENT: u64 = 1 << SEGMENT_SHIFT;

/// Where a chunk's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the original device.
    Untouched,
    /// On the original device, and being read into memory. Must not be overwritten yet.
    Reading,
    /// In memory, and being stored.
    InMemory,
    /// In the difference storage, beginning at this unit.
    Stored(u32),
}

impl Place {
    /// The largest number of a unit.
    pub(crate) const MAX_UNIT: u32 = AHEAD - 1 - 3;

    fn from_word(word: u32) -> Self {
        match word & !AHEAD {
            0 => Self::Untouched,
            1 => Self::Reading,
            2 => Self::InMemory,
            word => Self::Stored(word - 3),
        }
    }

    fn to_word(self) -> u32 {
        match self {
            Self::Untouched => 0,
            Self::Reading => 1,
            Self::InMemory => 2,
            Self::Stored(unit) => unit.min(Self::MAX_UNIT) + 3,
        }
    }

    /// Whether the original may be overwritten.
    pub(crate) fn is_safe(self) -> bool {
        matches!(self, Self::InMemory | Self::Stored(_))
    }
}

/// The words of the chunks of one segment.
type Segment = KVec<Atomic<u32>>;

/// The places of all chunks of one device.
pub(crate) struct ChunkMap {
    segments: VVec<SetOnce<Segment>>,
    /// How many of them there are.
    allocated: Atomic<usize>,
}

impl ChunkMap {
    /// Makes a map of `chunks` untouched chunks. May sleep.
    pub(crate) fn new(chunks: u64) -> Result<Self> {
        let count = usize::try_from(chunks.div_ceil(SEGMENT))?;
        let mut segments = VVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            segments.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self {
            segments,
            allocated: Atomic::new(0),
        })
    }

    /// The bytes of memory that the map takes.
    pub(crate) fn memory(&self) -> usize {
        self.segments.len() * size_of::<SetOnce<Segment>>()
            + self.allocated.load(Relaxed) * SEGMENT as usize * size_of::<Atomic<u32>>()
    }

    fn segment(&self, chunk: u64) -> Option<&SetOnce<Segment>> {
        self.segments
            .get(usize::try_from(chunk >> SEGMENT_SHIFT).ok()?)
    }

    fn word(&self, chunk: u64) -> Option<&Atomic<u32>> {
        // CAST: Less than `SEGMENT`.
        self.segment(chunk)?
            .as_ref()?
            .get((chunk & (SEGMENT - 1)) as usize)
    }

    /// The place of a chunk.
    #[inline]
    pub(crate) fn get(&self, chunk: u64) -> Place {
        self.word(chunk).map_or(Place::Untouched, |word| {
            Place::from_word(word.load(Acquire))
        })
    }

    /// Makes room for the states of `count` chunks from `first` on, as far as they exist.
    pub(crate) fn prepare(&self, first: u64, count: u64, flags: Flags) -> Result {
        let mut chunk = first;
        while chunk < first.saturating_add(count) {
            let Some(slot) = self.segment(chunk) else {
                break;
            };
            if slot.as_ref().is_none() {
                let mut words = Segment::with_capacity(SEGMENT as usize, flags)?;
                for _ in 0..SEGMENT {
                    words.push(Atomic::new(0u32), flags)?;
                }
                // Somebody else may have been faster, which is as good.
                if slot.populate(words) {
                    self.allocated.add(1, Relaxed);
                }
            }
            chunk = (chunk | (SEGMENT - 1)) + 1;
        }
        Ok(())
    }

    /// Moves an untouched chunk, for which there is room, to [`Place::Reading`].
    pub(crate) fn claim(&self, chunk: u64, ahead: bool) {
        if let Some(word) = self.word(chunk) {
            let ahead = if ahead { AHEAD } else { 0 };
            word.store(Place::Reading.to_word() | ahead, Release);
        }
    }

    /// Moves a chunk that was claimed back to [`Place::Untouched`].
    pub(crate) fn unclaim(&self, chunk: u64) {
        if let Some(word) = self.word(chunk) {
            word.store(Place::Untouched.to_word(), Release);
        }
    }

    /// Moves a chunk that was claimed to a new place.
    pub(crate) fn set(&self, chunk: u64, place: Place) {
        let Some(word) = self.word(chunk) else { return };
        let mut old = word.load(Relaxed);
        // The bit may be taken away beside us, and nothing else may change.
        while old & AHEAD != 0 {
            match word.cmpxchg(old, place.to_word() | AHEAD, Release) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
        word.store(place.to_word(), Release);
    }

    /// Looks whether all chunks from `from` to before `to` may be overwritten, and takes it that
    /// they are now. Returns how many of them had been copied ahead and not overwritten since, or
    /// `None` if not all of them are safe.
    #[inline]
    pub(crate) fn overwrite(&self, from: u64, to: u64) -> Option<u64> {
        let mut all = 0;
        for chunk in from..to {
            let word = self.word(chunk)?.load(Acquire);
            if !Place::from_word(word).is_safe() {
                return None;
            }
            all |= word;
        }
        if all & AHEAD == 0 {
            return Some(0);
        }
        Some((from..to).filter(|&chunk| self.take_ahead(chunk)).count() as u64)
    }

    /// Takes away the bit of a chunk that was copied ahead; tells whether it had it.
    fn take_ahead(&self, chunk: u64) -> bool {
        let Some(word) = self.word(chunk) else {
            return false;
        };
        let mut old = word.load(Relaxed);
        while old & AHEAD != 0 {
            // Relaxed: the state, which stays, is what others go by.
            match word.cmpxchg(old, old & !AHEAD, Relaxed) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
        false
    }

    /// The end of the run of untouched chunks that begins at `from`, at the most `to`.
    pub(crate) fn untouched_until(&self, from: u64, to: u64) -> u64 {
        (from..to)
            .find(|&chunk| self.get(chunk) != Place::Untouched)
            .unwrap_or(to.max(from))
    }

    /// The beginning, at the least `from`, of the run of untouched chunks that ends before `to`.
    pub(crate) fn untouched_since(&self, from: u64, to: u64) -> u64 {
        (from..to)
            .rev()
            .find(|&chunk| self.get(chunk) != Place::Untouched)
            .map_or(from.min(to), |chunk| chunk + 1)
    }

    /// The first run of untouched chunks between `from` and `to`, of at most `most` chunks:
    /// its first chunk and their number.
    pub(crate) fn untouched_run(&self, from: u64, to: u64, most: u64) -> Option<(u64, u64)> {
        let first = (from..to).find(|&chunk| self.get(chunk) == Place::Untouched)?;
        let end = self.untouched_until(first, to.min(first.saturating_add(most)));
        Some((first, end - first))
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_chunk_map)]
mod tests {
    use super::*;

    /// A map with these states around a segment boundary.
    fn map(places: &[Place]) -> Result<ChunkMap> {
        let map = ChunkMap::new(3 * SEGMENT)?;
        map.prepare(START, places.len() as u64, GFP_KERNEL)?;
        for (i, place) in places.iter().enumerate() {
            map.set(START + i as u64, *place);
        }
        Ok(map)
    }

    const START: u64 = SEGMENT - 2;

    #[test]
    fn words_round_trip() {
        for place in [
            Place::Untouched,
            Place::Reading,
            Place::InMemory,
            Place::Stored(0),
            Place::Stored(1),
            Place::Stored(Place::MAX_UNIT),
        ] {
            assert_eq!(Place::from_word(place.to_word()), place);
        }
    }

    #[test]
    fn a_new_map_is_untouched_and_small() -> Result {
        let map = ChunkMap::new(1 << 20)?;
        assert_eq!(map.get(0), Place::Untouched);
        assert_eq!(map.get((1 << 20) - 1), Place::Untouched);
        assert_eq!(map.get(u64::MAX), Place::Untouched);
        assert_eq!(map.overwrite(0, 1), None);
        assert_eq!(map.overwrite(5, 5), Some(0));
        assert_eq!(
            map.segments.iter().filter(|s| s.as_ref().is_some()).count(),
            0
        );
        map.prepare(SEGMENT - 1, 2, GFP_KERNEL)?;
        assert_eq!(
            map.segments.iter().filter(|s| s.as_ref().is_some()).count(),
            2
        );
        Ok(())
    }

    #[test]
    fn only_copied_chunks_are_safe() -> Result {
        use Place::*;
        let map = map(&[InMemory, Stored(7), Reading, Stored(9), Untouched])?;
        assert_eq!(map.overwrite(START, START + 2), Some(0));
        assert_eq!(map.overwrite(START, START + 3), None);
        assert_eq!(map.overwrite(START + 3, START + 4), Some(0));
        assert_eq!(map.overwrite(START + 3, START + 5), None);
        assert_eq!(map.get(START + 1), Stored(7));
        Ok(())
    }

    #[test]
    fn what_was_copied_ahead_is_counted_once() -> Result {
        let map = map(&[Place::Untouched; 4])?;
        for (chunk, ahead) in [(START, true), (START + 1, false), (START + 2, true)] {
            map.claim(chunk, ahead);
            assert_eq!(map.get(chunk), Place::Reading);
        }
        assert_eq!(map.overwrite(START, START + 1), None);
        for chunk in START..START + 3 {
            map.set(chunk, Place::InMemory);
        }
        assert_eq!(map.overwrite(START, START + 4), None);
        assert_eq!(map.overwrite(START, START + 2), Some(1));
        assert_eq!(map.overwrite(START, START + 2), Some(0));
        for chunk in START..START + 3 {
            map.set(chunk, Place::Stored(9));
            assert_eq!(map.get(chunk), Place::Stored(9));
        }
        assert_eq!(map.overwrite(START, START + 3), Some(1));
        assert_eq!(map.overwrite(START, START + 3), Some(0));
        map.claim(START + 3, true);
        map.unclaim(START + 3);
        assert_eq!(map.get(START + 3), Place::Untouched);
        Ok(())
    }

    #[test]
    fn runs_of_untouched_chunks() -> Result {
        use Place::*;
        let map = map(&[
            Stored(1),
            Untouched,
            Untouched,
            Untouched,
            Reading,
            Untouched,
        ])?;
        assert_eq!(map.untouched_run(START, START + 6, 9), Some((START + 1, 3)));
        assert_eq!(map.untouched_run(START, START + 6, 2), Some((START + 1, 2)));
        assert_eq!(
            map.untouched_run(START + 4, START + 6, 9),
            Some((START + 5, 1))
        );
        assert_eq!(map.untouched_run(START + 4, START + 5, 9), None);
        assert_eq!(map.untouched_run(START, START, 9), None);
        assert_eq!(map.untouched_until(START + 1, START + 6), START + 4);
        assert_eq!(map.untouched_until(START, START + 6), START);
        Ok(())
    }
}
