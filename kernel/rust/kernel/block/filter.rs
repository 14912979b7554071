// SPDX-License-Identifier: GPL-2.0

//! Block filters: see each bio of a device before its driver does.
//!
//! A type that implements [`Filter`] is attached by making a [`Registration`] of it and detached
//! by dropping that. Each bio that reaches the device is shown as an [`Incoming`], about which
//! the filter decides: to [pass](Incoming::pass) it, to [end](Incoming::end) it, or to
//! [hold](Incoming::hold) it. A [`Held`] bio is let go later by [`Held::resubmit`], and is then
//! shown again.
//!
//! C header: [`include/linux/blk-filter.h`](srctree/include/linux/blk-filter.h)

use super::{
    bdev::BdevFile,
    bio::{
        Bio,
        BioList,
        OwnedBio, //
    },
    queue::Entered, //
};
use crate::{
    bindings,
    error::to_result,
    module::this_module,
    prelude::*,
    sync::Arc,
    time::Jiffies,
    types::Opaque,
    ModuleMetadata, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// Operations of bios.
#[derive(Clone, Copy)]
pub struct OpMask(u64);

impl OpMask {
    /// All operations.
    pub const ALL: Self = Self(u64::MAX);

    /// All that may change the device's data: those for which [`Bio::is_write`] is true, which
    /// have odd numbers. `BLK_FILTER_WRITES` in C.
    pub const WRITES: Self = Self(0xaaaa_aaaa_aaaa_aaaa);
}

/// What a filter does.
pub trait Filter: Send + Sync + 'static {
    /// The module that has the code. It must have dropped each [`Registration`] when its own
    /// data was dropped; the block layer takes off what was forgotten.
    type OwnerModule: ModuleMetadata;

    /// The name that the device's `filters` attribute shows.
    const NAME: &'static CStr;

    /// Which bios are shown. Others do not cost an indirect call.
    const OPS: OpMask = OpMask::ALL;

    /// Decides about a bio that is about to be handed to the driver.
    ///
    /// The bio has one of the operations in [`OPS`](Self::OPS), overlaps the filtered device and
    /// has at least one sector; its sectors are relative to the whole disk. The decision is valid
    /// for this time only: a resubmitted bio, and the remainder of one that is split below, is
    /// shown again.
    ///
    /// Called in process context and inside of the queue, hence must not wait for I/O, nor take a
    /// lock that is held across I/O or a queue freeze. Bios submitted here are queued.
    fn submit_bio<'a>(&self, bio: Incoming<'a>, entered: &Entered<'_>) -> Verdict<'a>;

    /// The capacity of the disk is about to change from `old` to `new` sectors of 512 bytes; 0
    /// means that there is no medium. For a filter on a partition, too, it is that of the disk.
    ///
    /// Called before the new capacity can be seen, while bios may be in flight. Calls for one disk
    /// do not overlap. The context is atomic, interrupts may be off, and locks of the driver and of
    /// the filters are held: use atomics, locks that are safe in interrupts, and workqueues, and
    /// nothing of the [`Registration`].
    fn resized(&self, old: u64, new: u64) {
        let _ = (old, new);
    }

    /// The disk is about to get other data without a bio, because it, or a disk that it is made
    /// of, is made of something else now. Nothing that was known of the data holds any more.
    ///
    /// Called before that data can be read, in the same context as [`resized`](Self::resized).
    fn replaced(&self) {}

    /// The device is being removed. The last bios may still come, and some may pass unseen.
    ///
    /// Called in process context with the mutex of the disk's filters held and, but for a whole
    /// disk in a patched kernel, the disk's `open_mutex`: must neither open or close the device nor
    /// drop the [`Registration`], nor wait for somebody who does or who makes one.
    fn gone(&self);
}

/// A filter's decision about the bio that was shown to it.
pub struct Verdict<'a> {
    taken: bool,
    // Invariant in `'a`, so that it cannot stand in for that of another bio.
    _p: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl Verdict<'_> {
    fn new(taken: bool) -> Self {
        Self {
            taken,
            _p: PhantomData,
        }
    }
}

