// SPDX-License-Identifier: GPL-2.0

//! As much of the kernel crate as `chunk_map.rs` and `unused.rs` of `src/copying` use, on top of loom: so
//! that the driver's own files are what the model checks, with their own orderings.
//!
//! [`planted`] weakens single orderings, to show that they are needed.

pub mod alloc;
pub mod block;
pub mod planted;
pub mod sync;

/// What drivers use all the time.
pub mod prelude {
    pub use crate::alloc::{KBox, KVec, VVec, pin_init};
    pub use crate::{EINVAL, ENOMEM, Error, Result};
}

/// An errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Error(i32);

/// As in the kernel crate.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// Invalid argument.
pub const EINVAL: Error = Error(22);

/// Out of memory.
pub const ENOMEM: Error = Error(12);

impl From<core::num::TryFromIntError> for Error {
    fn from(_: core::num::TryFromIntError) -> Self {
        EINVAL
    }
}
