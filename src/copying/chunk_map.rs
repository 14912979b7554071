// SPDX-License-Identifier: GPL-2.0

//! Where is the data of each chunk, as of the snapshot's instant?
//!
//! One word per chunk that was ever touched. The words of 64 adjacent chunks, a *window*, lie in a
//! sparse array; the slots of 64 windows make a *group*. Either is allocated when its first chunk
//! is touched. So the map takes at most 10 bytes for a copied chunk and 2 bits for
//! another one, however these are spread, and a snapshot of any size begins with a small table.
//!
//! A chunk's life:
//!
//! ```text
//! Untouched --claim--> Reading --read--> InMemory --stored--> Stored(unit)
//!     ^-----failed-------'
//! ```
//!
//! Only the holder of the copy engine's lock changes anything, and states only in that direction.
//! Others look at them without a lock, under RCU: when more chunks of a window are touched, a new
//! window with a copy of its words replaces it, and the old one does not change any more. What the
//! orderings guarantee:
//!
//! - A writer that sees `InMemory` or `Stored` ([`is_safe`](Place::is_safe), acquire) sees all
//!   that the copier did before (release): the old data has left the device, it may be
//!   overwritten. That stays true, so an old window may say so, too.
//! - A reader of the original that sees `Untouched` *after* its read has completed got old data:
//!   `Reading` is published before the copier's own read is submitted, hence before the
//!   overwriting write is, and a read that returned the new data was completed by the device after
//!   that; a window that is found then is the one that was published, or a later one. A chunk from
//!   which nothing could be read becomes `Untouched` again before any write was let through.
//!
//! A chunk that is copied although nobody overwrites it yet, see [`ahead`](crate::copying::ahead),
//! has one bit more in its word until somebody does.
//!
//! This file has the words, and what changes them; [`runs`] is what is asked of them.

use kernel::{
    alloc::flags::{
        __GFP_NOWARN,
        GFP_ATOMIC,
        GFP_KERNEL, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu,
        sparse::{
            Items,
            Iter,
            RcuSlot,
            Retired,
            SparseArray, //
        },
        SetOnce, //
    }, //
};

use core::ops::Range;

use crate::base::units::MAX_UNIT;

mod runs;

pub(crate) use runs::Overwrite;

/// The chunk was copied ahead, and has not been overwritten since.
const AHEAD: u32 = 1 << 31;

const _: () = assert!(MAX_UNIT + 3 < AHEAD);

/// log2 of the number of chunks in a window.
const WINDOW_SHIFT: u32 = 6;

/// Chunks in a window.
const WINDOW: u64 = 1 << WINDOW_SHIFT;

/// log2 of the number of windows in a group.
const GROUP_SHIFT: u32 = 6;

/// The windows of a group.
type Group = [RcuSlot<Word>; 1 << GROUP_SHIFT];

/// The largest number of chunks that are claimed at once.
// Used in an assertion only, which rustc 1.85 does not count.
#[allow(dead_code)]
pub(crate) const MAX_RUN: u64 = WINDOW;

/// The largest number of windows that such a run lies in.
pub(crate) const MAX_WINDOWS: usize = 2;

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
            Self::Stored(unit) => unit.min(MAX_UNIT) + 3,
        }
    }

    /// Whether the original may be overwritten.
    pub(crate) fn is_safe(self) -> bool {
        matches!(self, Self::InMemory | Self::Stored(_))
    }
}

type Word = Atomic<u32>;

/// A window that was replaced.
pub(crate) type OldWindow = Retired<Word>;

/// The windows that a run of chunks needs to be claimed.
pub(crate) struct PreparedRun {
    run: Range<u64>,
    windows: [Option<SparseArray<Word>>; MAX_WINDOWS],
}

/// The words of those chunks of a window that were ever touched, with their chunks.
struct Words<'a> {
    /// The first chunk of the window.
    base: u64,
    items: Option<Iter<'a, Word>>,
}

impl<'a> Iterator for Words<'a> {
    type Item = (u64, &'a Word);

    #[inline]
    fn next(&mut self) -> Option<(u64, &'a Word)> {
        let (index, word) = self.items.as_mut()?.next()?;
        Some((self.base + u64::from(index), word))
    }
}

/// The places of all chunks of one device.
pub(crate) struct ChunkMap {
    groups: VVec<SetOnce<KBox<Group>>>,
    /// The bytes of memory of groups and windows.
    memory: Atomic<usize>,
}

impl ChunkMap {
    /// Makes a map of `chunks` untouched chunks. May sleep.
    pub(crate) fn new(chunks: u64) -> Result<Self> {
        let count = usize::try_from(chunks.div_ceil(1 << (GROUP_SHIFT + WINDOW_SHIFT)))?;
        let mut groups = VVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            groups.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self {
            groups,
            memory: Atomic::new(0),
        })
    }

