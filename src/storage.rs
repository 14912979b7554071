// SPDX-License-Identifier: GPL-2.0

//! What the copy engines of one snapshot share.
//!
//! - [`space`] is the difference storage: it gives old data its place, by means of the [`pool`],
//!   and asks the client for more in time. [`ranges`] checks what the client gives.
//! - [`health`] knows whether the images are still good, and why not.
//! - [`events`] tells the client of both.

pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod pool;
pub(crate) mod ranges;
pub(crate) mod space;
