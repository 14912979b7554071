// SPDX-License-Identifier: GPL-2.0

//! The memory of copies.
//!
//! A copy engine makes all its [slots](CopySlot) when the snapshot is taken, and reuses them. A
//! copy that begins allocates only a bio and pages, as long as all copies under way do not have
//! more than they may; some pages are kept afterwards for the next ones. Others, for a few chunks,
//! are there from the start, so that a copy can begin when memory is short.

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_KERNEL,
        GFP_NOWAIT,
    },
    block::{
        bio::Op,
        bio_set::{
            Buffer,
            EndIo,
            NewBio,
            Piece, //
        }, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc, //
    }, //
};

use crate::base::units::{
    MAX_CHUNK_SHIFT,
    SECTOR_SHIFT,
    UNIT_SHIFT, //
};

/// The bytes of memory that are kept in buffers of each size.
const IDLE_BYTES: usize = 1 << 20;

/// How many sizes of buffers there are: powers of two, from a page to the largest chunk.
const SIZES: usize = MAX_CHUNK_SHIFT as usize - PAGE_SHIFT + 1;

/// One of the copies that an engine can make at a time, and how the bios of the present one ended.
pub(crate) struct CopySlot {
    /// Its number in the engine.
    index: usize,
    /// Bios in flight.
    pending: Atomic<i32>,
    /// The first error of a bio, as a negative errno, or 0.
    status: Atomic<i32>,
}

impl CopySlot {
    /// Its number in the engine.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Notes how a bio ended. The first error counts.
    pub(crate) fn note(&self, result: Result) {
        if let Err(err) = result {
            let _ = self.status.cmpxchg(0, err.to_errno(), Relaxed);
        }
    }

    /// The first error of the bios that have ended.
    pub(crate) fn result(&self) -> Result {
        match self.status.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }

    /// Bios are about to be submitted, when those before have ended, however they did. Counts as
    /// one in flight, so that the end does not come before all of them are.
    pub(crate) fn begin_pending(&self) {
        self.status.store(0, Relaxed);
        self.pending.store(1, Relaxed);
    }

    /// One bio more in flight.
    pub(crate) fn get_pending(&self) {
        self.pending.add(1, Relaxed);
    }

    /// One bio less in flight; tells whether it was the last. Fully ordered, so that who comes
    /// last sees the errors of all.
    pub(crate) fn put_pending(&self) -> bool {
        self.pending.fetch_sub(1, Full) == 1
    }
}

/// A slot and its memory, of a copy under way.
pub(crate) struct Memory {
    pub(crate) slot: Arc<CopySlot>,
    buffer: Arc<Buffer>,
    /// The buffer is one of those that are kept for when memory is short.
    is_reserve: bool,
}

impl Memory {
    /// The bytes of memory that it holds.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Makes the bio that reads `sectors` sectors from `sector` on of the device of `context`,
    /// which gets its end. Does not sleep.
    pub(crate) fn read<T: EndIo>(
        &self,
        sector: u64,
        sectors: u64,
        context: T,
    ) -> Result<NewBio<T>> {
        let piece = Piece {
            buffer: &self.buffer,
            offset: 0,
            // CAST: At most the buffer's size.
            bytes: (sectors << SECTOR_SHIFT) as usize,
        };
        let bio = NewBio::new(Op::Read, sector, [piece], context).map_err(|_| ENOMEM)?;
        self.slot.status.store(0, Relaxed);
        Ok(bio)
    }

    /// Zeroes the bytes from `from` to before `to`.
    pub(crate) fn zero(&self, from: usize, to: usize) {
        self.buffer.zero(from, to);
    }

    /// What is to be stored, of the `sectors` sectors that were read.
    pub(crate) fn unstored(&self, sectors: u64) -> Unstored {
        Unstored {
            slot: self.slot.clone(),
            buffer: self.buffer.clone(),
            // CAST: At most the buffer's size.
            bytes: (sectors << SECTOR_SHIFT) as usize,
        }
    }
}

