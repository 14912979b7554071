// SPDX-License-Identifier: GPL-2.0-or-later

//! qcow2: the image format of QEMU, whose tools then read, convert and mount a backup.
//!
//! A full backup is a qcow2 image of its own. An incremental one is an overlay: it has the clusters
//! that have changed, and names the backup before as its *backing file*, which has the others. All
//! numbers in the file are big-endian; it is made of clusters of 64 KiB:
//!
//! ```text
//! header          cluster 0: sizes, the places of the two tables, the name of the backing file
//! refcount table  the place of each refcount block, or 0
//! L1 table        the place of each L2 table, or 0
//! then, as they come to be needed:
//! refcount block  16 bits for each of 32768 clusters of the file: how often it is used, here 0 or 1
//! L2 table        for each of 8192 clusters of the device (512 MiB), the place of its data;
//!                 bit 0: it reads as zeros; 0: not stored here, but in the backing file if any
//! data            a cluster of the device, or several that were compressed
//! ```
//!
//! Both tables are made as large as the device can ever need, so nothing in a file moves. Zeros
//! take no place in an image without backing file, and a bit in one with. Memory holds the L1 table
//! (2 MiB for 128 TiB) and at most 64 L2 tables.
//!
//! An image may be compressed: then the header says so, and clusters that zstd makes smaller are put
//! one after the other, as many as there is room for, into the clusters of the file. The refcount of
//! such a cluster is how many have something in it.
//!
//! **Crashes.** A new file counts only when it is whole. But a file may also be updated
//! ([`Image::open_for_update`]), when the backup after it is merged into it. At each moment what is
//! on disk is a valid image, as follows: clusters are taken from the end of the file only, never
//! reused; they are counted as used, a refcount block full at a time, before anything refers to
//! them; data is made durable before the L2 tables that refer to it, and those before the L1 table
//! that refers to new ones, and before what they no longer refer to is uncounted. A crash leaves clusters counted that nothing uses, which the next
//! update tells, and `qemu-img check -r leaks` gives back. Data overwritten in place may be old or
//! new after a crash: the merge is done again, from the overlay, which is still there.
//!
//! Compression by zlib, encryption, snapshots inside the file, other sizes of clusters or refcounts,
//! and older versions are not written here, and refused when read.
//!
//! The crate `imago` was looked at, and not used: it writes a changed L1 table before the refcounts
//! of what it refers to, and has no place to wait for the disk in between.

mod compressed;
mod file;
mod header;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use compressed::{Clusters, Compressor};
pub use reader::Layer;
pub use writer::Image;

/// Bytes in a cluster, and their logarithm.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of 8 bytes in a cluster: of an L2 table, for example.
const ENTRIES: u64 = CLUSTER / 8;
/// Bytes of a device that an L2 table describes.
const PER_L2: u64 = ENTRIES * CLUSTER;
/// Refcounts of 2 bytes in a refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
/// Bytes in a file beside data and L2 tables, at most.
const MORE: u64 = 1024 * CLUSTER;
/// Most bytes in a device: twice as many would need tables that QEMU refuses.
const MAX_SIZE: u64 = 1 << 49;
/// L2 tables that are kept in memory: of 32 GiB. The tests' devices have few.
const CACHED: usize = if cfg!(any(test, feature = "testing")) {
    2
} else {
    64
};

/// In an entry of the L1 or an L2 table: the place.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// In both: nothing else refers to the same place. Always so here.
const COPIED: u64 = 1 << 63;
/// In an L2 table: compressed data; the other bits mean something else then.
const COMPRESSED: u64 = 1 << 62;
/// In an L2 table: reads as zeros, whether there is a place or not.
const ZERO: u64 = 1;
