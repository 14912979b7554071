// SPDX-License-Identifier: MIT OR Apache-2.0

//! The second control interface, that of 2025: one method for each command.
//!
//! What is about a snapshot goes to [`Control`], `/dev/blksnap-control`; what is about a device, to
//! the device itself, a [`Device`] here. The difference storage is a file, a directory or a device,
//! by its path: the kernel opens it, holds it so that nobody can take its blocks away, and lets it
//! grow up to a limit.
//!
//! The snapshots of one interface are not in the lists of the other. The trackers are the same for
//! both.

mod control;
mod device;
mod event;

pub use control::Control;
pub use device::{Device, Info, Stat};
pub use event::{Event, EventKind};
