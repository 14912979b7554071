// SPDX-License-Identifier: GPL-2.0

//! The change tracking map: in which snapshot interval was each block last written?
//!
//! Intervals are numbered. While interval *a* (the active one) lasts, each block that is written
//! gets the number *a*. Taking a snapshot ends the interval: what the map says at that instant is
//! what clients read until the next take, and *a + 1* becomes active. A client that holds a backup
//! made at number *s* reads back each block whose number is greater than *s*.
//!
//! So there are two maps: the one that clients read, and the one that is being written. A byte of
//! the first is the byte of the second as it was at the last take, which differs only where the
//! second says *a*. Both bytes of a block therefore live in one word, and marking a block for the
//! first time in an interval moves the old number over. That makes the take a single increment,
//! however large the device is.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uuid::Uuid, //
};

use crate::base::{
    faults::{
        planted,
        Fault, //
    },
    units::SECTOR_SHIFT, //
};

/// The last number: after it a new generation begins.
const LAST: u8 = u8::MAX;

/// The number that is active when tracking begins.
const FIRST: u8 = 1;

/// The largest number of blocks, whatever the parameters say.
const MOST_BLOCKS: u64 = i32::MAX as u64;

/// The two numbers of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pair {
    /// The number as of the last take; valid if `written` is the active one.
    before: u8,
    /// The number of the last interval in which the block was written.
    written: u8,
}

impl Pair {
    fn from_word(word: i16) -> Self {
        let [before, written] = word.to_le_bytes();
        Self { before, written }
    }

    fn to_word(self) -> i16 {
        i16::from_le_bytes([self.before, self.written])
    }

    /// This, marked in both maps in the interval `active`, or in a later one that has begun and in
    /// which the block was written.
    fn marked_both(self, active: u8) -> Self {
        let written = active.max(self.written);
        Self {
            before: written.saturating_sub(1),
            written,
        }
    }
}

/// The map of one device.
///
/// Marking is lock-free. The orderings are relaxed: a mark has to be seen only by readers after
/// the next take, and by the take itself, and both are ordered after it by the freeze of the
/// queue.
pub(crate) struct Cbt {
    generation: Uuid,
    /// log2 of the block size in bytes.
    shift: u32,
    /// The size of the device in sectors.
    sectors: u64,
    /// How often the device had got smaller before.
    shrinks: u32,
    /// The active number, 1 to 255.
    active: Atomic<u32>,
    map: VVec<Atomic<i16>>,
}

