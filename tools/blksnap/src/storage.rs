// SPDX-License-Identifier: MIT OR Apache-2.0

//! Difference storage: files whose disk space a snapshot may use, and where they lie.
//!
//! The module writes to ranges of block devices and knows no files. So a file is given its space
//! with fallocate(2), made durable, and its extents are asked for with FIEMAP. From then on the
//! file must not be changed, moved or removed until the snapshot has been destroyed: so it is made
//! immutable (`chattr +i`) where that is possible.
//!
//! # Storage on a captured device
//!
//! The module does not copy what is overwritten by its own stores, and the blocks of difference
//! storage read as zeros in the image of the device they are on. That is right for blocks that
//! belonged, at the instant, to nobody or to the file itself. It is wrong for a block that belonged
//! to another file which was deleted *since*: the file system is free to give it to a file that is
//! extended after the take, and the image would show zeros in the middle of the deleted file. The
//! module knows no files and can't see this.
//!
//! So on a device that is captured, by whatever snapshot, **allocate before the take, and append
//! after it only what was allocated before**. [`Session`](crate::Session) does so.

mod extents;
mod files;
mod fixed;
mod portions;

pub use extents::{Extents, extents_of};
pub use files::{Place, StorageFile, remove_stale};
pub(crate) use portions::Portions;
