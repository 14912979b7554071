// SPDX-License-Identifier: GPL-2.0

//! Block device snapshots and change tracking for backup.
//!
//! Three paths lead through this driver, each in one direction:
//!
//! - A bio that somebody sends to a tracked device: [`tracker`] (a block filter) marks it in the
//!   change map, [`cbt`], and while a snapshot is held asks the copy engine, [`cow`], whether it
//!   may go on. That finds in the [`chunk_map`] whether the old data is safe; if not, a [`copy`]
//!   reads it and puts it into the difference [`storage`], which takes its place from the
//!   [`pool`].
//! - A bio that somebody sends to an [`image`]: [`image_io`] looks in the same chunk map where the
//!   data is, and sends clones to the original device or to the difference storage.
//! - A command: [`control`] decodes it (see [`abi`]), [`registry`] finds what it is about, and
//!   [`snapshot`] does it; [`take`] is the instant. [`events`] go the other way, and [`sysfs`]
//!   shows how things stand.

use kernel::{
    miscdevice::{
        with_data::SharedRegistration,
        MiscDeviceOptions, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::{
    control::Control,
    registry::Registry, //
};

mod abi;
mod ahead;
mod cbt;
mod chunk_map;
mod control;
mod copy;
mod cow;
mod delays;
mod engine;
mod events;
mod excluded;
mod faults;
mod image;
mod image_io;
mod params;
mod pool;
mod registry;
mod snapshot;
mod storage;
mod sysfs;
mod take;
mod tracker;
mod units;

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
    /// First, so that no command comes any more when the rest goes.
    #[pin]
    control: SharedRegistration<Control>,
    registry: Arc<Registry>,
}

impl kernel::InPlaceModule for Blksnap {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions { name: c"blksnap" };
        pin_init::pin_init_scope(move || {
            let registry = Registry::new()?;
            let control = Arc::new(Control(registry.clone()), GFP_KERNEL)?;
            Ok(try_pin_init!(Self {
                registry,
                // Last: from here on commands come.
                control <- SharedRegistration::register(options, control),
            }? Error))
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Blksnap {
    fn drop(self: Pin<&mut Self>) {
        // No file of the control device is open, or the module would not be unloaded.
        self.registry.shut_down();
    }
}
