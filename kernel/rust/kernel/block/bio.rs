// SPDX-License-Identifier: GPL-2.0

//! Block I/O requests.
//!
//! A [`Bio`] describes an operation on a contiguous range of sectors of one block device. This
//! module has the types for a bio that *somebody else* made and that we were handed, by a
//! [filter](super::filter) or as the driver of a [disk](super::bio_disk):
//!
//! - [`Bio`] looks at one;
//! - [`OwnedBio`] is the duty to end one, exactly once: by [`OwnedBio::end`], or by passing it on;
//! - [`BioList`] queues owned bios without allocating, linked through the bios themselves.
//!
//! Bios that we make ourselves come from a [`BioSet`](super::bio_set::BioSet).
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use crate::{
    bindings,
    block::SECTOR_SHIFT,
    prelude::*,
    types::Opaque, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// What a bio asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read sectors.
    Read,
    /// Write sectors.
    Write,
    /// Flush the device's write cache; carries no data.
    Flush,
    /// Tell the device that the sectors' content is not needed any more. An advice.
    Discard,
    /// Destroy the sectors' content.
    SecureErase,
    /// Write zeroes, without a payload.
    WriteZeroes,
    /// Something else, for instance an operation on a zoned device.
    Other,
}

impl Op {
    /// The operation's number in C.
    pub(super) fn as_raw(self) -> bindings::blk_opf_t {
        match self {
            Op::Read => bindings::req_op_REQ_OP_READ,
            Op::Write => bindings::req_op_REQ_OP_WRITE,
            Op::Flush => bindings::req_op_REQ_OP_FLUSH,
            Op::Discard => bindings::req_op_REQ_OP_DISCARD,
            Op::SecureErase => bindings::req_op_REQ_OP_SECURE_ERASE,
            Op::WriteZeroes => bindings::req_op_REQ_OP_WRITE_ZEROES,
            Op::Other => bindings::req_op_REQ_OP_DRV_IN,
        }
    }
}

/// A block I/O request.
///
/// Wraps the kernel's `struct bio`.
///
/// # Invariants
///
/// The bio is valid and not completed as long as the reference lives.
#[repr(transparent)]
pub struct Bio(Opaque<bindings::bio>);

