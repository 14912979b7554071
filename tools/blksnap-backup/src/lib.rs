// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories of backups, as the `blksnap` command makes them: to read them, and to add to them.
//!
//! ```text
//! Repository   a directory of backups, locked
//!   Manifest   what one backup is: its devices, their files, the backup it is based on
//!     Chain    a device in a backup, with all the backups below it: layer upon layer
//!       Layer    what one backup itself has of the device
//!         Extents  where, and with which checksums
//!         Reader   the data, in one of the formats of files
//!       Seen     an extent of the newest layer that has something of a place
//! ```
//!
//! To read a device as it was:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use blksnap_backup::{Cache, Chain, Image, Repository};
//!
//! # fn main() -> anyhow::Result<()> {
//! let (repository, id) = Repository::read("/backup/nightly".as_ref())?;
//! let manifest = repository.find(id.as_deref())?;
//! let device = manifest.device("vda").expect("it was backed up");
//! let chain = Chain::open(&repository, &manifest, device)?;
//! // What was read last is kept, for all images together.
//! let cache = Arc::new(Cache::new(64 << 20)?);
//! let image = Image::new(chain, cache);
//! let mut sector = [0; 512];
//! image.read(1024, &mut sector)?;
//! # Ok(())
//! # }
//! ```
//!
//! An [`Image`] is for who wants a part here and a part there; [`read`] of what is [seen](Chain::seen)
//! for who reads all, in several threads. Neither has more of a list of extents in memory than a few
//! blocks, however large the device is.
//!
//! Places and lengths are in bytes everywhere. Errors are those of [`anyhow`], whose sources say
//! which file, and have the [`std::io::Error`] if there was one.
//!
//! # Versions
//!
//! The version of the crate follows semver. The one of what is on disk is in each manifest: a program
//! reads what older ones have written, and refuses what is newer than it knows. Members may be added
//! to a manifest without a new version, if who does not know them still reads the right data.

mod buffer;
mod chain;
mod compare;
mod copy;
mod device;
mod differ;
mod direct;
mod extents;
pub mod format;
mod hardware;
mod image;
mod machine;
mod manifest;
mod pipeline;
pub mod private;
mod reading;
mod record;
mod recorded;
mod repository;
mod seen;
mod stretch;
pub mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod unreadable;
mod watch;

pub use buffer::{Buffer, GRAIN, SIZE as BUFFER_SIZE, is_zero, runs};
pub use chain::{Chain, Checked, Damaged, Layer, Part, parts, parts_above};
pub use compare::compare;
pub use copy::{Source, pieces, round_out};
pub use device::{is_block_device, logical_block, size_of};
pub use differ::{Differences, differences};
pub use direct::Direct;
pub use extents::{Cursor, Extent, Extents, ExtentsWriter, cut};
pub use format::Format;
pub use hardware::{Hardware, text_in};
pub use image::{Cache, Image};
pub use machine::{Disk, Machine};
pub use manifest::{Device, Kind, Manifest, NAME as MANIFEST, State};
pub use pipeline::run as pipeline;
pub use reading::{no_work, read};
pub use record::{Copied, Recorder, without};
pub use repository::{Draft, Failed, Repository, Verified, is_id, name_of, sync_dir, unix_s};
pub use seen::{Seen, View, seen};
pub use watch::{Nobody, Watch};
