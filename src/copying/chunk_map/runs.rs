// SPDX-License-Identifier: GPL-2.0

//! How far does a run of chunks go in which all are alike?
//!
//! All but [`take_ahead`](ChunkMap::take_ahead) only look, without a lock; what a look guarantees
//! is said in [`chunk_map`](super).

use kernel::sync::atomic::{
    Acquire,
    Relaxed,
    Release, //
};

use core::ops::Range;

use super::{
    ChunkMap,
    Place,
    Word,
    AHEAD, //
};

/// Whether chunks may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overwrite {
    /// Not all of them.
    No,
    /// All of them.
    Yes,
    /// All of them, and some had been copied ahead; see [`ChunkMap::take_ahead`].
    Ahead,
}

impl ChunkMap {
    /// Whether all chunks from `from` to before `to` may be overwritten.
    #[inline]
    pub(crate) fn overwrite(&self, from: u64, to: u64) -> Overwrite {
        if to.wrapping_sub(from) == 1 {
            let word = self.look_at(from, |word| word.load(Acquire)).unwrap_or(0);
            return match Place::from_word(word).is_safe() {
                true if word & AHEAD != 0 => Overwrite::Ahead,
                true => Overwrite::Yes,
                false => Overwrite::No,
            };
        }
        let mut all = 0;
        let found = self.scan(from, to, |chunks, words| {
            let mut left = chunks.end - chunks.start;
            for (_, word) in words {
                let word = word.load(Acquire);
                if !Place::from_word(word).is_safe() {
                    return Some(Overwrite::No);
                }
                all |= word;
                left -= 1;
            }
            (left != 0).then_some(Overwrite::No)
        });
        match found {
            Some(found) => found,
            None if all & AHEAD != 0 => Overwrite::Ahead,
            None => Overwrite::Yes,
        }
    }

    /// The end, at the most `to`, of the run of chunks from `from` on that may be overwritten.
    pub(crate) fn safe_until(&self, from: u64, to: u64) -> u64 {
        let mut next = from;
        let _ = self.scan(from, to, |chunks, words| {
            for (chunk, word) in words {
                if chunk != next || !Place::from_word(word.load(Acquire)).is_safe() {
                    return Some(());
                }
                next = chunk + 1;
            }
            (next != chunks.end).then_some(())
        });
        next
    }

    /// Notes that the chunks from `from` to before `to` are overwritten. Returns how many of them
    /// had been copied ahead and not overwritten since.
    pub(crate) fn take_ahead(&self, from: u64, to: u64) -> u64 {
        let mut count = 0;
        self.for_each(from..to, |_, word| {
            let old = word.load(Relaxed);
            if old & AHEAD != 0 {
                word.store(old & !AHEAD, Release);
                count += 1;
            }
        });
        count
    }

    /// The end of the run of untouched chunks that begins at `from`, at the most `to`.
    #[inline]
    pub(crate) fn untouched_until(&self, from: u64, to: u64) -> u64 {
        if to.wrapping_sub(from) == 1 {
            return match self.get(from) {
                Place::Untouched => to,
                _ => from,
            };
        }
        let touched = self.scan(from, to, |_, mut words| {
            words.find_map(|(chunk, word)| Self::is_touched(word).then_some(chunk))
        });
        touched.unwrap_or(to.max(from))
    }

    fn is_touched(word: &Word) -> bool {
        Place::from_word(word.load(Acquire)) != Place::Untouched
    }

    /// How many chunks from `from` to before `to` are not untouched.
    pub(crate) fn touched(&self, from: u64, to: u64) -> u64 {
        let mut count = 0;
        self.for_each(from..to, |_, word| {
            count += u64::from(Self::is_touched(word))
        });
        count
    }

    /// The beginning, at the least `from`, of the run of untouched chunks that ends before `to`.
    pub(crate) fn untouched_since(&self, from: u64, to: u64) -> u64 {
        let mut since = from.min(to);
        self.for_each(from..to, |chunk, word| {
            if Self::is_touched(word) {
                since = chunk + 1;
            }
        });
        since
    }

    /// The first run of untouched chunks between `from` and `to`, of at most `most` chunks.
    pub(crate) fn untouched_run(&self, from: u64, to: u64, most: u64) -> Option<Range<u64>> {
        if to.wrapping_sub(from) == 1 {
            return (self.untouched_until(from, to) == to).then_some(from..to);
        }
        let mut first = from;
        let _ = self.scan(from, to, |chunks, words| {
            for (chunk, word) in words {
                if chunk != first || !Self::is_touched(word) {
                    return Some(());
                }
                first = chunk + 1;
            }
            (first != chunks.end).then_some(())
        });
        if first >= to {
            return None;
        }
        let end = self.untouched_until(first, to.min(first.saturating_add(most)));
        Some(first..end)
    }

    /// The end, at the most `to`, of the run of chunks from `from` on that lie side by side in the
    /// difference storage, where `from` begins at `unit` and each takes `step` units.
    pub(crate) fn stored_until(&self, from: u64, to: u64, unit: u32, step: u64) -> u64 {
        let mut next = from;
        let _ = self.scan(from, to, |chunks, words| {
            for (chunk, word) in words {
                let here = u64::from(unit) + (chunk - from) * step;
                let place = Place::from_word(word.load(Acquire));
                if chunk != next || !matches!(place, Place::Stored(at) if u64::from(at) == here) {
                    return Some(());
                }
                next = chunk + 1;
            }
            (next != chunks.end).then_some(())
        });
        next
    }
}