impl Bio {
    /// Creates a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point at a valid bio that is neither completed nor passed on during `'a`.
    #[cfg(CONFIG_BLK_FILTER)]
    pub(super) unsafe fn from_raw<'a>(ptr: *mut bindings::bio) -> &'a Self {
        // SAFETY: The caller promises validity, and `Bio` is transparent.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C pointer.
    pub(super) fn as_raw(&self) -> *mut bindings::bio {
        self.0.get()
    }

    /// The raw operation and flags.
    fn opf(&self) -> bindings::blk_opf_t {
        // SAFETY: By the type invariant the bio is valid; only its holder changes this field.
        unsafe { (*self.as_raw()).bi_opf }
    }

    /// The operation.
    #[inline]
    pub fn op(&self) -> Op {
        match self.opf() & ((1 << bindings::REQ_OP_BITS) - 1) {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_SECURE_ERASE => Op::SecureErase,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Whether the operation may change data: C's `op_is_write()`.
    #[inline]
    pub fn is_write(&self) -> bool {
        self.opf() & 1 != 0
    }

    /// Whether the submitter wants an error rather than to wait (`REQ_NOWAIT`).
    #[inline]
    pub fn is_nowait(&self) -> bool {
        self.opf() & (1 << bindings::req_flag_bits___REQ_NOWAIT) != 0
    }

    /// The first sector, in units of 512 bytes.
    #[inline]
    pub fn sector(&self) -> u64 {
        // SAFETY: By the type invariant the bio is valid; only its holder changes this field.
        unsafe { (*self.as_raw()).bi_iter.bi_sector }
    }

    /// The number of sectors of 512 bytes.
    #[inline]
    pub fn sectors(&self) -> u32 {
        // SAFETY: By the type invariant the bio is valid; only its holder changes this field.
        unsafe { (*self.as_raw()).bi_iter.bi_size >> SECTOR_SHIFT }
    }

    /// The sector after the last one.
    #[inline]
    pub fn end_sector(&self) -> u64 {
        self.sector().wrapping_add(u64::from(self.sectors()))
    }
}

/// A bio that we have to end.
///
/// Dropping it ends it with an I/O error, so that its submitter never waits for ever.
///
/// # Invariants
///
/// `0` points at a valid bio, which nobody else ends, submits or links into a list.
pub struct OwnedBio(NonNull<Bio>);

// SAFETY: A bio may be ended and submitted from any thread.
unsafe impl Send for OwnedBio {}
// SAFETY: `&OwnedBio` only gives `&Bio`, which only reads.
unsafe impl Sync for OwnedBio {}

impl OwnedBio {
    /// Takes over a bio.
    ///
    /// # Safety
    ///
    /// `ptr` must point at a valid bio and the caller must hand over the right to end it.
    pub(super) unsafe fn from_raw(ptr: *mut bindings::bio) -> Self {
        // INVARIANT: Promised by the caller.
        // SAFETY: The caller promises validity, so the pointer is not null.
        Self(unsafe { NonNull::new_unchecked(ptr.cast()) })
    }

    /// Hands the duty to end the bio to the holder of the returned pointer.
    pub(super) fn into_raw(self) -> *mut bindings::bio {
        ManuallyDrop::new(self).as_raw()
    }

    /// Ends the bio. May be called in any context.
    pub fn end(self, result: Result) {
        let bio = self.into_raw();
        // Success leaves the status alone: a part that was split off may have set an error there,
        // which is the submitter's result then.
        if let Err(err) = result {
            // SAFETY: A pure function.
            let status = unsafe { bindings::errno_to_blk_status(err.to_errno()) };
            // SAFETY: We own the bio by the type invariant.
            unsafe { (*bio).bi_status = status };
        }
        // SAFETY: We own the bio by the type invariant and give it up here.
        unsafe { bindings::bio_endio(bio) };
    }

    /// Splits the first `sectors` sectors off: they are returned, and the rest is submitted again,
    /// to the same disk. For the driver of a [disk](super::bio_disk).
    ///
    /// Gives the whole bio back if it has no more than that, and `None` if it could not be split
    /// and was ended with an error. May wait for others that were split off bios of the disk to
    /// end: so what waits for the caller must not be many of these.
    pub fn split(self, sectors: u32) -> Option<OwnedBio> {
        if sectors >= self.sectors() {
            return Some(self);
        }
        if sectors == 0 {
            self.end(Err(EINVAL));
            return None;
        }
        let bio = self.into_raw();
        // SAFETY: The bio is ours, so its disk is there until it has ended; it has more sectors
        // than that. What is split off keeps it from ending, and so the disk's set of bios, from
        // which it is.
        let front = unsafe {
            let set = &raw mut (*(*(*bio).bi_bdev).bd_disk).bio_split;
            bindings::bio_submit_split_bioset(bio, sectors, set)
        };
        // SAFETY: The front is ours. The rest has been ended or submitted.
        (!front.is_null()).then(|| unsafe { Self::from_raw(front) })
    }

    /// Submits the bio again, to the disk that it came to, as one that could not be served when it
    /// came. For the driver of a [disk](super::bio_disk). May sleep.
    pub fn resubmit(self) {
        let bio = self.into_raw();
        // SAFETY: We own the bio by the type invariant and give it up here. It was submitted
        // before, so it is complete, and its disk is there until it has ended.
        unsafe { bindings::submit_bio_noacct(bio) };
    }

    /// Fills the memory that a read is to fill with zeroes. Does nothing to another bio.
    pub fn zero_fill(&mut self) {
        if self.op() == Op::Read {
            // SAFETY: We own the bio by the type invariant; that of a read has segments, and what
            // they point to is ours to write.
            unsafe { bindings::zero_fill_bio(self.as_raw()) };
        }
    }
}

impl Deref for OwnedBio {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        // SAFETY: By the type invariant the bio is valid as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for OwnedBio {
    fn drop(&mut self) {
        let bio = self.as_raw();
        // SAFETY: `self` goes, so the right to end the bio moves to the new owner.
        unsafe { OwnedBio::from_raw(bio) }.end(Err(EIO))
    }
}

/// Whether this task is submitting a bio (`current->bio_list` is set), so that others that it
/// submits are queued until that one was handed to its driver; and the context is not one where a
/// bio must not be completed (`bio_in_atomic()`).
///
/// Where that is so, the completion of a bio may submit others. Always `false` where the kernel
/// does not know whether locks are held (without `PREEMPT_COUNT`).
#[inline]
pub fn submission_is_queued() -> bool {
    // SAFETY: The current task is valid, and only it changes the field.
    let bio_list = unsafe { (*bindings::get_current()).bio_list };
    // SAFETY: Only looks at the context.
    !bio_list.is_null() && !unsafe { bindings::bio_in_atomic() }
}

/// A first-in first-out list of owned bios, linked through `bi_next`.
///
/// Bios that are still in it when it is dropped end with an I/O error.
///
/// # Invariants
///
/// `head` is null or the first of a null-terminated list of bios that the list owns; `tail` is
/// then the last one.
pub struct BioList {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
}

// SAFETY: The list owns its bios, which may be ended and submitted from any thread.
unsafe impl Send for BioList {}

impl BioList {
    /// Creates an empty list.
    pub const fn new() -> Self {
        // INVARIANT: An empty list.
        Self {
            head: core::ptr::null_mut(),
            tail: core::ptr::null_mut(),
        }
    }

    /// Whether there is no bio in the list.
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Appends a bio.
    pub fn push(&mut self, bio: OwnedBio) {
        let bio = bio.into_raw();
        // SAFETY: We own the bio.
        unsafe { (*bio).bi_next = core::ptr::null_mut() };
        if self.head.is_null() {
            self.head = bio;
        } else {
            // SAFETY: By the type invariant `tail` is a bio of ours.
            unsafe { (*self.tail).bi_next = bio };
        }
        // INVARIANT: `bio` is ours, last, and followed by null.
        self.tail = bio;
    }

    /// Appends all bios of another list.
    pub fn append(&mut self, mut other: Self) {
        if self.is_empty() {
            core::mem::swap(self, &mut other);
        } else if !other.is_empty() {
            // SAFETY: By the type invariant `tail` is a bio of ours.
            // INVARIANT: The bios of `other` follow ours, and are ours now.
            unsafe { (*self.tail).bi_next = other.head };
            self.tail = other.tail;
            other.head = core::ptr::null_mut();
        }
    }

    /// Removes the first bio.
    pub fn pop(&mut self) -> Option<OwnedBio> {
        let bio = self.head;
        if bio.is_null() {
            return None;
        }
        // SAFETY: By the type invariant `head` is a bio of ours.
        // INVARIANT: The rest of the list is a list.
        self.head = unsafe { (*bio).bi_next };
        // SAFETY: As above.
        unsafe { (*bio).bi_next = core::ptr::null_mut() };
        // SAFETY: By the type invariant we own the bio, and it is not in the list any more.
        Some(unsafe { OwnedBio::from_raw(bio) })
    }

    /// Takes all bios out of the list.
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }
}

impl Default for BioList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
