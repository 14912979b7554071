// SPDX-License-Identifier: GPL-2.0

//! Memory for the data of bios.

use crate::{
    alloc::Flags,
    bindings,
    block::SECTOR_SHIFT,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};
use core::ptr::NonNull;

/// The largest number of bytes that one bio of a [`Buffer`] transfers.
pub const MAX_BUFFER_BIO: usize = (bindings::BIO_MAX_VECS as usize) << PAGE_SHIFT;

/// log2 of the largest number of pages that are allocated at once. Larger blocks are hard to get
/// when memory is fragmented.
const MAX_ORDER: u32 = bindings::PAGE_ALLOC_COSTLY_ORDER;

/// The sectors of 512 bytes in `bytes` bytes.
pub const fn bytes_to_sectors(bytes: usize) -> u64 {
    (bytes >> SECTOR_SHIFT) as u64
}

/// Adjacent pages of memory.
///
/// # Invariants
///
/// `page` is the first of `1 << order` pages that were allocated together and are ours.
pub(super) struct Block {
    page: NonNull<bindings::page>,
    order: u32,
}

impl Block {
    fn new(order: u32, flags: Flags) -> Result<Self> {
        let mut flags = flags.as_raw();
        if order > 0 {
            // Only if it can be had at once; and as a folio, which is what those who look at a
            // bio's pages expect.
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

    /// The first page, for as long as `self` lives.
    pub(super) fn page(&self) -> *mut bindings::page {
        self.page.as_ptr()
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
/// Only devices, [`Buffer::zero`] and [`Buffer::write`] access it; there are never references to
/// its bytes.
pub struct Buffer {
    blocks: KVec<Block>,
    len: usize,
}

// SAFETY: Pages may be freed by any thread.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives no access to the memory but by `zero()` and `write()`, which C code
// carries out.
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

    /// The parts of blocks that hold the bytes from `from` up to `to`: block, offset in it and
    /// length.
    fn segments(&self, from: usize, to: usize) -> impl Iterator<Item = (&Block, usize, usize)> {
        let mut end = 0;
        self.blocks.iter().filter_map(move |block| {
            let start = end;
            end += block.len();
            let (from, to) = (from.max(start), to.min(end));
            (from < to).then(|| (block, from - start, to - from))
        })
    }

    /// Calls `f` with each piece of the bytes from `from` up to `to` that is in one page: the page,
    /// the offset in it, and the length.
    fn for_each_page(
        &self,
        from: usize,
        to: usize,
        mut f: impl FnMut(*mut bindings::page, usize, usize),
    ) {
        for (block, mut pos, mut left) in self.segments(from, to) {
            while left > 0 {
                let in_page = pos & (PAGE_SIZE - 1);
                let len = (PAGE_SIZE - in_page).min(left);
                // SAFETY: The block has that page, and its pages are adjacent in the memory map.
                f(unsafe { block.page().add(pos >> PAGE_SHIFT) }, in_page, len);
                pos += len;
                left -= len;
            }
        }
    }

    /// Fills the bytes from `from` up to `to` with zeroes.
    pub fn zero(&self, from: usize, to: usize) {
        self.for_each_page(from, to, |page, offset, len| {
            // SAFETY: The page is ours by `Block`'s invariant and has these bytes, to which there
            // are no references.
            unsafe { bindings::memzero_page(page, offset, len) };
        });
    }

    /// Copies bytes into the buffer, from its byte `at` on, as far as it goes.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let mut bytes = bytes;
        self.for_each_page(at, at.saturating_add(bytes.len()), |page, offset, len| {
            let Some((part, rest)) = bytes.split_at_checked(len) else {
                return;
            };
            bytes = rest;
            // SAFETY: The page is ours by `Block`'s invariant and has these bytes, to which there
            // are no references.
            unsafe { bindings::memcpy_to_page(page, offset, part.as_ptr().cast(), len) };
        });
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
    /// Whether the buffer has these bytes, and there is at least one.
    pub(super) fn is_inside(&self) -> bool {
        let end = self.offset.checked_add(self.bytes);
        self.bytes > 0 && end.is_some_and(|end| end <= self.buffer.len)
    }

    /// The parts of the buffer's blocks that hold these bytes: block, offset in it and length.
    pub(super) fn segments(&self) -> impl Iterator<Item = (&'a Block, usize, usize)> {
        let end = self.offset.saturating_add(self.bytes);
        self.buffer.segments(self.offset, end)
    }
}
