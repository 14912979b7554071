// SPDX-License-Identifier: GPL-2.0

//! Bios of our own.
//!
//! A [`BioSet`] has bios that each carry a context of type `T`, in the same allocation and
//! backed by a reserve, so that I/O makes progress when memory is short. A [`NewBio`] is made and
//! then [submitted](NewBio::submit); when it is done, [`EndIo::end_io`] gets the context back.
//!
//! The data of a bio is either in [`Buffer`]s, or that of another bio which it
//! [clones](NewBio::clone_of). In both cases, and for the block device, the new bio holds what it
//! refers to until it has completed; and its context holds the [set](EndIo::set).
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use super::{
    bdev::BdevFile,
    bio::{
        Op,
        OwnedBio, //
    },
    SECTOR_SHIFT, //
};
use crate::{
    alloc::Flags,
    bindings,
    container_of,
    error::to_result,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem::{
        offset_of,
        ManuallyDrop, //
    },
    ptr::NonNull, //
};

/// The largest number of bytes that one bio of a [`Buffer`] transfers.
pub const MAX_BUFFER_BIO: usize = (bindings::BIO_MAX_VECS as usize) << PAGE_SHIFT;

/// Whether [`NewBio::new`] may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Fail rather than wait; callable in atomic context. The set's reserve is not used.
    Never,
    /// Wait for other bios of the same set to complete; never fails. Not for use where these
    /// depend on the caller.
    ///
    /// Each processor keeps some bios of such a set that were freed on it. Only where allocating
    /// may sleep: the block layer takes a bio from there without a lock, which only tasks may do,
    /// and tells kmemleak with `GFP_NOIO`.
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

/// log2 of the largest number of pages that are allocated at once. Larger blocks are hard to get
/// when memory is fragmented.
const MAX_ORDER: u32 = bindings::PAGE_ALLOC_COSTLY_ORDER;

/// Adjacent pages of memory.
///
/// # Invariants
///
/// `page` is the first of `1 << order` pages that were allocated together and are ours.
struct Block {
    page: NonNull<bindings::page>,
    order: u32,
}

impl Block {
    fn new(order: u32, flags: Flags) -> Result<Self> {
        let mut flags = flags.as_raw();
        if order > 0 {
            // Only if it is to be had at once; and as a folio, as those who look at a bio's pages
            // expect.
            flags &= !(1 << bindings::___GFP_DIRECT_RECLAIM_BIT);
            flags |= 1 << bindings::___GFP_COMP_BIT
                | 1 << bindings::___GFP_NORETRY_BIT
                | 1 << bindings::___GFP_NOWARN_BIT;
        }
        // SAFETY: No requirements.
        let page = unsafe { bindings::alloc_pages(flags, order) };
        // INVARIANT: Just allocated.
        Ok(Self {
            page: NonNull::new(page).ok_or(ENOMEM)?,
            order,
        })
    }

    fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: Ours by the type invariant, and not used afterwards.
        unsafe { bindings::__free_pages(self.page.as_ptr(), self.order) };
    }
}

/// Memory that bios read into and write from, in blocks of one or more pages.
///
/// It is only ever accessed by devices and by [`Buffer::zero`], never through references.
pub struct Buffer {
    blocks: KVec<Block>,
    len: usize,
}

