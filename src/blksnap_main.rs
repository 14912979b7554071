// SPDX-License-Identifier: GPL-2.0

//! Block device snapshots and change tracking for backup.
//!
//! The driver is divided into rooms, which use each other in one direction only, down this list:
//!
//! - [`control`]: the commands of the control device, all trackers and snapshots, sysfs.
//! - [`snapshot`]: a set of devices, and the instant at which they are captured.
//! - [`image`]: the disk that shows a device as it was then.
//! - [`tracking`]: the filter on a device, and the map of what was written since when.
//! - [`copying`]: the copy engine of a captured device, and where each chunk's data is.
//! - [`storage`]: the difference storage of a snapshot, its state, and its events.
//! - [`base`]: units, parameters, and what only tests switch on.
//!
//! Three paths lead through it, each down through the rooms:
//!
//! - A bio that somebody sends to a tracked device: the [tracker](tracking::tracker), a block
//!   filter, marks it in the [change map](tracking::cbt) and, while a snapshot is held, asks the
//!   [copy engine](copying::cow) whether it may go on. The engine finds in the
//!   [chunk map](copying::chunk_map) whether the old data is safe; if not, it reads the old data
//!   and stores it at the next place of the [pool](storage::pool).
//! - A bio that somebody sends to an image: [`image::io`] finds in the same chunk map where the
//!   data is, and sends clones to the original device or to the difference storage.
//! - A command: [`control`] decodes it (see [`control::v1`] and [`control::v2`]), the
//!   [registry](control::registry) finds what it is about, and [`snapshot`] does it;
//!   [`snapshot::take`] is the instant.

use kernel::{
    hibernation,
    prelude::*,
    sync::Arc, //
};

use crate::control::{
    registry::Registry,
    Doors, //
};

mod base;
mod control;
mod copying;
mod image;
mod snapshot;
mod storage;
mod tracking;

module! {
    type: Blksnap,
    name: "blksnap",
    authors: ["The blksnap developers"],
    description: "Block device snapshots and change tracking for backup",
    license: "GPL",
}

/// The loaded module.
#[pin_data(PinnedDrop)]
struct Blksnap {
    /// Until the module is unloaded.
    doors: Option<Doors>,
    #[pin]
    _hibernation: hibernation::Registration<Registry>,
    registry: Arc<Registry>,
}

impl kernel::InPlaceModule for Blksnap {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let registry = Registry::new()?;
            Ok(try_pin_init!(Self {
                _hibernation <- hibernation::Registration::new(registry.clone()),
                // Last: from here on commands come.
                doors: Some(Doors::open(&registry)?),
                registry,
            }? Error))
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Blksnap {
    fn drop(mut self: Pin<&mut Self>) {
        // No file of a node is open, or the module would not be unloaded; but ioctls of devices may
        // be under way, or come.
        drop(self.as_mut().project().doors.take());
        self.registry.shut_down();
    }
}