/// A bio shown to a filter.
///
/// # Invariants
///
/// We are in the `submit_bio` callback of `filter` for `bio`, about which was not decided yet.
pub struct Incoming<'a> {
    bio: *mut bindings::bio,
    filter: *mut bindings::blk_filter,
    _p: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a> Incoming<'a> {
    /// Lets the bio go on to the driver.
    #[inline]
    pub fn pass(self) -> Verdict<'a> {
        Verdict::new(false)
    }

    /// Ends the bio here.
    pub fn end(self, result: Result) -> Verdict<'a> {
        // SAFETY: By the type invariant the bio is valid, and the filter may take it.
        unsafe { OwnedBio::from_raw(self.bio) }.end(result);
        Verdict::new(true)
    }

    /// Whether one of its sectors begins with these bytes.
    pub fn has(&self, mark: &[u8]) -> bool {
        // SAFETY: By the type invariant the bio is valid, and so is its data.
        unsafe { bindings::blk_filter_bio_has(self.bio, mark.as_ptr().cast(), mark.len()) }
    }

    /// Takes the bio, to be let go later.
    pub fn hold(self) -> (Held, Verdict<'a>) {
        // SAFETY: We are in the filter's callback.
        unsafe { bindings::blk_filter_hold(self.filter, self.bio) };
        let held = Held {
            // SAFETY: By the type invariant the bio is valid, and the filter may take it.
            bio: ManuallyDrop::new(unsafe { OwnedBio::from_raw(self.bio) }),
            // SAFETY: The pointer comes from the callback and is not null.
            filter: unsafe { NonNull::new_unchecked(self.filter) },
        };
        // INVARIANT: `blk_filter_hold()` was called.
        (held, Verdict::new(true))
    }
}

impl Deref for Incoming<'_> {
    type Target = Bio;

    #[inline]
    fn deref(&self) -> &Bio {
        // SAFETY: By the type invariant the bio is valid.
        unsafe { Bio::from_raw(self.bio) }
    }
}

/// A bio that a filter holds. Dropping it lets it go on.
///
/// # Invariants
///
/// `filter` holds `bio`, and so is not freed: detaching waits for held bios.
pub struct Held {
    bio: ManuallyDrop<OwnedBio>,
    filter: NonNull<bindings::blk_filter>,
}

// SAFETY: Bios may be resubmitted from any thread.
unsafe impl Send for Held {}

impl Held {
    /// Lets the bio go on; it is shown to all filters of the device again. May sleep.
    pub fn resubmit(self) {
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: `self` goes, so `bio` is not used again.
        let bio = unsafe { ManuallyDrop::take(&mut self.bio) };
        // SAFETY: The filter holds the bio by the type invariant.
        unsafe { bindings::blk_filter_resubmit(self.filter.as_ptr(), bio.into_raw()) };
    }
}

impl Deref for Held {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        &self.bio
    }
}

/// A first-in first-out list of bios that one filter holds. Dropping it lets them go on.
///
/// # Invariants
///
/// `filter` holds each bio in `bios`.
pub struct HeldList {
    bios: BioList,
    filter: Option<NonNull<bindings::blk_filter>>,
}

// SAFETY: Bios may be resubmitted from any thread.
unsafe impl Send for HeldList {}

impl HeldList {
    /// Creates an empty list.
    pub const fn new() -> Self {
        Self {
            bios: BioList::new(),
            filter: None,
        }
    }

    /// Whether there is no bio in the list.
    pub fn is_empty(&self) -> bool {
        self.bios.is_empty()
    }

    /// Appends a bio. Gives it back if the list has bios of another filter.
    pub fn push(&mut self, held: Held) -> Result<(), Held> {
        if !self.is_empty() && self.filter != Some(held.filter) {
            return Err(held);
        }
        let mut held = ManuallyDrop::new(held);
        self.filter = Some(held.filter);
        // SAFETY: `held` is not used again.
        // INVARIANT: The filter holds the bio by `Held`'s invariant.
        self.bios.push(unsafe { ManuallyDrop::take(&mut held.bio) });
        Ok(())
    }