// SAFETY: Pages may be freed by any thread.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` does not give access to the memory, but for `zero()`, see there.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates a buffer of at least `bytes` bytes.
    pub fn new(bytes: usize, flags: Flags) -> Result<Arc<Self>> {
        let len = bytes.next_multiple_of(PAGE_SIZE);
        let mut largest = MAX_ORDER;
        let mut blocks = KVec::with_capacity(len.div_ceil(PAGE_SIZE << largest), flags)?;
        let mut left = len >> PAGE_SHIFT;
        while left > 0 {
            let order = left.ilog2().min(largest);
            let block = match Block::new(order, flags) {
                Err(_) if order > 0 => {
                    // Then as single pages.
                    largest = 0;
                    continue;
                }
                block => block?,
            };
            blocks.push(block, flags)?;
            left -= 1 << order;
        }
        Ok(Arc::new(Self { blocks, len }, flags)?)
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no memory.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts of blocks that the bytes from `from` up to `to` lie in, as block, offset in it
    /// and length.
    fn segments(&self, from: usize, to: usize) -> impl Iterator<Item = (&Block, usize, usize)> {
        let mut end = 0;
        self.blocks.iter().filter_map(move |block| {
            let start = end;
            end += block.len();
            let (from, to) = (from.max(start), to.min(end));
            (from < to).then(|| (block, from - start, to - from))
        })
    }

    /// Fills the bytes from `from` up to `to` with zeroes.
    pub fn zero(&self, from: usize, to: usize) {
        for (block, mut pos, mut left) in self.segments(from, to) {
            while left > 0 {
                let in_page = pos & (PAGE_SIZE - 1);
                let len = (PAGE_SIZE - in_page).min(left);
                // SAFETY: The block has that page, and its pages are adjacent in the memory map.
                let page = unsafe { block.page.as_ptr().add(pos >> PAGE_SHIFT) };
                // SAFETY: The page is ours and has these bytes. There are no references to them,
                // and C writes them.
                unsafe { bindings::memzero_page(page, in_page, len) };
                pos += len;
                left -= len;
            }
        }
    }
}

/// Bytes of a buffer.
pub struct Piece<'a> {
    /// The buffer.
    pub buffer: &'a Arc<Buffer>,
    /// The first byte.
    pub offset: usize,
    /// The number of bytes.
    pub bytes: usize,
}

impl<'a> Piece<'a> {
    /// Whether the buffer has these bytes, and they are more than none.
    fn is_inside(&self) -> bool {
        let end = self.offset.checked_add(self.bytes);
        self.bytes > 0 && end.is_some_and(|end| end <= self.buffer.len)
    }

    /// See [`Buffer::segments`].
    fn segments(&self) -> impl Iterator<Item = (&'a Block, usize, usize)> {
        let end = self.offset.saturating_add(self.bytes);
        self.buffer.segments(self.offset, end)
    }
}

/// The context of a bio of our own.
pub trait EndIo<const N: usize = 1>: Send + Sized + 'static {
    /// The set that bios with this context are from, which the context keeps.
    fn set(&self) -> &BioSet<Self, N>;

    /// The bio has completed with `result`; `cloned` is the bio that it was a clone of.
    ///
    /// Called in any context: must not sleep.
    fn end_io(self, cloned: Option<OwnedBio>, result: Result);
}

/// What lives and dies with a bio.
struct Context<T, const N: usize> {
    data: T,
    /// Keeps the device open until the bio has completed.
    _file: Arc<BdevFile>,
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

/// A set of bios that carry a context of type `T` and use at most `N` buffers each, with a reserve.
///
/// # Invariants
///
/// `inner` is a `struct bio_set` on which `bioset_init()` succeeded with the front pad of
/// `Private<T, N>`; it stays pinned until dropped. It has a cache for each processor only if all
/// that allocate from it may sleep.
#[pin_data(PinnedDrop)]
pub struct BioSet<T: EndIo<N>, const N: usize = 1> {
    #[pin]
    inner: Opaque<bindings::bio_set>,
    wait: Wait,
    _p: PhantomData<fn(T)>,
}

// SAFETY: A bio set may be used and freed from any thread.
unsafe impl<T: EndIo<N>, const N: usize> Send for BioSet<T, N> {}
// SAFETY: Allocating from a bio set is thread-safe.
unsafe impl<T: EndIo<N>, const N: usize> Sync for BioSet<T, N> {}

impl<T: EndIo<N>, const N: usize> BioSet<T, N> {
    /// Creates a set with `reserve` bios in reserve.
    pub fn new(reserve: u32, wait: Wait) -> impl PinInit<Self, Error> {
        // The slab aligns to at least that.
        const { assert!(align_of::<Private<T, N>>() <= align_of::<u64>()) };
        try_pin_init!(Self {
            // INVARIANT: On success `bioset_init()` has initialised `inner`.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::bio_set| {
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(pin_init::zeroed()) };
                // The rescuer lets several bios be allocated below one `submit_bio()`.
                let mut flags = bindings::BIOSET_NEED_BVECS | bindings::BIOSET_NEED_RESCUER;
                if wait == Wait::ForBio {
                    // INVARIANT: Then `NewBio::new()` may sleep; `clone_of()` always may.
                    flags |= bindings::BIOSET_PERCPU_CACHE;
                }
                // CAST: The offset of a small struct, and small flags.
                let pad = offset_of!(Private<T, N>, bio) as c_uint;
                // SAFETY: `slot` is zeroed, pinned and exclusively ours.
                to_result(unsafe { bindings::bioset_init(slot, reserve, pad, flags as c_int) })
            }),
            wait,
            _p: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: EndIo<N>, const N: usize> PinnedDrop for BioSet<T, N> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by the type invariant. None of its bios is left, as each of them has
        // a context that keeps the set, by the type invariant of `NewBio`.
        unsafe { bindings::bioset_exit(self.inner.get()) };
    }
}

