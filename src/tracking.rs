// SPDX-License-Identifier: GPL-2.0

//! Change tracking: which blocks of a device were written since when.

pub(crate) mod cbt;
pub(crate) mod tracker;
