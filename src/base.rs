// SPDX-License-Identifier: GPL-2.0

//! What all the others use: units, parameters, and what only tests switch on.

pub(crate) mod delays;
pub(crate) mod faults;
pub(crate) mod params;
pub(crate) mod units;
