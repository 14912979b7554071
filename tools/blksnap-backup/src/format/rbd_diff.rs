// SPDX-License-Identifier: GPL-2.0-or-later

//! rbd-diff, version 1: what `rbd export-diff` of Ceph writes and `rbd import-diff` reads.
//!
//! A stream of records, fit for a pipe, of which each begins with a letter. Numbers are
//! little-endian, of 64 bits if not said otherwise:
//!
//! ```text
//! rbd diff v1\n               what it is
//! f length[32] name           the snapshot it starts from; not in that of a full backup
//! t length[32] name           the snapshot it leads to
//! s size                      bytes in the device
//! w offset length data        data stored there …
//! z offset length             … or zeros; any number of both, later ones replace earlier ones
//! e                           the end, without which it is not whole
//! ```
//!
//! `rbd import-diff` applies it to an image that has the snapshot `f`, or to a new one (`rbd create
//! --size …`) if there is none, and makes the snapshot `t`. So zeros that a new image has anyway are
//! not stored in a full one.

mod reader;
mod record;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::Diff;
pub use writer::Stream;

/// What a stream begins with.
const MAGIC: &[u8; 12] = b"rbd diff v1\n";
/// Offsets and lengths are multiples of it.
const BLOCK: u64 = 512;
