// SPDX-License-Identifier: GPL-2.0

//! What the copy engines of one snapshot share.
//!
//! - [`space`] is the difference storage: it gives old data its place, by means of the [`pool`],
//!   and sees to more in time, as the [`supply`] says. [`ranges`] checks what the client gives;
//!   [`held`] is a file that the kernel holds; [`trial`] finds out where stores come out.
//! - [`health`] knows whether the images are still good, and why not.
//! - [`events`] tells the client of both.

pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod held;
pub(crate) mod pool;
pub(crate) mod ranges;
pub(crate) mod space;
pub(crate) mod supply;
pub(crate) mod trial;
