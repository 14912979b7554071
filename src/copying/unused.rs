// SPDX-License-Identifier: GPL-2.0

//! Which chunks of a captured device had no meaning at the instant?
//!
//! The client says so after the take: nothing of them is copied from then on, and the image shows
//! zeroes there. What a client says is never taken back.
//!
//! One bit per chunk, in groups of 4096 chunks: bits are allocated for groups of which a part is
//! unused, and for no others. So whatever a client says, and in how many pieces, the memory is at
//! the most 1.1 bits per chunk; and to look at a chunk takes two loads, or three.
//!
//! Only the holder of the copy engine's lock sets bits. Others look at them without a lock; see
//! [`cow::unused`](crate::copying::cow) for what the orderings guarantee.

use kernel::{
    alloc::flags::GFP_KERNEL,
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

use core::ops::Range;

/// Chunks in a group.
const GROUP: u64 = 1 << 12;

/// Chunks in a word.
const WORD: u64 = 32;

type Words = [Atomic<u32>; (GROUP / WORD) as usize];

/// A number of adjacent chunks.
struct Group {
    /// How many of them are unused; [`GROUP`] says that all are, whatever their bits say.
    count: Atomic<u32>,
    words: SetOnce<KBox<Words>>,
}

/// The unused chunks of one device.
pub(crate) struct Unused {
    chunks: u64,
    /// Allocated when the first ones are given.
    groups: SetOnce<VVec<Group>>,
    count: Atomic<usize>,
    /// The bytes of memory of all this.
    memory: Atomic<usize>,
}

impl Unused {
    /// None of `chunks` chunks is unused.
    pub(crate) fn new(chunks: u64) -> Self {
        Self {
            chunks,
            groups: SetOnce::new(),
            count: Atomic::new(0),
            memory: Atomic::new(0),
        }
    }

    /// How many chunks are unused.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed) as u64
    }

    /// The bytes of memory that this takes.
    pub(crate) fn memory(&self) -> usize {
        self.memory.load(Relaxed)
    }

    /// Divides a run of chunks into parts of one group each.
    pub(crate) fn parts(&self, run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let (mut at, end) = (run.start, run.end.min(self.chunks));
        core::iter::from_fn(move || {
            let start = at;
            at = (start | (GROUP - 1)).saturating_add(1).min(end);
            (start < end).then_some(start..at)
        })
    }

    /// The chunks of the group that `chunk` is in.
    fn around(&self, chunk: u64) -> Range<u64> {
        let start = chunk & !(GROUP - 1);
        start..start.saturating_add(GROUP).min(self.chunks)
    }

    #[inline]
    fn group(&self, chunk: u64) -> Option<&Group> {
        self.groups
            .as_ref()?
            .get(usize::try_from(chunk / GROUP).ok()?)
    }

    /// Makes what it takes to [give](Self::give) a [part](Self::parts). May sleep; calls must not
    /// overlap in time.
    pub(crate) fn prepare(&self, part: &Range<u64>) -> Result {
        if self.groups.as_ref().is_none() {
            let count = usize::try_from(self.chunks.div_ceil(GROUP))?;
            let mut groups = VVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                let group = Group {
                    count: Atomic::new(0),
                    words: SetOnce::new(),
                };
                groups.push(group, GFP_KERNEL)?;
            }
            let bytes = size_of_val(groups.as_slice());
            if self.groups.populate(groups) {
                self.memory.add(bytes, Relaxed);
            }
        }
        let group = self.group(part.start).ok_or(EINVAL)?;
        if group.words.as_ref().is_none() && *part != self.around(part.start) {
            let words = pin_init::init_array_from_fn(|_| Atomic::new(0));
            if group.words.populate(KBox::init(words, GFP_KERNEL)?) {
                self.memory.add(size_of::<Words>(), Relaxed);
            }
        }
        Ok(())
    }

    /// The chunks of a part that was [prepared](Self::prepare) are unused from now on. Does not
    /// sleep.
    pub(crate) fn give(&self, part: Range<u64>) {
        let Some(group) = self.group(part.start) else {
            return;
        };
        let before = group.count.load(Relaxed);
        if u64::from(before) == GROUP {
            return;
        }
        let all = self.around(part.start);
        let (now, added) = if part == all {
            // CAST: At most `GROUP`.
            (GROUP as u32, (all.end - all.start) as u32 - before)
        } else {
            let added = group.words.as_ref().map_or(0, |words| {
                set(words, part.start - all.start, part.end - all.start)
            });
            (before + added, added)
        };
        // Release, as that of the bits: see `cow::unused`.
        group.count.store(now, Release);
        self.count.add(added as usize, Relaxed);
    }

    /// Whether `chunk` is unused, and the end of a run of chunks from it on of which the same is
    /// true; not of all of them.
    #[inline]
    fn run_at(&self, chunk: u64) -> (bool, u64) {
        let end = (chunk | (GROUP - 1)).saturating_add(1);
        let Some(group) = self.group(chunk) else {
            return (false, end);
        };
        let count = group.count.load(Acquire);
        if count == 0 || u64::from(count) == GROUP {
            return (count != 0, end);
        }
        // CAST: Masked.
        let word = ((chunk & (GROUP - 1)) / WORD) as usize;
        let Some(word) = group.words.as_ref().and_then(|words| words.get(word)) else {
            return (false, end);
        };
        let bits = word.load(Acquire) >> (chunk % WORD);
        let unused = bits & 1 != 0;
        let run = if unused {
            bits.trailing_ones()
        } else {
            bits.trailing_zeros()
        };
        let left = WORD - chunk % WORD;
        (unused, chunk + u64::from(run).min(left))
    }

    /// The end, at the most `to`, of the run of unused chunks that begins at `from`.
    #[inline]
    pub(crate) fn until(&self, from: u64, to: u64) -> u64 {
        let mut at = from;
        while at < to {
            let (unused, end) = self.run_at(at);
            if !unused {
                return at;
            }
            at = end;
        }
        to.max(from)
    }

    /// The first unused chunk from `from` on, or `to`.
    #[inline]
    pub(crate) fn next(&self, from: u64, to: u64) -> u64 {
        if self.groups.as_ref().is_none() {
            return to.max(from);
        }
        let mut at = from;
        while at < to {
            let (unused, end) = self.run_at(at);
            if unused {
                return at;
            }
            at = end;
        }
        to.max(from)
    }

    /// The beginning, at the least `from`, of the run of chunks before `to` that are not unused.
    pub(crate) fn needed_since(&self, from: u64, to: u64) -> u64 {
        let (mut at, mut since) = (from, from.min(to));
        while at < to {
            let (unused, end) = self.run_at(at);
            if unused {
                since = end.min(to);
            }
            at = end;
        }
        since
    }
}

