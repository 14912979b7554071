// SPDX-License-Identifier: GPL-2.0

//! The life of a chunk, over all interleavings.
//!
//! `chunk_map.rs` and `unused.rs` of `src/copying` are compiled here as they are, with loom's atomics
//! under them. Around them is a small model of what uses them: the names are those of the functions in `src/copying/cow/` and
//! `src/image/io.rs`, and each does what that function does, step by step; what it leaves out is
//! bios, memory and accounting. loom runs each scenario of `scenarios` in every order in which a thread
//! is interrupted at most twice (once, if there are three; `LOOM_MAX_PREEMPTIONS=3` takes minutes), and with every value that
//! the memory model lets a load see, stale ones included.
//!
//! What is checked, in the words of the design:
//!
//! - *The image never lies*: each read of an image gives the data as of the instant (or what was
//!   written to the image since, or zeroes of a chunk that is said to be unused), or an error once the
//!   snapshot has failed. What was zeroes once stays so.
//! - *A write is released only when the old data is safe*: it is ordered after the copier's read,
//!   and not only by luck: an unordered pair is a data race to loom.
//! - *A chunk is copied at most once.*
//! - *Nothing is lost*: each bio ends once.
//! - After a failure nothing is stored that began after it, and the originals' writes go on.
//!
//! A device is what the argument in `chunk_map` says of it: a read that returns new data is ordered
//! after the submission of the write.
//!
//! Two simplifications: the steps of a copy run in the thread that submits its read, as nothing
//! else is left for that thread to do, and so does work that is queued, or that serves a bio which
//! comes to its disk again; and each copy is stored by itself.
//!
//! [`kernel::planted`] lists faults. Each must be found, by a scenario that is silent without it.

#![cfg(test)]

#[allow(dead_code)]
#[rustfmt::skip]
#[path = "../../../src/copying"]
mod copying {
    pub(crate) mod chunk_map;
    pub(crate) mod unused;
}

#[allow(dead_code)]
#[rustfmt::skip]
#[path = "../../../src/base/units.rs"]
mod units;

/// Where `chunk_map` looks for it.
mod base {
    pub(crate) use crate::units;
}

use copying::{chunk_map, unused};

mod cow;
mod device;
mod image_io;
mod scenarios;

/// What is on the original at the instant.
const OLD: u32 = 0;

/// What the image shows of an unused chunk.
const ZERO: u32 = u32::MAX - 1;

/// What cannot be right.
const JUNK: u32 = u32::MAX;

/// An error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failed;
