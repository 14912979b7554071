// SPDX-License-Identifier: GPL-2.0

//! A write to the storage, to see where it comes out.
//!
//! If what is stored for a snapshot is written to one of its own devices in the end, by way of a
//! loop device, of a file system on several devices or of whatever else, each store would have to
//! be copied first. Nobody could tell from looking. So something that nobody else has is written
//! where the first copy will be, and the filters of the devices look out for it.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bio::{
            Op,
            OwnedBio, //
        },
        bio_set::{
            BioSet,
            Buffer,
            EndIo,
            NewBio,
            Piece,
            Target,
            TargetRef,
            Wait, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Completion,
        Mutex, //
    },
    time::msecs_to_jiffies,
    uuid::Uuid, //
};

use crate::base::{
    params,
    units::{
        SECTOR_SHIFT,
        UNIT_SHIFT, //
    }, //
};

/// What to look out for: each sector that is written begins with it.
pub(crate) struct Mark {
    bytes: Uuid,
    seen: Atomic<bool>,
}

impl Mark {
    /// One that nobody else has. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let this = Self {
            bytes: Uuid::random(),
            seen: Atomic::new(false),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes.0
    }

    /// It has come by. For any context.
    pub(crate) fn note_seen(&self) {
        self.seen.store(true, Relaxed);
    }

    /// Whether it has come by, before a [write](Trial::write) returned.
    pub(crate) fn was_seen(&self) -> bool {
        self.seen.load(Relaxed)
    }
}

/// A read or write under way.
#[pin_data]
struct Transfer {
    set: BioSet<Ended>,
    /// A negative errno, or 0.
    status: Atomic<i32>,
    #[pin]
    done: Completion,
}

/// Its end.
struct Ended {
    transfer: Arc<Transfer>,
    target: Target,
}

impl EndIo for Ended {
    fn set(&self) -> &BioSet<Self> {
        &self.transfer.set
    }

    fn target(&self) -> TargetRef<'_> {
        TargetRef::from(&self.target)
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self { transfer, target } = self;
        if let Err(err) = result {
            transfer.status.store(err.to_errno(), Relaxed);
        }
        // Before who waits closes it.
        drop(target);
        // Orders the status before who waits.
        transfer.done.complete_all();
    }
}

impl Transfer {
    /// Waits for its end; tells whether it has come before writes would be let go that wait for the
    /// storage.
    fn ends_in_time(&self) -> bool {
        match params::diff_storage_timeout() {
            0 => {
                self.done.wait_for_completion();
                true
            }
            // CAST: A day at the most.
            limit => self
                .done
                .wait_for_completion_timeout(msecs_to_jiffies(limit as u32 * 1000)),
        }
    }

    /// What it came to, when it has ended.
    fn result(&self) -> Result {
        match self.status.load(Relaxed) {
            0 => Ok(()),
            err => Err(Error::from_errno(err)),
        }
    }
}

/// The bytes that are written: a unit, or a block of a device whose blocks are larger. Its ranges
/// have whole blocks.
fn size(target: &Target) -> usize {
    let block = match target {
        // CAST: `usize` is not smaller.
        Target::Device(file) => file.bdev().logical_block_size() as usize,
        Target::File(_) => 0,
    };
    block.max(1 << UNIT_SHIFT)
}

/// Writes to the storage of one snapshot.
#[pin_data]
pub(crate) struct Trial {
    /// The last read or write, if it did not come to its end in time. A leaf.
    #[pin]
    late: Mutex<Option<Arc<Transfer>>>,
}

impl Trial {
    /// None was made.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            late <- new_mutex!(None),
        })
    }

    /// Waits until nothing is under way, however long it takes: until then the storage must not be
    /// anybody else's. May sleep.
    pub(crate) fn wait(&self) {
        let late = self.late.lock().take();
        if let Some(transfer) = late {
            transfer.done.wait_for_completion();
        }
    }

    /// Reads or writes all that is in the buffer, and waits for it.
    fn transfer(&self, op: Op, target: &Target, sector: u64, buffer: &Arc<Buffer>) -> Result {
        let transfer = Arc::pin_init(
            try_pin_init!(Transfer {
                set: BioSet::new(1, Wait::ForBio)?,
                status: Atomic::new(0),
                done <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        let piece = Piece {
            buffer,
            offset: 0,
            bytes: size(target),
        };
        let context = Ended {
            transfer: transfer.clone(),
            target: target.clone(),
        };
        let bio = NewBio::new(op, sector, [piece], context);
        bio.map_err(|_| ENOMEM)?.submit();
        if !transfer.ends_in_time() {
            *self.late.lock() = Some(transfer);
            return Err(ETIMEDOUT);
        }
        transfer.result()
    }

    /// Writes the unit, or the block, at `sector` of `target`, so that each of its sectors begins
    /// with `mark`, and has it brought to stable storage: so it has gone all its way. If it was
    /// seen then, it has come to a place where something else is, and that is written again. May
    /// sleep; calls must not overlap in time.
    ///
    /// Fails with the errors of that, or with `ETIMEDOUT`.
    pub(crate) fn write(&self, target: &Target, sector: u64, mark: &Mark) -> Result {
        // One at a time.
        let late = self.late.lock().clone();
        if late.is_some_and(|late| !late.ends_in_time()) {
            return Err(ETIMEDOUT);
        }
        let bytes = size(target);
        let old = Buffer::new(bytes, GFP_KERNEL)?;
        let new = Buffer::new(bytes, GFP_KERNEL)?;
        // Nothing that a file system could make shorter.
        for at in (0..bytes).step_by(size_of::<Uuid>()) {
            new.write(at, &Uuid::random().0);
        }
        for at in (0..bytes).step_by(1 << SECTOR_SHIFT) {
            new.write(at, mark.bytes());
        }
        self.transfer(Op::Read, target, sector, &old)?;
        let written = self
            .transfer(Op::Write, target, sector, &new)
            .and_then(|()| target.flush());
        if mark.was_seen() {
            // Were it written after that, the mark would stay in the place of something else.
            self.wait();
            self.transfer(Op::Write, target, sector, &old)?;
            target.flush()?;
        }
        written
    }
}