/// The slots and the memory of one engine that no copy uses.
///
/// What was given back last is taken first, as caches may still have it: buffers by size, so that a
/// small copy does not keep a large one.
pub(crate) struct Idle {
    slots: KVec<Arc<CopySlot>>,
    /// By log2 of the pages that they have.
    buffers: [KVec<Arc<Buffer>>; SIZES],
    /// Buffers of a chunk, for when memory is short.
    reserve: KVec<Arc<Buffer>>,
    /// The bytes of memory that all these have.
    bytes: usize,
    /// Those that copies under way have.
    used: usize,
    /// The most that these may have.
    most: usize,
}

impl Idle {
    /// Makes `slots` slots, and `reserve` buffers of `chunk` bytes; all copies under way may have
    /// `most` bytes of memory. May sleep.
    pub(crate) fn new(slots: usize, reserve: usize, chunk: usize, most: usize) -> Result<Self> {
        let mut idle = Self {
            slots: KVec::with_capacity(slots, GFP_KERNEL)?,
            buffers: [const { KVec::new() }; SIZES],
            reserve: KVec::with_capacity(reserve, GFP_KERNEL)?,
            bytes: 0,
            used: 0,
            most,
        };
        // The first one is taken first.
        for index in (0..slots).rev() {
            let slot = CopySlot {
                index,
                pending: Atomic::new(0),
                status: Atomic::new(0),
            };
            idle.slots.push(Arc::new(slot, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        for (size, buffers) in idle.buffers.iter_mut().enumerate() {
            buffers.reserve(
                (IDLE_BYTES >> size >> PAGE_SHIFT).clamp(1, slots),
                GFP_KERNEL,
            )?;
        }
        for _ in 0..reserve {
            let buffer = Buffer::new(chunk, GFP_KERNEL)?;
            idle.bytes += buffer.len();
            idle.reserve.push(buffer, GFP_KERNEL)?;
        }
        Ok(idle)
    }

    /// How many copies could begin.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// The bytes of memory of all copies, under way or not.
    pub(crate) fn memory(&self) -> usize {
        self.bytes + self.used
    }

    /// A slot with memory for as many bytes as can be had: one of `sizes`, the first if possible.
    /// The last of them is a chunk. Does not sleep.
    pub(crate) fn take(&mut self, sizes: [usize; 3]) -> Result<Memory> {
        let [.., chunk] = sizes;
        if self.slots.is_empty() || !self.may_take(chunk) {
            return Err(EBUSY);
        }
        let mut found = sizes.iter().find_map(|&bytes| self.take_buffer(bytes));
        let is_reserve = found.is_none();
        if is_reserve {
            found = self
                .reserve
                .pop()
                .inspect(|buffer| self.bytes -= buffer.len());
        }
        let buffer = found.ok_or(ENOMEM)?;
        self.used += buffer.len();
        Ok(Memory {
            slot: self.slots.pop().ok_or(EBUSY)?,
            buffer,
            is_reserve,
        })
    }

    /// Whether the copies under way may have `bytes` bytes more.
    fn may_take(&self, bytes: usize) -> bool {
        self.used == 0 || self.used.saturating_add(bytes) <= self.most
    }

    /// A buffer of at least so many bytes, if copies may have as much more.
    fn take_buffer(&mut self, bytes: usize) -> Option<Arc<Buffer>> {
        let bytes = bytes.max(PAGE_SIZE).checked_next_power_of_two()?;
        if !self.may_take(bytes) {
            return None;
        }
        let fitting = self.buffers.get_mut(size_of_buffer(bytes))?;
        if let Some(buffer) = fitting.pop() {
            self.bytes -= buffer.len();
            return Some(buffer);
        }
        Buffer::new(bytes, GFP_NOWAIT | __GFP_NOWARN).ok()
    }

    /// Takes back what a copy had. What is returned is to be dropped without the lock.
    pub(crate) fn put(&mut self, memory: Memory) -> Option<Arc<Buffer>> {
        let Memory {
            slot,
            buffer,
            is_reserve,
        } = memory;
        let len = buffer.len();
        self.used -= len;
        // There is room for all that were ever taken.
        let _ = self.slots.push_within_capacity(slot);
        let place = if is_reserve {
            &mut self.reserve
        } else {
            match self.buffers.get_mut(size_of_buffer(len)) {
                Some(place) => place,
                None => return Some(buffer),
            }
        };
        match place.push_within_capacity(buffer) {
            Ok(()) => self.bytes += len,
            Err(enough) => return Some(enough.0),
        }
        None
    }
}

/// Where buffers of so many bytes, a power of two, are kept.
fn size_of_buffer(bytes: usize) -> usize {
    (bytes >> PAGE_SHIFT).checked_ilog2().unwrap_or(0) as usize
}

/// Data of a copy that is to be stored.
pub(crate) struct Unstored {
    pub(crate) slot: Arc<CopySlot>,
    pub(crate) buffer: Arc<Buffer>,
    bytes: usize,
}

impl Unstored {
    /// The bytes that it takes in the storage, which is written in whole units.
    pub(crate) fn padded(&self) -> usize {
        self.bytes.next_multiple_of(1 << UNIT_SHIFT)
    }

    /// Zeroes what is stored beside the data: no old memory may get to the storage.
    pub(crate) fn zero_padding(&self) {
        self.buffer.zero(self.bytes, self.padded());
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kernel::macros::kunit_tests(blksnap_memory)]
mod tests {
    use super::*;

    const CHUNK: usize = 4096;

    #[test]
    fn the_last_used_is_the_next_one() -> Result {
        let mut idle = Idle::new(4, 0, CHUNK, usize::MAX)?;
        let first = idle.take([3 * CHUNK, CHUNK, CHUNK])?;
        assert_eq!((first.len(), first.slot.index()), (4 * CHUNK, 0));
        let second = idle.take([CHUNK; 3])?;
        assert_eq!(second.slot.index(), 1);
        let hot = Arc::as_ptr(&second.buffer);
        drop(idle.put(first));
        assert!(idle.put(second).is_none());
        assert_eq!((idle.count(), idle.memory()), (4, 5 * CHUNK));
        // Of its size, whatever came later.
        let again = idle.take([CHUNK; 3])?;
        assert_eq!((Arc::as_ptr(&again.buffer), again.slot.index()), (hot, 1));
        Ok(())
    }

    #[test]
    fn copies_have_so_much_memory() -> Result {
        let mut idle = Idle::new(16, 1, CHUNK, 4 * CHUNK)?;
        let large = idle.take([2 * CHUNK, CHUNK, CHUNK])?;
        // What is needed, where there is no more for what is copied ahead.
        let small = idle.take([4 * CHUNK, CHUNK, CHUNK])?;
        assert_eq!((large.len(), small.len()), (2 * CHUNK, CHUNK));
        let last = idle.take([CHUNK; 3])?;
        assert_eq!(idle.take([CHUNK; 3]).err(), Some(EBUSY));
        // Not even the reserve, which is for when there is no memory.
        assert_eq!(idle.memory(), 5 * CHUNK);
        for memory in [large, small, last] {
            assert!(!memory.is_reserve);
            drop(idle.put(memory));
        }
        // One can always begin.
        let huge = idle.take([8 * CHUNK; 3])?;
        assert_eq!(idle.take([CHUNK; 3]).err(), Some(EBUSY));
        drop(idle.put(huge));
        assert_eq!(idle.count(), 16);
        Ok(())
    }

    #[test]
    fn idle_ones_keep_only_so_much() -> Result {
        let mut idle = Idle::new(4, 0, CHUNK, usize::MAX)?;
        let mut under_way = KVec::new();
        for _ in 0..4 {
            under_way.push(idle.take([IDLE_BYTES; 3])?, GFP_KERNEL)?;
        }
        assert_eq!(idle.take([CHUNK; 3]).err(), Some(EBUSY));
        for memory in under_way.drain_all() {
            drop(idle.put(memory));
        }
        assert_eq!(idle.memory(), IDLE_BYTES);
        Ok(())
    }
}
