// SPDX-License-Identifier: GPL-2.0

//! Bios of our own.
//!
//! The bios of a [`BioSet`] each carry a context of type `T` in the same allocation, and a reserve
//! of them lets I/O make progress when memory is short. A [`NewBio`] is made, then
//! [submitted](NewBio::submit); when it has completed, [`EndIo::end_io`] gets the context back.
//!
//! The data of a bio is either in [`Buffer`]s or that of another bio, of which it is a
//! [clone](NewBio::clone_of). In both cases the new bio keeps the data until it has completed; its
//! context keeps the [set](EndIo::set) and the [target](EndIo::target).
//!
//! - `buffer` allocates the pages;
//! - this file has the set, and how bio and context lie in memory;
//! - `new_bio` is the proof of who owns a bio, from its allocation to its end.
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use super::{
    bdev::BdevFile,
    bio::OwnedBio, //
};
#[cfg(CONFIG_HELD_FILE)]
use crate::fs::held_file::HeldFile;
use crate::{
    bindings,
    error::to_result,
    impl_has_work,
    preempt,
    prelude::*,
    sync::Arc,
    types::Opaque,
    workqueue::{
        self,
        new_work,
        Work,
        WorkItem, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::{
        offset_of,
        ManuallyDrop, //
    }, //
};

mod buffer;
mod new_bio;

pub use self::{
    buffer::{
        bytes_to_sectors,
        Buffer,
        Piece,
        MAX_BUFFER_BIO, //
    },
    new_bio::NewBio, //
};

/// Whether [`NewBio::new`] may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It fails rather than wait, and may be called in atomic context. It does not use the set's
    /// reserve.
    Never,
    /// It waits for other bios of the same set to complete, so these must not depend on the caller.
    /// It fails only in an interrupt.
    ///
    /// Each processor keeps some bios of such a set that were freed on it.
    ForBio,
}

impl Wait {
    fn gfp(self) -> bindings::gfp_t {
        match self {
            Wait::Never => bindings::GFP_ATOMIC | bindings::__GFP_NOWARN,
            Wait::ForBio => bindings::GFP_NOIO,
        }
    }
}

/// The context of a bio of our own.
pub trait EndIo<const N: usize = 1>: Send + Sized + 'static {
    /// The set that bios with this context are from, which the context keeps.
    fn set(&self) -> &BioSet<Self, N>;

    /// Where the bio goes, which the context keeps open.
    fn target(&self) -> TargetRef<'_>;

    /// The bio has completed with `result`; `cloned` is the bio that it was a clone of.
    ///
    /// May be called in any context, so it must not sleep. It may drop the last reference to the
    /// set.
    fn end_io(self, cloned: Option<OwnedBio>, result: Result);
}

/// Where a bio of our own goes.
#[derive(Clone)]
pub enum Target {
    /// To a device.
    Device(Arc<BdevFile>),
    /// To a file that is held by its content: sectors count from its beginning. A worker makes
    /// a read or write of it, and ends the bio in process context.
    #[cfg(CONFIG_HELD_FILE)]
    File(Arc<HeldFile>),
}

impl Target {
    /// Brings what was written there to stable storage. May sleep.
    pub fn flush(&self) -> Result {
        match self {
            Self::Device(file) => {
                let bdev = file.bdev().as_raw();
                // SAFETY: The device is open.
                to_result(unsafe { bindings::blkdev_issue_flush(bdev) })
            }
            #[cfg(CONFIG_HELD_FILE)]
            Self::File(file) => file.sync(),
        }
    }
}

impl From<&Arc<BdevFile>> for Target {
    fn from(file: &Arc<BdevFile>) -> Self {
        Self::Device(file.clone())
    }
}

/// A [`Target`] that somebody keeps.
#[derive(Clone, Copy)]
pub enum TargetRef<'a> {
    /// A device.
    Device(&'a BdevFile),
    /// A file that is held by its content.
    #[cfg(CONFIG_HELD_FILE)]
    File(&'a HeldFile),
}

impl TargetRef<'_> {
    /// The device; null if it is none.
    #[inline]
    fn bdev(self) -> *mut bindings::block_device {
        match self {
            Self::Device(file) => file.bdev().as_raw(),
            #[cfg(CONFIG_HELD_FILE)]
            Self::File(_) => core::ptr::null_mut(),
        }
    }

    /// The file; null if it is none.
    #[cfg(CONFIG_HELD_FILE)]
    #[inline]
    fn file(self) -> *mut bindings::held_file {
        match self {
            Self::Device(_) => core::ptr::null_mut(),
            Self::File(file) => file.as_raw(),
        }
    }
}

impl<'a> From<&'a Arc<BdevFile>> for TargetRef<'a> {
    #[inline]
    fn from(file: &'a Arc<BdevFile>) -> Self {
        Self::Device(file)
    }
}

impl<'a> From<&'a Target> for TargetRef<'a> {
    #[inline]
    fn from(target: &'a Target) -> Self {
        match target {
            Target::Device(file) => Self::Device(file),
            #[cfg(CONFIG_HELD_FILE)]
            Target::File(file) => Self::File(file),
        }
    }
}

