// SPDX-License-Identifier: GPL-2.0

//! The copy of one run of chunks: read by one bio, stored by one bio if its place is in one piece.
//!
//! ```text
//! start -> read bio -> (interrupt) -> work: Cow::read_done -> store bios -> (interrupt)
//!                                     -> work: Cow::store_done
//! ```
//!
//! A copy engine makes all its copies when the snapshot is taken, and uses them again and again:
//! so their number bounds the memory, and starting one allocates nothing but pages, which a copy
//! keeps as long as they are few. Some have pages for one chunk from the start, which makes
//! progress independent of the state of memory.

use kernel::{
    alloc::flags::{
        __GFP_NOWARN, //
        GFP_KERNEL,
        GFP_NOWAIT,
    },
    block::{
        bio::{
            Op,
            OwnedBio, //
        },
        bio_set::{
            bytes_to_sectors,
            Buffer,
            EndIo,
            NewBio,
            Wait, //
        }, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

use core::ops::Range;

use crate::{
    cow::Cow,
    engine::{
        Busy,
        Engine, //
    },
    units::{
        SECTOR_SHIFT,
        UNIT_SHIFT, //
    }, //
};

/// The largest number of bytes that a copy keeps between uses.
const KEEP: usize = 64 << 10;

/// What a copy is doing.
pub(crate) struct Job {
    /// For whom.
    pub(crate) cow: Arc<Cow>,
    /// The first chunk.
    pub(crate) first: u64,
    /// The number of chunks.
    pub(crate) count: u64,
    /// The first unit of difference storage, once it is being stored.
    pub(crate) unit: Option<u32>,
    _busy: Busy,
}

/// A copy. Its lock is a leaf; not taken in interrupts.
#[pin_data]
pub(crate) struct Copy {
    engine: Arc<Engine>,
    #[pin]
    state: SpinLock<State>,
    /// Bios in flight.
    pending: Atomic<i32>,
    /// The first error of a bio, as a negative errno, or 0.
    status: Atomic<i32>,
    #[pin]
    work: Work<Copy>,
}

struct State {
    job: Option<Job>,
    buffer: Option<Arc<Buffer>>,
    /// The buffer is kept whatever its size.
    reserve: bool,
}

impl_has_work! {
    impl HasWork<Self> for Copy { self.work }
}

impl Copy {
    /// Makes a copy that does nothing; if `reserve` is not 0, with that many bytes of memory.
    pub(crate) fn new(engine: &Arc<Engine>, reserve: usize) -> Result<Arc<Self>> {
        let buffer = match reserve {
            0 => None,
            bytes => Some(Buffer::new(bytes, GFP_KERNEL)?),
        };
        Arc::pin_init(
            pin_init!(Self {
                engine: engine.clone(),
                state <- new_spinlock!(State {
                    job: None,
                    buffer,
                    reserve: reserve != 0,
                }),
                pending: Atomic::new(0),
                status: Atomic::new(0),
                work <- new_work!("blksnap::Copy"),
            }),
            GFP_KERNEL,
        )
    }

    /// The bytes of memory that it holds.
    pub(crate) fn memory(&self) -> usize {
        let state = self.state.lock();
        state.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    /// Gets memory for `bytes` bytes, or at least for `least`. Returns how many. Does not sleep.
    pub(crate) fn reserve(&self, bytes: usize, least: usize) -> Result<usize> {
        let mut state = self.state.lock();
        let have = state.buffer.as_ref().map_or(0, |buffer| buffer.len());
        if have >= bytes {
            return Ok(bytes);
        }
        if !state.reserve || have < least {
            if let Ok(buffer) = Buffer::new(bytes, GFP_NOWAIT | __GFP_NOWARN) {
                state.buffer = Some(buffer);
                return Ok(bytes);
            }
        }
        if have < least {
            return Err(ENOMEM);
        }
        Ok(have)
    }

    /// Makes the bio that reads the job's chunks. On failure nothing has changed. Does not sleep.
    pub(crate) fn start(
        this: &Arc<Self>,
        cow: &Arc<Cow>,
        run: Range<u64>,
    ) -> Result<NewBio<CopyIo>> {
        let (first, count) = (run.start, run.end - run.start);
        let geometry = cow.geometry();
        let mut state = this.state.lock();
        let buffer = state.buffer.as_ref().ok_or(ENOMEM)?;
        let bio = this
            .engine
            .reads
            .alloc(
                Op::Read,
                cow.origin(),
                geometry.sector(first),
                buffer,
                0,
                (geometry.sectors_in(first, count) << SECTOR_SHIFT) as usize,
                CopyIo::new(this, cow),
                Wait::Never,
            )
            .map_err(|_| ENOMEM)?;
        state.job = Some(Job {
            cow: cow.clone(),
            first,
            count,
            unit: None,
            _busy: cow.busy(),
        });
        this.pending.store(1, Relaxed);
        this.status.store(0, Relaxed);
        Ok(bio)
    }

    /// Stores the `bytes` bytes that were read at `unit`. May sleep.
    ///
    /// Returns whether that is still going on; then [`Cow::store_done`] is called at its end.
    pub(crate) fn store(this: &Arc<Self>, cow: &Cow, unit: u32, bytes: usize) -> Result<bool> {
        let buffer = {
            let mut state = this.state.lock();
            if let Some(job) = &mut state.job {
                job.unit = Some(unit);
            }
            state.buffer.clone().ok_or(EIO)?
        };
        // The storage is written in whole units: no old memory may get there.
        let padded = bytes.next_multiple_of(1 << UNIT_SHIFT);
        buffer.zero(bytes, padded);
        // One more, so that the end does not come before all are submitted.
        this.pending.store(1, Relaxed);
        let mut done = 0;
        while done < padded {
            let extent = cow.storage().locate(
                unit,
                bytes_to_sectors(done),
                bytes_to_sectors(padded - done),
            );
            let Some(extent) = extent else {
                this.note(EIO);
                break;
            };
            let len = (extent.sectors << SECTOR_SHIFT) as usize;
            let bio = this.engine.stores.alloc(
                Op::Write,
                &extent.device,
                extent.sector,
                &buffer,
                done,
                len,
                CopyIo::new(this, cow),
                Wait::ForBio,
            );
            let Ok(bio) = bio else {
                this.note(ENOMEM);
                break;
            };
            this.pending.add(1, Relaxed);
            bio.submit();
            done += len;
        }
        Ok(!this.put_pending())
    }

    /// Notes the first error.
    fn note(&self, err: Error) {
        let _ = self.status.cmpxchg(0, err.to_errno(), Relaxed);
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

    /// Ends the job and frees memory that is too much to keep.
    pub(crate) fn finish(&self) -> Option<Job> {
        let mut state = self.state.lock();
        let large = state
            .buffer
            .as_ref()
            .is_some_and(|buffer| buffer.len() > KEEP);
        let buffer = if large && !state.reserve {
            state.buffer.take()
        } else {
            None
        };
        let job = state.job.take();
        drop(state);
        drop(buffer);
        job
    }

    /// Looks at the job.
    pub(crate) fn job<R>(&self, look: impl FnOnce(&Job) -> R) -> Option<R> {
        self.state.lock().job.as_ref().map(look)
    }
}

/// The context of a copy's bios.
pub(crate) struct CopyIo {
    copy: Arc<Copy>,
    busy: Busy,
}

impl CopyIo {
    fn new(copy: &Arc<Copy>, cow: &Cow) -> Self {
        Self {
            copy: copy.clone(),
            busy: cow.busy(),
        }
    }
}

impl EndIo for CopyIo {
    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self { copy, busy } = self;
        if let Err(err) = result {
            copy.note(err);
        }
        if copy.put_pending() {
            let engine = copy.engine.clone();
            // Cannot be queued already: only the last bio of a step does that.
            let _ = engine.queue.enqueue(copy);
        }
        // Last, as it keeps all that must not go in an interrupt.
        drop(busy);
    }
}

impl WorkItem for Copy {
    type Pointer = Arc<Copy>;

    fn run(this: Arc<Copy>) {
        let Some((cow, unit)) = this.job(|job| (job.cow.clone(), job.unit)) else {
            return;
        };
        match unit {
            None => cow.read_done(&this),
            Some(_) => cow.store_done(&this),
        }
    }
}
