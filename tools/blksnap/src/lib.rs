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
//! The module has two control interfaces, of 2022 and of 2025. By the second, the kernel holds the
//! difference storage: it opens a file, a directory or a device that is named, and lets it grow up to a
//! limit.
//!
//! By the first, the module asks for difference storage by events: for a first portion when a snapshot is
//! created, and for more as it fills up. A writer never waits for an answer, so somebody must
//! listen. If the storage overflows all the same, the snapshot is lost, which is another event; the
//! original devices go on unharmed.
//!
//! # This crate
//!
//! - [`Session`] does all of this for one snapshot: creates it, sees to its storage, takes it, tells
//!   when it is lost, and at the end destroys it and removes the files, whatever happens. It uses the
//!   second interface where the module has it.
//! - [`Control`] has a method for each command of the first interface, [`v2::Control`] and
//!   [`v2::Device`] for each of the second.
//! - [`Changes`] are what a backup has to read that continues an earlier one; [`ChangeMap`] is the
//!   whole of what the module knows.
//! - [`EventWatch`] waits for the events of snapshots in an event loop.
//! - [`storage`] makes files and finds their extents.
//! - [`sys`] has the raw numbers and layouts.
//!
//! Devices, snapshots, generations and points in time are types of their own. Sizes and places are
//! in bytes, `u64` and `Range<u64>`, as everywhere in `std`; what the module counts in sectors, always
//! of 512 bytes, is of the types [`Sectors`] and [`SectorRange`], which have no arithmetic with
//! numbers and are turned into bytes by name.
//!
//! Errors say what failed, on what, why, and what to do; [`Error::errno`] is for programs.
//!
//! # Threads and event loops
//!
//! Everything is `Send` and `Sync`. [`Session`] says which of its methods **block**, and how it fits
//! into an event loop. Of [`Control`], the commands that create, take and destroy snapshots, append
//! storage or change trackers may take long, and wait for those of other programs;
//! [`Control::wait_event`] waits as long as it is told to; the others only look.
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
//!
//! The next one copies only what has changed since, if that is known:
//!
//! ```no_run
//! use std::fs::File;
//! use std::os::unix::fs::FileExt;
//! use blksnap::{DevId, Point, Session};
//!
//! /// Brings a copy up to date; gives the point that the next one starts from.
//! fn update(session: &Session, device: DevId, last: Option<Point>, copy: &File)
//!     -> Result<Point, Box<dyn std::error::Error>>
//! {
//!     let image = session.images().iter().find(|image| image.original == device);
//!     let image = File::open(&image.ok_or("not in this snapshot")?.path)?;
//!     let changes = session.changes(device, last)?;
//!     let mut buffer = vec![0; 1 << 20];
//!     for range in changes.ranges() {
//!         let mut at = range.start;
//!         while at < range.end {
//!             let length = buffer.len().min((range.end - at) as usize);
//!             image.read_exact_at(&mut buffer[..length], at)?;
//!             copy.write_all_at(&buffer[..length], at)?;
//!             at += length as u64;
//!         }
//!     }
//!     copy.sync_all()?;
//!     session.check()?;
//!     Ok(changes.info().point())
//! }
//! ```

mod call;
pub mod cbt;
pub mod control;
pub mod error;
pub mod event;
pub mod id;
pub mod owner;
pub mod session;
pub mod state;
pub mod storage;
pub mod sys;
mod topology;
pub mod units;
pub mod v2;
pub mod watch;

pub use cbt::{CbtInfo, ChangeMap, Point};
pub use control::{Control, Image, Version};
pub use error::{Command, Error, Result};
pub use event::{Event, EventKind};
pub use id::{DevId, GenerationId, SnapshotId};
pub use owner::Owner;
pub use session::{Changes, Interface, Session, SessionEvent, SessionOptions, Taken};
pub use topology::Relation;
pub use units::{ByteSet, SectorRange, Sectors};
pub use watch::EventWatch;

/// All of it may be shared by threads.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Session>();
    shared::<Control>();
    shared::<EventWatch>();
    shared::<Error>();
};
