// SPDX-License-Identifier: GPL-2.0

//! An open file of a control node.
//!
//! A client may [bind](Client::bind) the snapshots that it makes by the file to it: they end when
//! the file is closed, as it is when the client is killed.

use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    uuid::Uuid, //
};

use super::{
    front_end::FrontEnd,
    registry::Registry, //
};

/// The command that binds, of each ABI: a number that none of them uses, without an argument.
pub(super) const BIND: u32 = kernel::ioctl::_IO(b'V' as u32, 64);

/// An open file.
#[pin_data(PinnedDrop)]
pub(crate) struct Client {
    pub(super) registry: Arc<Registry>,
    pub(super) front_end: FrontEnd,
    /// The snapshots that are bound, if they are. No other lock is taken with this one held.
    #[pin]
    bound: Mutex<Option<KVVec<Uuid>>>,
}

impl Client {
    /// Of a file that is being opened.
    pub(super) fn new(registry: &Arc<Registry>, front_end: FrontEnd) -> impl PinInit<Self, Error> {
        let registry = registry.clone();
        try_pin_init!(Self {
            registry,
            front_end,
            bound <- new_mutex!(None),
        })
    }

    /// Snapshots that are created from now on end with the file.
    pub(super) fn bind(&self) {
        self.bound.lock().get_or_insert_with(KVVec::new);
    }

    /// Hands a new snapshot over: `tell` tells the client its name. If that fails, or there is no
    /// memory to remember it, it is destroyed again.
    pub(super) fn created(&self, id: Uuid, tell: impl FnOnce() -> Result) -> Result {
        let remembered = match &mut *self.bound.lock() {
            Some(bound) => bound.push(id, GFP_KERNEL).map_err(Error::from),
            None => Ok(()),
        };
        let told = remembered.and_then(|()| tell());
        if told.is_err() {
            // The client will never know its name.
            self.registry.destroy(self.front_end, id)?;
        }
        told
    }
}

#[pinned_drop]
impl PinnedDrop for Client {
    fn drop(self: Pin<&mut Self>) {
        let bound = self.bound.lock().take();
        for id in bound.into_iter().flatten() {
            // It may have been destroyed.
            let _ = self.registry.destroy(self.front_end, id);
        }
    }
}
