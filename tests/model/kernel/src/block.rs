// SPDX-License-Identifier: GPL-2.0

//! What `src/base/units.rs` uses.

/// log2 of the number of bytes in a sector.
pub const SECTOR_SHIFT: u32 = 9;
