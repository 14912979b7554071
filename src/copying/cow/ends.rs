// SPDX-License-Identifier: GPL-2.0

//! The ends of the bios that read and store old data.
//!
//! ```text
//! read bio  -> ReadIo::end_io  -> queue_read_end  -> process_read_ends  -> finish_read
//! store bio -> StoreIo::end_io -> queue_store_end -> process_store_ends -> finish_store
//! ```
//!
//! A bio may end in an interrupt. So its end is only queued there, and processed by a work item;
//! but the end of a read that comes where its submitter still is, is processed at once.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bio::{
            submission_is_queued,
            OwnedBio, //
        },
        bio_set::{
            BioSet,
            EndIo,
            Target,
            TargetRef, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        SpinLockIrq, //
    }, //
};

use core::mem::{
    swap,
    take, //
};

use super::{
    flights::BATCH,
    Cow,
    STORE,
    WRITERS, //
};
use crate::{
    base::delays::{
        delay,
        Point, //
    },
    copying::{
        inflight::Busy,
        memory::CopySlot, //
    }, //
};

/// Slots whose bios have ended, for one work item to process. There is room for all.
pub(super) struct Ended {
    slots: KVec<Arc<CopySlot>>,
    /// The work item is queued, or will look here again before it ends.
    work_pending: bool,
}

impl Ended {
    /// Nothing has ended; there are `slots` slots.
    pub(super) fn new(slots: usize) -> Result<Self> {
        Ok(Self {
            slots: KVec::with_capacity(slots, GFP_KERNEL)?,
            work_pending: false,
        })
    }

    /// Whether nothing has ended that was not processed. From then on the work item is queued when
    /// something has.
    pub(super) fn all_processed(ended: &SpinLockIrq<Self>) -> bool {
        let mut ended = ended.lock();
        ended.work_pending = !ended.slots.is_empty();
        !ended.work_pending
    }

    /// Takes what has ended, and leaves the empty list `slots` for what ends meanwhile.
    fn take(ended: &SpinLockIrq<Self>, slots: &mut KVec<Arc<CopySlot>>) {
        let mut ended = ended.lock();
        swap(slots, &mut ended.slots);
        ended.work_pending = true;
    }
}

/// The context of a bio that reads old data.
pub(super) struct ReadIo {
    slot: Arc<CopySlot>,
    cow: Arc<Cow>,
    busy: Busy,
}

impl ReadIo {
    /// For the bio that reads for `slot`.
    pub(super) fn new(cow: &Arc<Cow>, slot: &Arc<CopySlot>) -> Self {
        Self {
            slot: slot.clone(),
            busy: cow.busy(),
            cow: cow.clone(),
        }
    }
}

impl EndIo for ReadIo {
    fn set(&self) -> &BioSet<Self> {
        &self.cow.resources.reads
    }

    fn target(&self) -> TargetRef<'_> {
        TargetRef::from(&self.cow.origin)
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self { slot, cow, busy } = self;
        delay(Point::ReadEnded);
        slot.note(result);
        if submission_is_queued() {
            // The writes that wait join the queue of the task that submits, and go on when it goes
            // on, without another task.
            cow.finish_read(&slot);
        } else {
            cow.queue_read_end(slot);
        }
        drop(cow);
        // Last, as it keeps all that must not go in an interrupt.
        drop(busy);
    }
}

/// The slots whose data one bio stores.
pub(super) type Stored = [Option<Arc<CopySlot>>; BATCH];

/// The context of a bio that stores old data.
pub(super) struct StoreIo {
    slots: Stored,
    target: Target,
    cow: Arc<Cow>,
    busy: Busy,
}

impl StoreIo {
    /// For a bio to `target` that stores for `slots`; it counts as
    /// [pending](CopySlot::get_pending) in each.
    pub(super) fn new(cow: &Arc<Cow>, slots: Stored, target: Target) -> Self {
        Self {
            slots,
            target,
            busy: cow.busy(),
            cow: cow.clone(),
        }
    }
}

impl EndIo<BATCH> for StoreIo {
    fn set(&self) -> &BioSet<Self, BATCH> {
        &self.cow.resources.stores
    }

    fn target(&self) -> TargetRef<'_> {
        TargetRef::from(&self.target)
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let Self {
            mut slots,
            target,
            cow,
            busy,
        } = self;
        // First, as who is told that nothing is written to the storage may close it.
        drop(target);
        delay(Point::StoreEnded);
        cow.health.end_write();
        for place in &mut slots {
            *place = place.take().filter(|slot| {
                slot.note(result);
                slot.put_pending()
            });
        }
        cow.queue_store_ends(slots);
        drop(cow);
        // Last, as it keeps all that must not go in an interrupt.
        drop(busy);
    }
}

impl Cow {
    /// The bio that reads for `slot` has ended. For any context.
    fn queue_read_end(self: &Arc<Self>, slot: Arc<CopySlot>) {
        let mut ended = self.read.lock();
        // There is room for each slot.
        let _ = ended.slots.push_within_capacity(slot);
        let kick = !ended.work_pending;
        ended.work_pending = true;
        drop(ended);
        if kick {
            let _ = self
                .resources
                .letting_go
                .enqueue::<_, WRITERS>(self.clone());
        }
    }

    /// All bios that store for `slots` have ended. For any context.
    ///
    /// If nobody waits for that, it will be processed when there is something else to store.
    pub(super) fn queue_store_ends(self: &Arc<Self>, slots: Stored) {
        let mut ended = self.stored.lock();
        let mut bad = false;
        for slot in slots.into_iter().flatten() {
            bad |= slot.result().is_err();
            // There is room for each slot.
            let _ = ended.slots.push_within_capacity(slot);
        }
        // Who begins to wait after this look has the work item queued.
        let wanted = bad || self.hurry.load(Relaxed) || self.image_has_failed();
        let kick = !ended.work_pending && !ended.slots.is_empty() && wanted;
        ended.work_pending |= kick;
        drop(ended);
        if kick {
            let _ = self.resources.storing.enqueue::<_, STORE>(self.clone());
        }
    }

    /// Processes the ends of reads that were queued.
    pub(super) fn process_read_ends(self: &Arc<Self>) {
        let mut slots = take(&mut self.inner.lock().read_room);
        Ended::take(&self.read, &mut slots);
        for slot in slots.drain_all() {
            self.finish_read(&slot);
        }
        self.inner.lock().read_room = slots;
    }

    /// Processes the ends of stores that were queued.
    pub(super) fn process_store_ends(self: &Arc<Self>) {
        let mut slots = take(&mut self.inner.lock().stored_room);
        Ended::take(&self.stored, &mut slots);
        for slot in slots.drain_all() {
            self.finish_store(&slot);
        }
        self.inner.lock().stored_room = slots;
    }
}