    /// Puts a bio before the others. Gives it back if the list has bios of another filter.
    pub fn push_front(&mut self, held: Held) -> Result<(), Held> {
        if !self.is_empty() && self.filter != Some(held.filter) {
            return Err(held);
        }
        let rest = self.take();
        self.push(held)?;
        self.bios.append(rest.into_bios());
        Ok(())
    }

    /// Gives up the knowledge whose bios these are.
    fn into_bios(self) -> BioList {
        ManuallyDrop::new(self).bios.take()
    }

    /// Removes the first bio.
    pub fn pop(&mut self) -> Option<Held> {
        let filter = self.filter?;
        // INVARIANT: By the type invariant `filter` holds the bio.
        Some(Held {
            bio: ManuallyDrop::new(self.bios.pop()?),
            filter,
        })
    }

    /// Takes all bios out of the list.
    pub fn take(&mut self) -> Self {
        Self {
            bios: self.bios.take(),
            filter: self.filter,
        }
    }

    /// Lets all bios go on, in order. May sleep.
    pub fn resubmit(self) {
        drop(self);
    }
}

impl Default for HeldList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for HeldList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// A filter attached to a device.
///
/// Dropping it detaches the filter, which waits for the bios that it holds: whoever drops it must
/// not be needed for letting these go.
///
/// # Invariants
///
/// `filter` is initialised, and attached unless its device has gone or [`detach`](Self::detach)
/// was called.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Registration<T: Filter> {
    #[pin]
    filter: Opaque<bindings::blk_filter>,
    #[pin]
    data: T,
}

// SAFETY: A filter may be detached from any thread, and `T` is `Send`.
unsafe impl<T: Filter> Send for Registration<T> {}
// SAFETY: The C functions are thread-safe, and `T` is `Sync`.
unsafe impl<T: Filter> Sync for Registration<T> {}

impl<T: Filter> Registration<T> {
    const OPERATIONS: bindings::blk_filter_operations = bindings::blk_filter_operations {
        name: crate::str::as_char_ptr_in_const_context(T::NAME),
        owner: this_module::<T::OwnerModule>().as_ptr(),
        op_mask: T::OPS.0,
        submit_bio: Some(Self::submit_bio_callback),
        resized: Some(Self::resized_callback),
        replaced: Some(Self::replaced_callback),
        gone: Some(Self::gone_callback),
    };
    const VTABLE: &'static bindings::blk_filter_operations = &Self::OPERATIONS;

    /// Attaches a filter to `file`'s device. May sleep.
    ///
    /// Fails with `ENODEV` when the device is being removed, and with `EOPNOTSUPP` when it cannot
    /// be filtered.
    pub fn new<E>(file: &Arc<BdevFile>, data: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        let file = file.clone();
        try_pin_init!(Self {
            data <- data,
            // After `data`, which the callback uses.
            filter <- Opaque::try_ffi_init(move |slot: *mut bindings::blk_filter| {
                let bdev = file.bdev().as_raw();
                // SAFETY: `slot` is valid for writes and pinned until it was detached, the device
                // is open, and the operations are static.
                to_result(unsafe { bindings::blk_filter_attach(slot, bdev, Self::VTABLE) })
            }),
        }? Error)
    }

    /// The sequence number of the device's disk, which changes with the medium. `None` if the
    /// device has gone. May sleep.
    pub fn disk_seq(&self) -> Option<u64> {
        // SAFETY: The filter is initialised by the type invariant.
        match unsafe { bindings::blk_filter_diskseq(self.filter.get()) } {
            0 => None,
            seq => Some(seq),
        }
    }

    /// The number of bios that the filter holds.
    pub fn held(&self) -> u32 {
        // SAFETY: The filter is initialised by the type invariant, and the counter is only changed
        // by atomic operations.
        let held = unsafe { (&raw const (*self.filter.get()).held.counter).read_volatile() };
        u32::try_from(held).unwrap_or(0)
    }

    /// Detaches the filter. May be called more than once.
    pub fn detach(&self) {
        // SAFETY: The filter is initialised by the type invariant.
        unsafe { bindings::blk_filter_detach(self.filter.get()) };
    }