/// A bio of our own that was not submitted yet.
///
/// # Invariants
///
/// `0` is valid, from the set of its initialised context, and exclusively ours. The context keeps
/// the set, the device and the data.
#[must_use]
pub struct NewBio<T: EndIo<N>, const N: usize = 1>(NonNull<Private<T, N>>);

impl<T: EndIo<N>, const N: usize> NewBio<T, N> {
    /// Makes a bio that transfers the bytes of `pieces`, one after the other, to or from `file`'s
    /// device, beginning at `sector`.
    ///
    /// It is charged to no cgroup: the limits of one whose task happens to be here are not for what
    /// others wait for.
    ///
    /// Gives `data` back when there is no memory, when a buffer has no such bytes, or when there
    /// are no or more than `N` pieces, or more bytes than a bio takes, see [`MAX_BUFFER_BIO`].
    pub fn new<'a>(
        op: Op,
        file: &Arc<BdevFile>,
        sector: u64,
        pieces: impl IntoIterator<Item = Piece<'a>>,
        data: T,
    ) -> Result<Self, T> {
        let mut pieces = pieces.into_iter();
        let all: [Option<Piece<'a>>; N] = core::array::from_fn(|_| pieces.next());
        let fits = all.iter().flatten().all(Piece::is_inside) && pieces.next().is_none();
        let segments = || all.iter().flatten().flat_map(Piece::segments);
        let count = segments().count();
        if !fits || !(1..=bindings::BIO_MAX_VECS as usize).contains(&count) {
            return Err(data);
        }
        let set = data.set();
        // SAFETY: The set is initialised by its type invariant, and the device is open.
        let bio = NonNull::new(unsafe {
            bindings::bio_alloc_bioset(
                file.bdev().as_raw(),
                count as c_ushort,
                op.as_raw(),
                set.wait.gfp(),
                set.inner.get(),
            )
        });
        let Some(bio) = bio else { return Err(data) };
        for (block, start, len) in segments() {
            // SAFETY: The bio is ours and has room for `count` segments; the context keeps the
            // blocks.
            unsafe {
                bindings::__bio_add_page(
                    bio.as_ptr(),
                    block.page.as_ptr(),
                    len as c_uint,
                    start as c_uint,
                )
            };
        }
        // SAFETY: The bio is ours.
        unsafe { (*bio.as_ptr()).bi_iter.bi_sector = sector };
        // SAFETY: The bio is ours and has a device.
        unsafe { bindings::bio_charge_root(bio.as_ptr()) };
        let context = Context {
            data,
            _file: file.clone(),
            _buffers: all.map(|piece| Some(piece?.buffer.clone())),
            cloned: None,
        };
        // SAFETY: Just allocated from the set of `data`; the context keeps the buffers.
        Ok(unsafe { Self::prepare(bio, context) })
    }

    /// Clones `bio` onto `file`'s device, beginning at `sector`.
    ///
    /// The clone has the operation, the flags and the data of `bio`. May wait for other bios of
    /// the set to complete. Gives `bio` back if it cannot be cloned.
    pub fn clone_of(
        bio: OwnedBio,
        file: &Arc<BdevFile>,
        sector: u64,
        data: T,
    ) -> Result<Self, OwnedBio> {
        // SAFETY: Both bio and set are valid by their type invariants, and the device is open.
        let clone = NonNull::new(unsafe {
            bindings::bio_alloc_clone(
                file.bdev().as_raw(),
                bio.as_raw(),
                bindings::GFP_NOIO,
                data.set().inner.get(),
            )
        });
        let Some(clone) = clone else { return Err(bio) };
        // SAFETY: The bio is ours.
        unsafe { (*clone.as_ptr()).bi_iter.bi_sector = sector };
        let context = Context {
            data,
            _file: file.clone(),
            _buffers: [const { None }; N],
            cloned: Some(bio),
        };
        // SAFETY: Just allocated from the set of `data`; the context keeps what was cloned.
        Ok(unsafe { Self::prepare(clone, context) })
    }

    /// Puts the context in front of a new bio.
    ///
    /// # Safety
    ///
    /// `bio` must have been allocated from the set of `context.data`, for `context._file`'s device,
    /// and be exclusively the caller's. Its data must be kept by `context`.
    unsafe fn prepare(bio: NonNull<bindings::bio>, context: Context<T, N>) -> Self {
        // SAFETY: By the set's type invariant each of its bios stands in a `Private<T, N>`.
        let private = unsafe { container_of!(bio.as_ptr(), Private<T, N>, bio) };
        // SAFETY: The front pad is valid for writes and not initialised.
        unsafe { (&raw mut (*private).context).write(context) };
        // SAFETY: The bio is exclusively ours.
        unsafe { (*bio.as_ptr()).bi_end_io = Some(Self::end_io_callback) };
        // INVARIANT: As promised by the caller; the context has just been initialised. It keeps the
        // set: `set()` has returned a reference to it that is as good as the one to the data, which
        // nobody has changed or dropped since, and nobody can until it has left the context.
        // SAFETY: `private` was derived from a pointer that is not null.
        Self(unsafe { NonNull::new_unchecked(private) })
    }

    /// Sends the bio on its way. May sleep.
    pub fn submit(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: Valid by the type invariant.
        let bio = unsafe { &raw mut (*this.0.as_ptr()).bio };
        // SAFETY: The bio is ours and complete; its completion takes it over.
        unsafe { bindings::submit_bio_noacct(bio) };
    }

    /// Frees the bio, while the context still keeps its set.
    fn into_context(self) -> Context<T, N> {
        let private = ManuallyDrop::new(self).0.as_ptr();
        // SAFETY: Initialised by the type invariant; moved out here, and not used afterwards.
        let context = unsafe { (&raw const (*private).context).read() };
        // SAFETY: By the type invariant we hold the only reference.
        unsafe { bindings::bio_put(&raw mut (*private).bio) };
        context
    }

    /// Completes a bio.
    ///
    /// # Safety
    ///
    /// Only called by the block layer, for a bio that was submitted by [`NewBio::submit`].
    unsafe extern "C" fn end_io_callback(bio: *mut bindings::bio) {
        // SAFETY: The bio has just completed and is ours again.
        let status = unsafe { (*bio).bi_status };
        // SAFETY: A pure function.
        let result = to_result(unsafe { bindings::blk_status_to_errno(status) });
        // SAFETY: Submitted bios stand in a `Private<T, N>`.
        let private = unsafe { container_of!(bio, Private<T, N>, bio) };
        // INVARIANT: It was a `NewBio`, which `submit()` gave up, and is ours again.
        // SAFETY: `private` was derived from a pointer that is not null.
        let this = Self(unsafe { NonNull::new_unchecked(private) });
        let Context {
            data,
            _file,
            _buffers,
            cloned,
        } = this.into_context();
        // First, as the owner of `data` may take its end for that of all use of the device.
        drop((_file, _buffers));
        data.end_io(cloned, result);
    }
}

impl<T: EndIo<N>, const N: usize> Drop for NewBio<T, N> {
    fn drop(&mut self) {
        // INVARIANT: Ours alone, as `self` goes.
        drop(Self(self.0).into_context());
    }
}

/// The sectors of 512 bytes in `bytes` bytes.
pub const fn bytes_to_sectors(bytes: usize) -> u64 {
    (bytes >> SECTOR_SHIFT) as u64
}
