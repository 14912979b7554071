// SPDX-License-Identifier: MIT OR Apache-2.0

//! Snapshots of block devices and changed-block tracking on Linux, by the `blksnap` kernel module.
//!
//! # The facility
//!
//! The module watches the writes to *original devices*. Between snapshots it only notes, in a
//! *change map* of one byte for each tracking block, in which snapshot interval a block was last
//! written. While a snapshot is held, it also saves the old contents of a chunk before it is
//! overwritten for the first time, in the *difference storage*: ranges of block devices which user
//! space provides, usually the extents of files. For each original device there is an *image*, a
//! block device that shows it as it was when the snapshot was taken. All devices of one snapshot
//! are captured at one instant, with their file systems frozen.
//!
//! The module asks for difference storage by events: for a first portion when a snapshot is
//! created, and for more as it fills up. A writer never waits for an answer, so somebody must
//! listen. If the storage overflows all the same, the snapshot is lost, which is another event; the
//! original devices go on unharmed.
//!
//! # This crate
//!
//! - [`Session`] does all of this for one snapshot: creates it, feeds it storage from a thread of
//!   its own, takes it, tells when it is lost, and at the end destroys it and removes the files,
//!   whatever happens.
//! - [`Control`] has a method for each command of the module.
//! - [`ChangeMap`] tells what has changed since an earlier snapshot.
//! - [`storage`] makes files and finds their extents.
//! - [`sys`] has the raw numbers and layouts.
//!
//! Sizes of devices, files and blocks are in bytes, `u64`. Sectors are always of 512 bytes and are
//! of the type [`Sectors`].
//!
//! # Example
//!
//! A copy of a device as it was at one instant, while it is in use:
//!
//! ```no_run
//! use blksnap::{DevId, Session, SessionOptions};
//!
//! let device = DevId::resolve("/dev/vda")?;
//! let mut session = Session::create(&[device], SessionOptions::in_directory("/var/tmp"))?;
//! session.take()?;
//! std::fs::copy(&session.images()[0].path, "/backup/vda.raw")?;
//! session.check()?; // The image was good to the end.
//! session.destroy()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cbt;
pub mod control;
pub mod error;
pub mod event;
pub mod id;
pub mod session;
pub mod state;
pub mod storage;
pub mod sys;
mod topology;
pub mod units;

pub use cbt::{CbtInfo, ChangeMap};
pub use control::{Control, Image, Version};
pub use error::{Command, Error, Result};
pub use event::{Event, EventKind};
pub use id::{DevId, GenerationId, SnapshotId};
pub use session::{Session, SessionOptions, Taken};
pub use units::{ByteSet, SectorRange, Sectors};