impl Cbt {
    /// Makes an empty map, of a new generation, for a device of `sectors` sectors.
    ///
    /// A block has `1 << min_shift` bytes, or as many times two as it takes to need no more than
    /// `max_count` blocks, but not beyond `1 << max_shift` bytes. May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(
        sectors: u64,
        min_shift: u32,
        max_shift: u32,
        max_count: u32,
    ) -> Result<Self> {
        let bytes = sectors.checked_mul(1 << SECTOR_SHIFT).ok_or(EINVAL)?;
        let shift = block_shift(bytes, min_shift, max_shift, max_count);
        let count = usize::try_from(bytes.div_ceil(1 << shift))?;
        let mut map = VVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            map.push(Atomic::new(0i16), GFP_KERNEL)?;
        }
        Ok(Self {
            generation: Uuid::random(),
            shift,
            sectors,
            shrinks: 0,
            active: Atomic::new(u32::from(FIRST)),
            map,
        })
    }

    /// The same map, of a device that has got smaller so many times before.
    pub(crate) fn after_shrinks(self, shrinks: u32) -> Self {
        Self { shrinks, ..self }
    }

    /// How often the device had got smaller before. If it has again, its end may be another's data,
    /// whatever its size is now.
    pub(crate) fn shrinks(&self) -> u32 {
        self.shrinks
    }

    /// The generation, to which the numbers belong.
    pub(crate) fn generation(&self) -> Uuid {
        self.generation
    }

    /// The block size in bytes.
    pub(crate) fn block_size(&self) -> u32 {
        1 << self.shift
    }

    /// The number of blocks.
    pub(crate) fn block_count(&self) -> u32 {
        // CAST: `block_shift` sees to it, but for sizes for which there is no memory.
        self.map.len() as u32
    }

    /// The size of the device in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The size of the device in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.sectors << SECTOR_SHIFT
    }

    /// The bytes of memory that the map takes.
    pub(crate) fn memory(&self) -> usize {
        self.map.len() * size_of::<Atomic<i16>>()
    }

    /// The active number.
    fn active(&self) -> u8 {
        // CAST: Never above `LAST`.
        self.active.load(Relaxed) as u8
    }

    /// The number of the last take; 0 if there was none in this generation.
    pub(crate) fn previous(&self) -> u8 {
        self.active().saturating_sub(1)
    }

    /// The blocks that have one of the `count` sectors from `first` on, as far as there are any.
    fn blocks(&self, first: u64, count: u64) -> &[Atomic<i16>] {
        let shift = self.shift - SECTOR_SHIFT;
        let len = self.map.len();
        let end = first.saturating_add(count);
        if count == 0 {
            return &[];
        }
        let from = usize::try_from(first >> shift).unwrap_or(len).min(len);
        let to = usize::try_from((end - 1) >> shift).unwrap_or(len);
        self.map
            .get(from..to.saturating_add(1).min(len))
            .unwrap_or(&[])
    }

    /// Marks the blocks of `count` sectors from `first` on as written now.
    #[inline]
    pub(crate) fn mark(&self, first: u64, count: u64) {
        let active = self.active();
        let mut blocks = self.blocks(first, count);
        if let ([rest @ .., _], true) = (blocks, planted(Fault::ForgetMark) && blocks.len() > 1) {
            blocks = rest;
        }
        for word in blocks {
            let mut old = word.load(Relaxed);
            // Most often nothing to do, and the cache line stays shared.
            while Pair::from_word(old).written != active {
                let new = Pair {
                    before: Pair::from_word(old).written,
                    written: active,
                };
                match word.cmpxchg(old, new.to_word(), Relaxed) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
    }

    /// Marks the blocks in both maps: clients that read from now on see them as changed in the
    /// interval before the last take, and after the next take as changed in this one.
    ///
    /// The queue may be frozen, and a take may end the interval beside us: that is as if it came
    /// after us. What was marked by a write since stays.
    pub(crate) fn mark_both(&self, first: u64, count: u64) {
        let active = self.active();
        for word in self.blocks(first, count) {
            let mut old = word.load(Relaxed);
            loop {
                let marked = Pair::from_word(old).marked_both(active);
                match word.cmpxchg(old, marked.to_word(), Relaxed) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
        }
    }

    /// Ends the interval. Fails, and changes nothing, if there is no number left.
    ///
    /// No write may be marked meanwhile: the queue is frozen.
    pub(crate) fn switch(&self) -> Result {
        let active = self.active();
        if active == LAST {
            return Err(EOVERFLOW);
        }
        self.active.store(u32::from(active) + 1, Relaxed);
        Ok(())
    }

    /// Whether [`switch`](Self::switch) would succeed.
    pub(crate) fn can_switch(&self) -> bool {
        self.active() != LAST
    }

    /// Undoes the last [`switch`](Self::switch), after which nothing was marked.
    pub(crate) fn switch_back(&self) {
        let active = self.active();
        self.active
            .store(u32::from(active.saturating_sub(1).max(FIRST)), Relaxed);
    }

    /// Copies the map as of the last take into `out`, beginning at block `offset`. Returns the
    /// number of blocks copied.
    pub(crate) fn read(&self, offset: u32, out: &mut [u8]) -> usize {
        let active = self.active();
        let words = self.map.get(offset as usize..).unwrap_or(&[]);
        for (byte, word) in out.iter_mut().zip(words) {
            let pair = Pair::from_word(word.load(Relaxed));
            *byte = if pair.written == active {
                pair.before
            } else {
                pair.written
            };
        }
        out.len().min(words.len())
    }
}

/// log2 of the block size: `min_shift`, plus one while there are more than `max_count` blocks.
fn block_shift(bytes: u64, min_shift: u32, max_shift: u32, max_count: u32) -> u32 {
    let mut shift = min_shift.clamp(SECTOR_SHIFT, 31);
    while shift < 31 {
        let count = bytes.div_ceil(1 << shift);
        let grows = shift < max_shift && count > u64::from(max_count);
        if !grows && count <= MOST_BLOCKS {
            break;
        }
        shift += 1;
    }
    shift
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_cbt)]
mod tests {
    use super::*;

    /// A map with blocks of 64 KiB for a device of `blocks` blocks.
    fn map(blocks: u64) -> Result<Cbt> {
        Cbt::new(blocks << 7, 16, 63, 1 << 21)
    }

    #[test]
    fn a_take_beside_a_mark_in_both_maps_loses_no_write() {
        let pair = |before, written| Pair { before, written };
        // Whoever marks has seen interval 4, and meanwhile 5 has begun: written in it, or not.
        assert_eq!(pair(2, 5).marked_both(4), pair(4, 5));
        assert_eq!(pair(2, 4).marked_both(4), pair(3, 4));
        assert_eq!(pair(0, 0).marked_both(4), pair(3, 4));
        assert_eq!(pair(0, 0).marked_both(FIRST), pair(0, FIRST));
        assert_eq!(pair(0, LAST).marked_both(LAST - 1), pair(LAST - 1, LAST));
    }

    fn bytes(cbt: &Cbt) -> [u8; 8] {
        let mut out = [0xff; 8];
        cbt.read(0, &mut out);
        out
    }

    #[test]
    fn block_size_grows_one_step_at_a_time() {
        assert_eq!(block_shift(0, 16, 63, 100), 16);
        assert_eq!(block_shift(100 << 16, 16, 63, 100), 16);
        assert_eq!(block_shift((100 << 16) + 1, 16, 63, 100), 17);
        assert_eq!(block_shift(200 << 17, 16, 63, 100), 18);
        assert_eq!(block_shift(16 << 40, 16, 63, 2097152), 23);
        assert_eq!(block_shift(u64::MAX, 16, 63, 1), 31);
        assert_eq!(block_shift(200 << 17, 16, 17, 100), 17);
        assert_eq!(block_shift(200 << 17, 18, 17, 100), 18);
        // There are no more numbers than that.
        assert_eq!(block_shift(1 << 62, 16, 26, 100), 31);
    }

    #[test]
    fn a_mark_shows_after_the_take_only() -> Result {
        let cbt = map(8)?;
        cbt.mark(0, 1);
        cbt.mark(127, 2);
        assert_eq!(bytes(&cbt), [0; 8]);
        cbt.switch()?;
        assert_eq!(cbt.previous(), 1);
        assert_eq!(bytes(&cbt), [1, 1, 0, 0, 0, 0, 0, 0]);
        cbt.mark(0, 1);
        cbt.mark(7 << 7, 128);
        assert_eq!(bytes(&cbt), [1, 1, 0, 0, 0, 0, 0, 0]);
        cbt.switch()?;
        assert_eq!(bytes(&cbt), [2, 1, 0, 0, 0, 0, 0, 2]);
        cbt.switch()?;
        assert_eq!(bytes(&cbt), [2, 1, 0, 0, 0, 0, 0, 2]);
        Ok(())
    }

    #[test]
    fn exactly_the_blocks_touched() -> Result {
        let cbt = map(8)?;
        cbt.mark(3 << 7, 128);
        cbt.mark((5 << 7) - 1, 1);
        cbt.mark(6 << 7, 0);
        cbt.mark(8 << 7, 128);
        cbt.mark(u64::MAX, 1);
        cbt.mark(u64::MAX - 5, u64::MAX);
        cbt.switch()?;
        assert_eq!(bytes(&cbt), [0, 0, 0, 1, 1, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn mark_both_shows_at_once_and_next_time() -> Result {
        let cbt = map(8)?;
        cbt.switch()?;
        cbt.mark(0, 1);
        cbt.mark_both(0, 1);
        cbt.mark_both(2 << 7, 1);
        assert_eq!(bytes(&cbt), [1, 0, 1, 0, 0, 0, 0, 0]);
        cbt.mark(2 << 7, 1);
        assert_eq!(bytes(&cbt), [1, 0, 1, 0, 0, 0, 0, 0]);
        cbt.switch()?;
        assert_eq!(bytes(&cbt), [2, 0, 2, 0, 0, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn numbers_end_at_255() -> Result {
        let cbt = map(8)?;
        for _ in 0..254 {
            assert!(cbt.can_switch());
            cbt.switch()?;
        }
        assert_eq!(cbt.previous(), 254);
        assert!(!cbt.can_switch());
        assert_eq!(cbt.switch(), Err(EOVERFLOW));
        assert_eq!(cbt.previous(), 254);
        Ok(())
    }

    #[test]
    fn a_take_can_be_undone() -> Result {
        let cbt = map(8)?;
        cbt.mark(0, 1);
        cbt.switch()?;
        cbt.mark(128, 1);
        cbt.switch()?;
        cbt.switch_back();
        assert_eq!(cbt.previous(), 1);
        assert_eq!(bytes(&cbt), [1, 0, 0, 0, 0, 0, 0, 0]);
        cbt.switch()?;
        assert_eq!(bytes(&cbt), [1, 2, 0, 0, 0, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn reads_stop_at_the_end() -> Result {
        let cbt = Cbt::new((3 << 7) + 1, 16, 63, 1 << 21)?;
        assert_eq!(cbt.block_count(), 4);
        let mut out = [9; 8];
        assert_eq!(cbt.read(0, &mut out), 4);
        assert_eq!(cbt.read(3, &mut out), 1);
        assert_eq!(cbt.read(4, &mut out), 0);
        assert_eq!(cbt.read(u32::MAX, &mut out), 0);
        cbt.mark(3 << 7, 1);
        cbt.switch()?;
        cbt.read(3, &mut out);
        assert_eq!(out[0], 1);
        Ok(())
    }

    #[test]
    fn an_empty_device() -> Result {
        let cbt = Cbt::new(0, 16, 63, 1 << 21)?;
        cbt.mark(0, 1);
        assert_eq!(cbt.block_count(), 0);
        assert_eq!(cbt.read(0, &mut [0; 4]), 0);
        Ok(())
    }
}