/// Sets the bits from `from` to before `to`. Returns how many were not set before.
fn set(words: &Words, from: u64, to: u64) -> u32 {
    let mut added = 0;
    for (word, first) in words.iter().zip((0..).step_by(WORD as usize)) {
        let (start, end) = (from.max(first), to.min(first + WORD));
        if start >= end {
            continue;
        }
        let bits = u32::MAX << (start - first) & u32::MAX >> (first + WORD - end);
        let old = word.load(Relaxed);
        // Release: see `cow::unused`.
        word.store(old | bits, Release);
        added += (bits & !old).count_ones();
    }
    added
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_unused)]
mod tests {
    use super::*;

    const CHUNKS: u64 = 3 * GROUP + 100;

    fn give(unused: &Unused, run: Range<u64>) -> Result {
        for part in unused.parts(run) {
            unused.prepare(&part)?;
            unused.give(part);
        }
        Ok(())
    }

    fn check(unused: &Unused, wanted: &[(u64, u64)]) {
        let mut at = 0;
        let mut count = 0;
        for run in wanted.iter().map(|&(start, end)| start..end) {
            assert_eq!(unused.next(at, CHUNKS), run.start);
            assert_eq!(unused.until(run.start, CHUNKS), run.end);
            assert_eq!(unused.until(run.start, run.end - 1), run.end - 1);
            assert_eq!(unused.needed_since(0, run.start), at);
            assert_eq!(unused.needed_since(0, run.end), run.end);
            assert_eq!(
                unused.until(at, run.start),
                if at == run.start { run.start } else { at }
            );
            count += run.end - run.start;
            at = run.end;
        }
        assert_eq!(unused.next(at, CHUNKS), CHUNKS);
        assert_eq!(unused.needed_since(0, CHUNKS), at);
        assert_eq!(unused.count(), count);
    }

    #[test]
    fn nothing_was_given() -> Result {
        let unused = Unused::new(CHUNKS);
        check(&unused, &[]);
        give(&unused, 5..5)?;
        check(&unused, &[]);
        assert_eq!(unused.memory(), 0);
        assert_eq!(unused.next(u64::MAX - 5, u64::MAX), u64::MAX);
        assert_eq!(unused.until(7, 7), 7);
        Ok(())
    }

    #[test]
    fn any_order_and_overlapping() -> Result {
        let unused = Unused::new(CHUNKS);
        for run in [60..70, 5..6, 64..65, 31..33, 5..6, 69..96, 4095..4097] {
            give(&unused, run)?;
        }
        check(&unused, &[(5, 6), (31, 33), (60, 96), (4095, 4097)]);
        give(&unused, 0..100)?;
        check(&unused, &[(0, 100), (4095, 4097)]);
        give(&unused, 0..GROUP)?;
        check(&unused, &[(0, 4097)]);
        give(&unused, 50..60)?;
        check(&unused, &[(0, 4097)]);
        Ok(())
    }

    #[test]
    fn the_last_group_is_short() -> Result {
        let unused = Unused::new(CHUNKS);
        give(&unused, 3 * GROUP..CHUNKS)?;
        check(&unused, &[(3 * GROUP, CHUNKS)]);
        // More than there is.
        give(&unused, 3 * GROUP - 1..u64::MAX)?;
        check(&unused, &[(3 * GROUP - 1, CHUNKS)]);
        give(&unused, 0..CHUNKS)?;
        check(&unused, &[(0, CHUNKS)]);
        let bit_by_bit = Unused::new(CHUNKS);
        for chunk in (0..CHUNKS).rev() {
            give(&bit_by_bit, chunk..chunk + 1)?;
        }
        check(&bit_by_bit, &[(0, CHUNKS)]);
        Ok(())
    }

    #[test]
    fn memory_is_bounded() -> Result {
        const CHUNKS: u64 = 1 << 20;
        let unused = Unused::new(CHUNKS);
        give(&unused, 0..CHUNKS)?;
        assert!(unused.memory() <= CHUNKS as usize / 128);
        let unused = Unused::new(CHUNKS);
        for chunk in (0..CHUNKS).step_by(2) {
            give(&unused, chunk..chunk + 1)?;
        }
        assert_eq!(unused.count(), CHUNKS / 2);
        assert!(unused.memory() * 8 <= CHUNKS as usize * 11 / 10);
        Ok(())
    }
}
