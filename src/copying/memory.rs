// SPDX-License-Identifier: GPL-2.0

//! The memory of copies.
//!
//! A copy engine makes all its [slots](CopySlot) when the snapshot is taken, and reuses them: so
//! their number bounds the memory. A copy that begins allocates only a bio and pages, which its
//! slot keeps afterwards as long as all idle slots together have few. Some slots have pages for one
//! chunk from the start, so that a copy can begin when memory is short.

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_KERNEL,
        GFP_NOWAIT,
    },
    block::{
        bdev::BdevFile,
        bio::Op,
        bio_set::{
            Buffer,
            EndIo,
            NewBio,
            Piece, //
        }, //
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
    SECTOR_SHIFT,
    UNIT_SHIFT, //
};

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

    /// Bios are about to be submitted. Counts as one in flight, so that the end does not come
    /// before all of them are.
    pub(crate) fn begin_pending(&self) {
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

/// A slot and its memory.
pub(crate) struct Memory {
    pub(crate) slot: Arc<CopySlot>,
    buffer: Option<Arc<Buffer>>,
    /// The buffer is kept whatever its size.
    reserve: bool,
}

impl Memory {
    /// A slot that does nothing; if `reserve` is not 0, with that many bytes of memory for ever.
    pub(crate) fn new(index: usize, reserve: usize) -> Result<Self> {
        let buffer = match reserve {
            0 => None,
            bytes => Some(Buffer::new(bytes, GFP_KERNEL)?),
        };
        let slot = CopySlot {
            index,
            pending: Atomic::new(0),
            status: Atomic::new(0),
        };
        Ok(Self {
            slot: Arc::new(slot, GFP_KERNEL)?,
            buffer,
            reserve: reserve != 0,
        })
    }

    /// Whether it has memory whatever happens.
    pub(crate) fn is_reserve(&self) -> bool {
        self.reserve
    }

    /// The bytes of memory that it holds.
    pub(crate) fn len(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    /// Gets memory for `bytes` bytes, or at least for `least`. Returns how many. Does not sleep.
    pub(crate) fn grow(&mut self, bytes: usize, least: usize) -> Result<usize> {
        let have = self.len();
        if have >= bytes {
            return Ok(bytes);
        }
        if !self.reserve || have < least {
            if let Ok(buffer) = Buffer::new(bytes, GFP_NOWAIT | __GFP_NOWARN) {
                self.buffer = Some(buffer);
                return Ok(bytes);
            }
        }
        if have < least {
            return Err(ENOMEM);
        }
        Ok(have)
    }

    /// Takes the memory, if it is not a reserve.
    pub(crate) fn shrink(&mut self) -> Option<Arc<Buffer>> {
        if self.reserve {
            None
        } else {
            self.buffer.take()
        }
    }

    /// Makes the bio that reads `sectors` sectors of `file`'s device from `sector` on; `context`
    /// gets its end. Does not sleep.
    pub(crate) fn read<T: EndIo>(
        &self,
        file: &Arc<BdevFile>,
        sector: u64,
        sectors: u64,
        context: T,
    ) -> Result<NewBio<T>> {
        let buffer = self.buffer.as_ref().ok_or(ENOMEM)?;
        let piece = Piece {
            buffer,
            offset: 0,
            // CAST: At most the buffer's size.
            bytes: (sectors << SECTOR_SHIFT) as usize,
        };
        let bio = NewBio::new(Op::Read, file, sector, [piece], context).map_err(|_| ENOMEM)?;
        self.slot.status.store(0, Relaxed);
        Ok(bio)
    }

    /// What is to be stored, of the `sectors` sectors that were read.
    pub(crate) fn unstored(&self, sectors: u64) -> Option<Unstored> {
        Some(Unstored {
            slot: self.slot.clone(),
            buffer: self.buffer.clone()?,
            // CAST: At most the buffer's size.
            bytes: (sectors << SECTOR_SHIFT) as usize,
        })
    }
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