    /// The bytes of memory that the map takes.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(self.groups.as_slice()) + self.memory.load(Relaxed)
    }

    fn group(&self, chunk: u64) -> Option<&SetOnce<KBox<Group>>> {
        let group = usize::try_from(chunk >> (GROUP_SHIFT + WINDOW_SHIFT)).ok()?;
        self.groups.get(group)
    }

    #[inline]
    fn slot(&self, chunk: u64) -> Option<&RcuSlot<Word>> {
        // CAST: Masked.
        let window = (chunk >> WINDOW_SHIFT) as usize & ((1 << GROUP_SHIFT) - 1);
        self.group(chunk)?.as_ref()?.get(window)
    }

    /// Looks at the chunks from `from` to before `to`, window by window, until `look` returns
    /// something. It gets the range of chunks, and the words of those that were ever touched.
    #[inline]
    fn scan<R>(
        &self,
        from: u64,
        to: u64,
        mut look: impl FnMut(Range<u64>, Words<'_>) -> Option<R>,
    ) -> Option<R> {
        if from >= to {
            return None;
        }
        let guard = rcu::read_lock();
        let mut at = from;
        while at < to {
            let base = at & !(WINDOW - 1);
            let end = base.saturating_add(WINDOW).min(to);
            let items = self.slot(at).and_then(|slot| slot.get(&guard));
            // CAST: At most `WINDOW`.
            let part = items.map(|items| items.between((at - base) as u32, (end - base) as u32));
            let words = Words {
                base,
                items: part.as_ref().map(Items::iter),
            };
            let found = look(at..end, words);
            if found.is_some() {
                return found;
            }
            at = end;
        }
        None
    }

    /// Calls `change` for each chunk of `run` that was ever touched.
    #[inline]
    fn for_each(&self, run: Range<u64>, mut change: impl FnMut(u64, &Word)) {
        // Most small writes are about one chunk: so here, and below.
        if run.end.wrapping_sub(run.start) == 1 {
            let _ = self.look_at(run.start, |word| change(run.start, word));
            return;
        }
        let _: Option<()> = self.scan(run.start, run.end, |_, words| {
            words.for_each(|(chunk, word)| change(chunk, word));
            None
        });
    }

    /// Calls `look` with the word of a chunk, if it was ever touched.
    #[inline]
    fn look_at<R>(&self, chunk: u64, look: impl FnOnce(&Word) -> R) -> Option<R> {
        // Only windows are replaced, so a group without any needs no protection.
        let slot = self.slot(chunk)?;
        let guard = rcu::read_lock();
        // CAST: Masked.
        let index = (chunk & (WINDOW - 1)) as u32;
        slot.get(&guard)?.get(index).map(look)
    }

    /// The place of a chunk.
    #[inline]
    pub(crate) fn get(&self, chunk: u64) -> Place {
        self.look_at(chunk, |word| Place::from_word(word.load(Acquire)))
            .unwrap_or(Place::Untouched)
    }

    /// A bit for each chunk from `from` to before `to`, of the window that begins at `base`.
    fn bits(base: u64, from: u64, to: u64) -> u64 {
        if from >= to {
            return 0;
        }
        (u64::MAX << (from - base)) & (u64::MAX >> (WINDOW - (to - base)))
    }

    /// Makes what it takes to claim the chunks of `run`, at the most [`MAX_RUN`], of which some are
    /// `needed` and the others are copied ahead. Does not sleep.
    ///
    /// Between this and [`claim`](Self::claim) nothing may change.
    pub(crate) fn prepare(&self, run: Range<u64>, needed: &Range<u64>) -> Result<PreparedRun> {
        let flags = GFP_ATOMIC | __GFP_NOWARN;
        let mut windows = [const { None }; MAX_WINDOWS];
        let mut at = run.start;
        for window in &mut windows {
            if at >= run.end {
                break;
            }
            let group = self.group(at).ok_or(EINVAL)?;
            if group.as_ref().is_none() {
                let slots = KBox::init(pin_init::init_array_from_fn(|_| RcuSlot::new()), flags)?;
                if group.populate(slots) {
                    self.memory.add(size_of::<Group>(), Relaxed);
                }
            }
            let base = at & !(WINDOW - 1);
            let end = base.saturating_add(WINDOW).min(run.end);
            let claimed = Self::bits(base, at, end);
            let needed = Self::bits(base, needed.start.max(at), needed.end.min(end));
            let guard = rcu::read_lock();
            let old = self.slot(at).and_then(|slot| slot.get(&guard));
            let present = old.as_ref().map_or(0, Items::present);
            // Those that stay as they are.
            let old = old.iter().flat_map(Items::iter);
            let mut kept = old.filter(|(index, _)| claimed >> index & 1 == 0);
            let word = |index: u32| match (claimed >> index & 1, needed >> index & 1) {
                (0, _) => Atomic::new(kept.next().map_or(0, |(_, word)| word.load(Relaxed))),
                (_, 0) => Atomic::new(Place::Reading.to_word() | AHEAD),
                _ => Atomic::new(Place::Reading.to_word()),
            };
            *window = Some(SparseArray::new(present | claimed, word, flags)?);
            at = end;
        }
        if at < run.end {
            return Err(EINVAL);
        }
        Ok(PreparedRun { run, windows })
    }

    /// Moves the untouched chunks that were prepared to [`Place::Reading`]. Returns the windows
    /// that were replaced.
    pub(crate) fn claim(&self, prepared: PreparedRun) -> [Option<OldWindow>; MAX_WINDOWS] {
        let mut at = prepared.run.start;
        prepared.windows.map(|window| {
            let slot = self.slot(at)?;
            at = (at | (WINDOW - 1)) + 1;
            let window = window?;
            self.memory.add(window.memory(), Relaxed);
            let old = slot.replace(window)?;
            self.memory.fetch_sub(old.memory(), Relaxed);
            Some(old)
        })
    }

    /// Moves chunks that were claimed back to [`Place::Untouched`].
    pub(crate) fn unclaim(&self, run: Range<u64>) {
        self.for_each(run, |_, word| {
            word.store(Place::Untouched.to_word(), Release)
        });
    }

    /// Moves chunks that were claimed to a new place each, given by their number in the run.
    #[inline]
    pub(crate) fn set(&self, run: Range<u64>, place: impl Fn(u64) -> Place) {
        let first = run.start;
        self.for_each(run, |chunk, word| {
            let ahead = word.load(Relaxed) & AHEAD;
            word.store(place(chunk - first).to_word() | ahead, Release);
        });
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_chunk_map)]
mod tests {
    use super::*;

