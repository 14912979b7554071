// SPDX-License-Identifier: GPL-2.0

//! Copies: the bios that read old data, and those that store it.
//!
//! ```text
//! read bio -> Cow::read_done -> (more copies) -> store bio -> Cow::store_done
//! ```
//!
//! A copy takes one run of chunks, which one bio reads. One bio stores the data of several copies
//! if their place in the storage is in one piece; nobody waits for that but readers of the image.
//!
//! A copy engine makes all its copies when the snapshot is taken, and uses them again and again:
//! so their number bounds the memory, and starting one allocates nothing but pages, which are kept
//! as long as they are few, and a bio. Some copies have pages for one chunk from the start, so that
//! a copy can begin when memory is short.

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_KERNEL,
        GFP_NOWAIT,
    },
    block::{
        bio::{
            submission_is_queued,
            Op,
            OwnedBio, //
        },
        bio_set::{
            bytes_to_sectors,
            BioSet,
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

use core::{
    array,
    ops::Range, //
};

use crate::{
    base::{
        delays::{
            delay,
            Point, //
        },
        units::{
            SECTOR_SHIFT,
            UNIT_SHIFT, //
        }, //
    },
    copying::{
        cow::Cow,
        engine::{
            Busy,
            BATCH, //
        }, //
    }, //
};

/// What the bios of a copy tell of it.
pub(crate) struct Copy {
    /// Its number in the engine.
    index: usize,
    /// Bios in flight.
    pending: Atomic<i32>,
    /// The first error of a bio, as a negative errno, or 0.
    status: Atomic<i32>,
}

impl Copy {
    /// Makes a copy that does nothing.
    pub(crate) fn new(index: usize) -> Result<Arc<Self>> {
        let copy = Self {
            index,
            pending: Atomic::new(0),
            status: Atomic::new(0),
        };
        Ok(Arc::new(copy, GFP_KERNEL)?)
    }

    /// Its number in the engine.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Notes the first error.
    fn note(&self, result: Result) {
        if let Err(err) = result {
            let _ = self.status.cmpxchg(0, err.to_errno(), Relaxed);
        }
    }

    /// The first error of the bios that have completed.
    pub(crate) fn result(&self) -> Result {
        match self.status.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }

    /// One bio less in flight; tells whether it was the last. Fully ordered, so that who comes
    /// last sees the errors of all.
    fn put_pending(&self) -> bool {
        self.pending.fetch_sub(1, Full) == 1
    }
}

/// A copy and its memory.
pub(crate) struct Memory {
    pub(crate) copy: Arc<Copy>,
    buffer: Option<Arc<Buffer>>,
    /// The buffer is kept whatever its size.
    reserve: bool,
}

impl Memory {
    /// A copy that does nothing; if `reserve` is not 0, with that many bytes of memory for ever.
    pub(crate) fn new(index: usize, reserve: usize) -> Result<Self> {
        let buffer = match reserve {
            0 => None,
            bytes => Some(Buffer::new(bytes, GFP_KERNEL)?),
        };
        Ok(Self {
            copy: Copy::new(index)?,
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

    /// Makes the bio that reads a run of chunks. Does not sleep.
    pub(crate) fn read(&self, cow: &Arc<Cow>, run: Range<u64>) -> Result<NewBio<ReadIo>> {
        let geometry = cow.geometry();
        let sectors = geometry.sectors_in(run.start, run.end - run.start);
        let buffer = self.buffer.as_ref().ok_or(ENOMEM)?;
        let piece = Piece {
            buffer,
            offset: 0,
            // CAST: At most the buffer's size.
            bytes: (sectors << SECTOR_SHIFT) as usize,
        };
        let context = ReadIo {
            copy: self.copy.clone(),
            busy: cow.busy(),
            cow: cow.clone(),
        };
        let sector = geometry.sector(run.start);
        let bio =
            NewBio::new(Op::Read, cow.origin(), sector, [piece], context).map_err(|_| ENOMEM)?;
        self.copy.status.store(0, Relaxed);
        Ok(bio)
    }

    /// What is to be stored, of the `sectors` sectors that were read.
    pub(crate) fn unstored(&self, sectors: u64) -> Option<Unstored> {
        let buffer = self.buffer.clone()?;
        // CAST: At most the buffer's size.
        let bytes = (sectors << SECTOR_SHIFT) as usize;
        Some(Unstored {
            copy: self.copy.clone(),
            buffer,
            bytes,
        })
    }
}

/// The context of a bio that reads old data.
pub(crate) struct ReadIo {
    copy: Arc<Copy>,
    cow: Arc<Cow>,
    busy: Busy,
}

impl EndIo for ReadIo {
    fn set(&self) -> &BioSet<Self> {
        &self.cow.engine().reads
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self { copy, cow, busy } = self;
        delay(Point::ReadEnded);
        copy.note(result);
        if submission_is_queued() {
            // The writes that wait join the queue of the task that submits, and go on when it goes
            // on, without another task.
            Cow::end_read(&cow, &copy);
        } else {
            Cow::leave_read(&cow, copy);
        }
        drop(cow);
        // Last, as it keeps all that must not go in an interrupt.
        drop(busy);
    }
}

/// Data of a copy that is to be stored.
pub(crate) struct Unstored {
    copy: Arc<Copy>,
    buffer: Arc<Buffer>,
    bytes: usize,
}

impl Unstored {
    /// The bytes that it takes in the storage, which is written in whole units.
    fn padded(&self) -> usize {
        self.bytes.next_multiple_of(1 << UNIT_SHIFT)
    }
}

/// The copies that one bio stores.
type Stored = [Option<Arc<Copy>>; BATCH];

/// The context of a bio that stores old data.
pub(crate) struct StoreIo {
    copies: Stored,
    cow: Arc<Cow>,
    busy: Busy,
}

impl EndIo<BATCH> for StoreIo {
    fn set(&self) -> &BioSet<Self, BATCH> {
        &self.cow.engine().stores
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self {
            mut copies,
            cow,
            busy,
        } = self;
        delay(Point::StoreEnded);
        cow.health().end_write();
        for slot in &mut copies {
            *slot = slot.take().filter(|copy| {
                copy.note(result);
                copy.put_pending()
            });
        }
        Cow::leave_stored(&cow, copies);
        drop(cow);
        // Last, as it keeps all that must not go in an interrupt.
        drop(busy);
    }
}

/// What the bytes from `from` to before `to` of a batch consist of: copies, and bytes of them.
fn parts(
    batch: &[Option<Unstored>; BATCH],
    from: usize,
    to: usize,
) -> impl Iterator<Item = (&Unstored, Range<usize>)> + Clone {
    let mut end = 0;
    batch.iter().flatten().filter_map(move |one| {
        let start = end;
        end += one.padded();
        let (from, to) = (from.max(start), to.min(end));
        (from < to).then(|| (one, from - start..to - start))
    })
}

/// Stores the data of some copies, one after the other from `unit` on. May sleep.
///
/// At the end of each copy [`Cow::leave_stored`] is called.
pub(crate) fn store(cow: &Arc<Cow>, unit: u32, batch: &[Option<Unstored>; BATCH]) {
    let mut total = 0;
    for one in batch.iter().flatten() {
        // No old memory may get to the storage.
        one.buffer.zero(one.bytes, one.padded());
        total += one.padded();
        // One more than bios, so that the end does not come before all are submitted.
        one.copy.pending.store(1, Relaxed);
    }
    delay(Point::Placed);
    let mut done = 0;
    while done < total {
        let (skip, rest) = (bytes_to_sectors(done), bytes_to_sectors(total - done));
        let extent = cow.space().locate(unit, skip, rest);
        let Some(extent) = extent.filter(|_| cow.health().begin_write()) else {
            parts(batch, done, total).for_each(|(one, _)| one.copy.note(Err(EIO)));
            break;
        };
        // CAST: At most `total`.
        let end = done + (extent.sectors << SECTOR_SHIFT) as usize;
        let parts = parts(batch, done, end);
        let mut copies = parts.clone().map(|(one, _)| {
            one.copy.pending.add(1, Relaxed);
            one.copy.clone()
        });
        let context = StoreIo {
            copies: array::from_fn(|_| copies.next()),
            busy: cow.busy(),
            cow: cow.clone(),
        };
        let pieces = parts.map(|(one, bytes)| Piece {
            buffer: &one.buffer,
            offset: bytes.start,
            bytes: bytes.end - bytes.start,
        });
        let (file, sector) = (&extent.device, extent.sector);
        match NewBio::new(Op::Write, file, sector, pieces, context) {
            Ok(bio) => bio.submit(),
            Err(context) => context.end_io(None, Err(ENOMEM)),
        }
        done = end;
    }
    let mut submitted = batch.iter().flatten();
    let ended = array::from_fn(|_| {
        let copy = &submitted.next()?.copy;
        copy.put_pending().then(|| copy.clone())
    });
    Cow::leave_stored(cow, ended);
}
