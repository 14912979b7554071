// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write: before a chunk of a captured device is overwritten, its old data is read, and
//! then stored.
//!
//! - [`cow`] is the copy engine of one device: it decides about each write, and copies.
//! - [`chunk_map`] knows where the data of each chunk is.
//! - [`ahead`] says how much is copied at once; [`excluded`] and [`unused`], what is not copied at
//!   all.
//! - [`memory`] has the memory of copies; [`inflight`] counts what is in flight.

pub(crate) mod ahead;
pub(crate) mod chunk_map;
pub(crate) mod cow;
pub(crate) mod excluded;
pub(crate) mod inflight;
pub(crate) mod memory;
pub(crate) mod unused;