/// What lives and dies with a bio.
struct Context<T, const N: usize> {
    data: T,
    /// The file that it goes to, which `data` keeps; null if that is a device.
    #[cfg(CONFIG_HELD_FILE)]
    file: *mut bindings::held_file,
    /// Keep the data pages.
    _buffers: [Option<Arc<Buffer>>; N],
    /// Keeps the data pages and the segments, for a clone.
    cloned: Option<OwnedBio>,
}

/// A bio with its context in front of it; `bio` is followed by memory for its segments.
#[repr(C)]
struct Private<T, const N: usize> {
    context: Context<T, N>,
    bio: bindings::bio,
}

/// The C set, and the work that frees it.
///
/// # Invariants
///
/// `bioset_init()` succeeded on `set`, which is pinned until dropped.
#[pin_data(PinnedDrop)]
struct RawSet {
    #[pin]
    set: Opaque<bindings::bio_set>,
    #[pin]
    free: Work<RawSet>,
}

// SAFETY: A bio set may be used and freed from any thread.
unsafe impl Send for RawSet {}
// SAFETY: Allocating from a bio set is thread-safe.
unsafe impl Sync for RawSet {}

impl_has_work! {
    impl HasWork<Self> for RawSet { self.free }
}

/// These functions are neither generic nor inlined, so that what they instantiate is in the kernel
/// crate: the work's function, above all, which may run when the module whose set it was has gone.
impl RawSet {
    #[inline(never)]
    fn new(reserve: u32, pad: c_uint, flags: u32) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            try_pin_init!(Self {
                // INVARIANT: On success `bioset_init()` has initialised `set`.
                set <- Opaque::try_ffi_init(move |slot: *mut bindings::bio_set| {
                    // SAFETY: `slot` is valid for writes.
                    unsafe { slot.write(pin_init::zeroed()) };
                    // CAST: Small flags.
                    // SAFETY: `slot` is zeroed, pinned and exclusively ours.
                    to_result(unsafe { bindings::bioset_init(slot, reserve, pad, flags as c_int) })
                }),
                free <- new_work!("BioSet::free"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has it freed by a worker. For any context.
    #[inline(never)]
    fn free_later(this: Pin<KBox<Self>>) {
        workqueue::system_dfl().enqueue(this);
    }
}

impl WorkItem for RawSet {
    type Pointer = Pin<KBox<RawSet>>;

    fn run(this: Pin<KBox<RawSet>>) {
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for RawSet {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by the type invariant. None of its bios is left, as each of them has
        // a context that keeps the `BioSet`, by the type invariant of `NewBio`.
        unsafe { bindings::bioset_exit(self.set.get()) };
    }
}

/// A set of bios that carry a context of type `T` and use at most `N` buffers each, with a reserve.
///
/// It may be dropped in any context. Freeing it sleeps, so a worker does that: the last reference
/// may go with a bio that completes in an interrupt, or below `submit_bio()`, where locks of CPU
/// hotplug must not be taken.
///
/// # Invariants
///
/// The front pad of the C set is that of `Private<T, N>`. It has a cache for each processor only
/// if `wait` is [`Wait::ForBio`].
pub struct BioSet<T: EndIo<N>, const N: usize = 1> {
    /// In memory of its own, which can outlive `self`.
    raw: ManuallyDrop<Pin<KBox<RawSet>>>,
    wait: Wait,
    _p: PhantomData<fn(T)>,
}

impl<T: EndIo<N>, const N: usize> BioSet<T, N> {
    /// Creates a set with `reserve` bios in reserve. May sleep.
    pub fn new(reserve: u32, wait: Wait) -> Result<Self> {
        // The slab aligns to at least that.
        const { assert!(align_of::<Private<T, N>>() <= align_of::<u64>()) };
        // The rescuer lets several bios be allocated below one `submit_bio()`.
        let mut flags = bindings::BIOSET_NEED_BVECS | bindings::BIOSET_NEED_RESCUER;
        if wait == Wait::ForBio {
            flags |= bindings::BIOSET_PERCPU_CACHE;
        }
        // CAST: The offset of a small struct.
        let pad = offset_of!(Private<T, N>, bio) as c_uint;
        // INVARIANT: Made with that front pad, and with the cache only for that `wait`.
        Ok(Self {
            raw: ManuallyDrop::new(RawSet::new(reserve, pad, flags)?),
            wait,
            _p: PhantomData,
        })
    }

    fn as_raw(&self) -> *mut bindings::bio_set {
        self.raw.set.get()
    }

    /// Whether a bio may be allocated in this context, if need be by waiting.
    ///
    /// A processor's cache of bios has one list that only tasks take from, with preemption off but
    /// interrupts on: an interrupt that took from it could get the bio that the interrupted task is
    /// just taking. What was freed in interrupts lies in another list.
    #[inline]
    fn is_usable(&self, waits: bool) -> bool {
        // By the type invariant there is no cache if not even `self.wait` waits.
        !(waits || self.wait == Wait::ForBio) || preempt::in_task()
    }
}

impl<T: EndIo<N>, const N: usize> Drop for BioSet<T, N> {
    fn drop(&mut self) {
        // SAFETY: `self` goes, so `raw` is not used again.
        RawSet::free_later(unsafe { ManuallyDrop::take(&mut self.raw) });
    }
}
