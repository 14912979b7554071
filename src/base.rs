// SPDX-License-Identifier: GPL-2.0

//! What all the others use: units, parameters, what a device's capacity was, and what only tests
//! switch on.

pub(crate) mod clock;
pub(crate) mod delays;
pub(crate) mod faults;
pub(crate) mod log;
pub(crate) mod medium;
pub(crate) mod params;
pub(crate) mod units;