    /// Claims, and keeps what that replaces in `old`.
    fn claim(
        map: &ChunkMap,
        old: &mut KVec<OldWindow>,
        run: Range<u64>,
        needed: Range<u64>,
    ) -> Result {
        for window in map.claim(map.prepare(run, &needed)?).into_iter().flatten() {
            old.push(window, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// A map with these states around the boundary of a window and a group.
    fn map(places: &[Place]) -> Result<ChunkMap> {
        let map = ChunkMap::new(3 << (GROUP_SHIFT + WINDOW_SHIFT))?;
        let mut old = KVec::new();
        for (chunk, place) in (START..).zip(places) {
            let run = chunk..chunk + 1;
            match place {
                Place::Untouched => {}
                place => {
                    claim(&map, &mut old, run.clone(), run.clone())?;
                    map.set(run, |_| *place);
                }
            }
        }
        OldWindow::free_all(&mut old);
        Ok(map)
    }

    const START: u64 = (1 << (GROUP_SHIFT + WINDOW_SHIFT)) - 2;

    #[test]
    fn words_round_trip() {
        for place in [
            Place::Untouched,
            Place::Reading,
            Place::InMemory,
            Place::Stored(0),
            Place::Stored(1),
            Place::Stored(MAX_UNIT),
        ] {
            assert_eq!(Place::from_word(place.to_word()), place);
        }
    }

    #[test]
    fn a_new_map_is_untouched_and_small() -> Result {
        let map = ChunkMap::new(1 << 32)?;
        assert_eq!(map.get(0), Place::Untouched);
        assert_eq!(map.get((1 << 32) - 1), Place::Untouched);
        assert_eq!(map.get(u64::MAX), Place::Untouched);
        assert_eq!(map.overwrite(0, 1), Overwrite::No);
        assert_eq!(map.overwrite(5, 5), Overwrite::Yes);
        assert_eq!(map.untouched_until(u64::MAX - 70, u64::MAX), u64::MAX);
        assert!(map.memory() <= 1 << 24);
        assert!(map.prepare(1 << 40..(1 << 40) + 1, &(0..0)).is_err());
        assert!(map.prepare(1..1 + 2 * WINDOW, &(0..0)).is_err());
        Ok(())
    }

    #[test]
    fn memory_follows_what_was_copied() -> Result {
        // Of each `stride` chunks, one of each `step`, `run` at once.
        for (chunks, stride, step, run) in [
            (1 << 21, 64 * 64, 64 * 64, 1),
            (1 << 18, 64, 64, 1),
            (1 << 16, 64, 33, 1),
            (1 << 16, 64, 5, 1),
            (1 << 15, 64, 1, 1),
            (1 << 16, 64, 64, 64),
        ] {
            let map = ChunkMap::new(chunks)?;
            let mut old = KVec::new();
            let mut copied = 0;
            for base in (0..chunks).step_by(stride) {
                for chunk in (base..base + stride as u64).step_by(step) {
                    claim(&map, &mut old, chunk..chunk + run, chunk..chunk + run)?;
                    copied += run;
                }
            }
            assert!((map.memory() as u64) <= 10 * copied + (chunks - copied) / 4);
            OldWindow::free_all(&mut old);
        }
        Ok(())
    }

    #[test]
    fn only_copied_chunks_are_safe() -> Result {
        use Place::*;
        let map = map(&[InMemory, Stored(7), Reading, Stored(9), Untouched])?;
        assert_eq!(map.overwrite(START, START + 2), Overwrite::Yes);
        assert_eq!(map.overwrite(START, START + 3), Overwrite::No);
        assert_eq!(map.overwrite(START + 3, START + 4), Overwrite::Yes);
        assert_eq!(map.overwrite(START + 3, START + 5), Overwrite::No);
        for (from, to, end) in [
            (0, 9, 2),
            (0, 1, 1),
            (2, 9, 2),
            (3, 4, 4),
            (3, 9, 4),
            (5, 5, 5),
        ] {
            assert_eq!(map.safe_until(START + from, START + to), START + end);
        }
        assert_eq!(map.get(START + 1), Stored(7));
        Ok(())
    }

    #[test]
    fn what_was_copied_ahead_is_counted_once() -> Result {
        let map = map(&[])?;
        let mut old = KVec::new();
        claim(&map, &mut old, START..START + 3, START + 1..START + 2)?;
        for chunk in START..START + 3 {
            assert_eq!(map.get(chunk), Place::Reading);
        }
        assert_eq!(map.overwrite(START, START + 1), Overwrite::No);
        map.set(START..START + 3, |_| Place::InMemory);
        assert_eq!(map.overwrite(START, START + 4), Overwrite::No);
        assert_eq!(map.overwrite(START, START + 2), Overwrite::Ahead);
        assert_eq!(map.take_ahead(START, START + 2), 1);
        assert_eq!(map.overwrite(START, START + 2), Overwrite::Yes);
        assert_eq!(map.take_ahead(START, START + 2), 0);
        // A window that is replaced keeps what it had.
        claim(&map, &mut old, START + 4..START + 5, START + 4..START + 5)?;
        map.set(START..START + 3, |i| Place::Stored(9 + i as u32));
        for i in 0..3 {
            assert_eq!(map.get(START + i), Place::Stored(9 + i as u32));
        }
        assert_eq!(map.get(START + 4), Place::Reading);
        assert_eq!(map.overwrite(START, START + 3), Overwrite::Ahead);
        assert_eq!(map.take_ahead(START, START + 3), 1);
        assert_eq!(map.overwrite(START, START + 3), Overwrite::Yes);
        map.unclaim(START + 4..START + 5);
        assert_eq!(map.get(START + 4), Place::Untouched);
        assert_eq!(map.untouched_until(START + 3, START + 9), START + 9);
        claim(&map, &mut old, START + 3..START + 6, START + 3..START + 6)?;
        assert_eq!(map.get(START + 4), Place::Reading);
        OldWindow::free_all(&mut old);
        Ok(())
    }

    #[test]
    fn chunks_side_by_side_in_the_storage() -> Result {
        use Place::*;
        let map = map(&[Stored(8), Stored(12), Stored(16), Stored(21), InMemory])?;
        assert_eq!(map.stored_until(START, START + 9, 8, 4), START + 3);
        assert_eq!(map.stored_until(START, START + 2, 8, 4), START + 2);
        assert_eq!(map.stored_until(START + 3, START + 9, 21, 4), START + 4);
        assert_eq!(map.stored_until(START, START + 9, 9, 4), START);
        assert_eq!(map.stored_until(START, START, 8, 4), START);
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
        assert_eq!(
            map.untouched_run(START, START + 6, 9),
            Some(START + 1..START + 4)
        );
        assert_eq!(
            map.untouched_run(START, START + 6, 2),
            Some(START + 1..START + 3)
        );
        assert_eq!(
            map.untouched_run(START + 4, START + 6, 9),
            Some(START + 5..START + 6)
        );
        assert_eq!(map.untouched_run(START + 4, START + 5, 9), None);
        assert_eq!(
            map.untouched_run(START + 5, START + 6, 9),
            Some(START + 5..START + 6)
        );
        assert_eq!(map.untouched_run(START, START, 9), None);
        assert_eq!(map.untouched_until(START + 1, START + 6), START + 4);
        assert_eq!(map.untouched_until(START, START + 6), START);
        assert_eq!(map.untouched_since(START, START + 3), START + 1);
        assert_eq!(map.untouched_since(START + 2, START + 4), START + 2);
        assert_eq!(map.untouched_since(START, START + 5), START + 5);
        Ok(())
    }
}