    /// Stops the writes of the filtered device, opened as `file`; those in flight are
    /// [drained](WriteGate::drain). May sleep.
    ///
    /// Fails with `ETIMEDOUT`, or with `ENODEV` if `file` is another device or the device has
    /// gone.
    pub fn gate(&self, file: &Arc<BdevFile>, timeout: Jiffies) -> Result<WriteGate> {
        let bdev = file.bdev().as_raw();
        // SAFETY: The filter is initialised by the type invariant. The field may be cleared beside
        // us, which the volatile read allows for.
        if unsafe { (&raw const (*self.filter.get()).bdev).read_volatile() } != bdev {
            return Err(ENODEV);
        }
        // SAFETY: The device is open, and has had a filter attached: ours.
        to_result(unsafe { bindings::blk_write_gate_close(bdev, timeout as c_ulong) })?;
        // INVARIANT: The gate has just been closed.
        Ok(WriteGate(file.clone()))
    }

    /// # Safety
    ///
    /// Only called by the block layer, with a filter that was attached by `new()`.
    unsafe extern "C" fn submit_bio_callback(
        filter: *mut bindings::blk_filter,
        bio: *mut bindings::bio,
    ) -> bool {
        // SAFETY: `filter` is the first field of a `Registration<T>`, which is `repr(C)`.
        let this = unsafe { &*filter.cast::<Self>() };
        // INVARIANT: We are in the callback.
        let incoming = Incoming {
            bio,
            filter,
            _p: PhantomData,
        };
        // SAFETY: The bio is valid, and has a device.
        let queue = unsafe { (*(*bio).bi_bdev).bd_queue };
        // SAFETY: The callback is made where `blk_filter_freeze_wait()` waits for it: with the
        // queue entered, or inside of the gate that the front closes before it freezes the queue.
        let entered = unsafe { Entered::new(queue) };
        this.data.submit_bio(incoming, &entered).taken
    }

    /// # Safety
    ///
    /// Only called by the block layer, with a filter that was attached by `new()`.
    unsafe extern "C" fn resized_callback(
        filter: *mut bindings::blk_filter,
        old: bindings::sector_t,
        new: bindings::sector_t,
    ) {
        // SAFETY: `filter` is the first field of a `Registration<T>`, which is `repr(C)`.
        let this = unsafe { &*filter.cast::<Self>() };
        this.data.resized(old, new);
    }

    /// # Safety
    ///
    /// Only called by the block layer, with a filter that was attached by `new()`.
    unsafe extern "C" fn replaced_callback(filter: *mut bindings::blk_filter) {
        // SAFETY: `filter` is the first field of a `Registration<T>`, which is `repr(C)`.
        let this = unsafe { &*filter.cast::<Self>() };
        this.data.replaced();
    }

    /// # Safety
    ///
    /// Only called by the block layer, with a filter that was attached by `new()`.
    unsafe extern "C" fn gone_callback(filter: *mut bindings::blk_filter) {
        // SAFETY: `filter` is the first field of a `Registration<T>`, which is `repr(C)`.
        let this = unsafe { &*filter.cast::<Self>() };
        this.data.gone();
    }
}

impl<T: Filter> Deref for Registration<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

/// New writes of a bio based device are stopped. Undone when dropped.
///
/// Freezing the queue does not wait for the I/O of a bio based driver, see
/// `blk_write_gate_close()`. No effect on request based devices, where it does.
///
/// # Invariants
///
/// The gate of the device was closed by us, and not opened again.
#[must_use]
pub struct WriteGate(Arc<BdevFile>);

impl WriteGate {
    /// Waits for the writes that were let through before the gate was closed. May sleep.
    ///
    /// Fails with `ETIMEDOUT`.
    pub fn drain(&self, timeout: Jiffies) -> Result {
        // SAFETY: The device is open, and the gate closed by the type invariant.
        to_result(unsafe {
            bindings::blk_write_gate_drain(self.0.bdev().as_raw(), timeout as c_ulong)
        })
    }
}

impl Drop for WriteGate {
    fn drop(&mut self) {
        // SAFETY: The device is open, and the gate closed by the type invariant.
        unsafe { bindings::blk_write_gate_open(self.0.bdev().as_raw()) };
    }
}

#[pinned_drop]
impl<T: Filter> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        self.detach();
    }
}
