// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write: before a chunk of a captured device is overwritten, its old data is read and
//! put into the difference storage.

pub(crate) mod ahead;
pub(crate) mod chunk_map;
pub(crate) mod copy;
pub(crate) mod cow;
pub(crate) mod engine;
pub(crate) mod excluded;
