// SPDX-License-Identifier: GPL-2.0

//! A bio of our own, from its allocation to its end.
//!
//! Until it is submitted a [`NewBio`] owns the bio; then the block layer does, and gives it back to
//! the callback of its end, which makes a [`NewBio`] of it again. So the context is moved out of it
//! exactly once, and only then is the bio freed.

use super::{
    Context,
    EndIo,
    Piece,
    Private, //
};
use crate::{
    bindings,
    block::bio::{
        Op,
        OwnedBio, //
    },
    container_of,
    error::to_result,
    prelude::*, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// A bio of our own that was not submitted yet.
///
/// # Invariants
///
/// `0` is valid, from the set of its initialised context, for the target of that, and exclusively
/// ours. The context keeps the set, the target and the data.
#[must_use]
pub struct NewBio<T: EndIo<N>, const N: usize = 1>(NonNull<Private<T, N>>);

impl<T: EndIo<N>, const N: usize> NewBio<T, N> {
    /// Makes a bio that transfers the bytes of `pieces`, one after the other, to or from the
    /// [target](EndIo::target) of `data`, beginning at `sector`. Whether it may wait is a property
    /// of the [set](super::BioSet::new).
    ///
    /// It is charged to no cgroup: others wait for it, so the limits of the task that happens to
    /// make it are not for it.
    ///
    /// Gives `data` back when there is no memory, or for a set that waits when called in an
    /// interrupt; when a buffer does not have such bytes; and when there are no or more than `N`
    /// pieces, or more bytes than a bio takes, see [`MAX_BUFFER_BIO`](super::MAX_BUFFER_BIO).
    pub fn new<'a>(
        op: Op,
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
        if !set.is_usable(false) {
            return Err(data);
        }
        let target = data.target();
        let bdev = target.bdev();
        #[cfg(CONFIG_HELD_FILE)]
        let file = target.file();
        // SAFETY: The set is initialised by its type invariant and may be allocated from here, and
        // the device is open.
        let bio = NonNull::new(unsafe {
            bindings::bio_alloc_bioset(
                bdev,
                count as c_ushort,
                op.as_raw(),
                set.wait.gfp(),
                set.as_raw(),
            )
        });
        let Some(bio) = bio else { return Err(data) };
        for (block, start, len) in segments() {
            // SAFETY: The bio is ours and has room for `count` segments; the context will keep the
            // blocks.
            unsafe {
                bindings::__bio_add_page(bio.as_ptr(), block.page(), len as c_uint, start as c_uint)
            };
        }
        // SAFETY: The bio is ours.
        unsafe { (*bio.as_ptr()).bi_iter.bi_sector = sector };
        if !bdev.is_null() {
            // SAFETY: The bio is ours and has a device.
            unsafe { bindings::bio_charge_root(bio.as_ptr()) };
        }
        let context = Context {
            data,
            #[cfg(CONFIG_HELD_FILE)]
            file,
            _buffers: all.map(|piece| Some(piece?.buffer.clone())),
            cloned: None,
        };
        // SAFETY: Just allocated from the set of `data` and for its target; the context keeps the
        // buffers.
        Ok(unsafe { Self::prepare(bio, context) })
    }

    /// Clones `bio` onto the [target](EndIo::target) of `data`, beginning at `sector`.
    ///
    /// The clone has the operation, the flags and the data of `bio`. May wait for other bios of
    /// the set to complete. Gives `bio` back if it cannot be cloned, and in an interrupt.
    pub fn clone_of(bio: OwnedBio, sector: u64, data: T) -> Result<Self, OwnedBio> {
        let set = data.set();
        if !set.is_usable(true) {
            return Err(bio);
        }
        let target = data.target();
        let bdev = target.bdev();
        #[cfg(CONFIG_HELD_FILE)]
        let file = target.file();
        // SAFETY: Both bio and set are valid by their type invariants, the set may be allocated
        // from here, and the device, if any, is open.
        let clone = NonNull::new(unsafe {
            bindings::bio_alloc_clone(bdev, bio.as_raw(), bindings::GFP_NOIO, set.as_raw())
        });
        let Some(clone) = clone else { return Err(bio) };
        // SAFETY: The bio is ours.
        unsafe { (*clone.as_ptr()).bi_iter.bi_sector = sector };
        let context = Context {
            data,
            #[cfg(CONFIG_HELD_FILE)]
            file,
            _buffers: [const { None }; N],
            cloned: Some(bio),
        };
        // SAFETY: Just allocated from the set of `data` and for its target; the context keeps what
        // was cloned.
        Ok(unsafe { Self::prepare(clone, context) })
    }

    /// Puts the context in front of a new bio.
    ///
    /// # Safety
    ///
    /// `bio` must have been allocated from the set of `context.data`, for its target, which
    /// `context.file` is if it is a file, and be exclusively the caller's. Its data must be kept by
    /// `context`.
    unsafe fn prepare(bio: NonNull<bindings::bio>, context: Context<T, N>) -> Self {
        // SAFETY: By the set's type invariant each of its bios stands in a `Private<T, N>`.
        let private = unsafe { container_of!(bio.as_ptr(), Private<T, N>, bio) };
        // SAFETY: The front pad is valid for writes and not initialised.
        unsafe { (&raw mut (*private).context).write(context) };
        // SAFETY: The bio is exclusively ours.
        unsafe { (*bio.as_ptr()).bi_end_io = Some(Self::end_io_callback) };
        // INVARIANT: As promised by the caller; the context has just been initialised. It keeps the
        // set and the target: `set()` and `target()` returned references that live as long as one
        // to the data, which nobody has changed or dropped since, and nobody can until it leaves
        // the context. Moving the data does not move the C structures of these, which lie in
        // memory of their own.
        // SAFETY: `private` was derived from a pointer that is not null.
        Self(unsafe { NonNull::new_unchecked(private) })
    }

    /// Sends the bio on its way. May sleep.
    pub fn submit(self) {
        let this = ManuallyDrop::new(self);
        let private = this.0.as_ptr();
        // SAFETY: Valid by the type invariant.
        let bio = unsafe { &raw mut (*private).bio };
        #[cfg(CONFIG_HELD_FILE)]
        {
            // SAFETY: Initialised by the type invariant.
            let file = unsafe { (*private).context.file };
            if !file.is_null() {
                // SAFETY: The bio is ours and complete, and has no device; its completion takes it
                // over. The file is valid until then, and is not used after that.
                return unsafe { bindings::held_file_submit_bio(file, bio) };
            }
        }
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
        let result = match status {
            0 => Ok(()),
            // SAFETY: A pure function.
            status => to_result(unsafe { bindings::blk_status_to_errno(status) }),
        };
        // SAFETY: Submitted bios stand in a `Private<T, N>`.
        let private = unsafe { container_of!(bio, Private<T, N>, bio) };
        // INVARIANT: It was a `NewBio`, which `submit()` gave up, and is ours again.
        // SAFETY: `private` was derived from a pointer that is not null.
        let this = Self(unsafe { NonNull::new_unchecked(private) });
        let Context {
            data,
            _buffers,
            cloned,
            ..
        } = this.into_context();
        // First, as the owner of `data` may take its end for that of all use of the buffers.
        drop(_buffers);
        data.end_io(cloned, result);
    }
}

impl<T: EndIo<N>, const N: usize> Drop for NewBio<T, N> {
    fn drop(&mut self) {
        // INVARIANT: Ours alone, as `self` goes.
        drop(Self(self.0).into_context());
    }
}
