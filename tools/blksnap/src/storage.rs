// SPDX-License-Identifier: MIT OR Apache-2.0

//! Difference storage: files whose disk space a snapshot may use, and where they lie.
//!
//! The module writes to ranges of block devices and knows no files. So a file is given its space
//! with fallocate(2), made durable, and its extents are asked for with FIEMAP. From then on the
//! file must not be changed, moved or removed until the snapshot has been destroyed.

mod extents;
mod files;

pub use extents::{Extents, extents_of};
pub use files::{Place, StorageFile, remove_stale};
