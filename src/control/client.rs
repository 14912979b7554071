// SPDX-License-Identifier: GPL-2.0

//! An open file of a control node.
//!
//! A client may [bind](Client::bind) the snapshots that it makes by the file to it: they end when
//! the file is closed, as it is when the client is killed. That, and telling what was [not
//! used](Client::give_unused), are commands that only this module has. They are the same in each
//! ABI.

use kernel::{
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    uapi,
    uuid::Uuid, //
};

use super::{
    call::{
        command_of_word,
        Call,
        Entry, //
    },
    front_end::FrontEnd,
    registry::Registry,
    structs::{
        Abi,
        Layout,
        Struct, //
    }, //
};
use crate::snapshot::Snapshot;

/// A command of each ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Bind,
    Unused,
}

/// The number of the first of them: no ABI uses these.
const FIRST: u32 = 64;

/// Those commands by number, from the first one on.
const COMMANDS: [Entry<Command>; 2] = {
    use super::structs::Field::*;
    [
        (Command::Bind, uapi::_IOC_NONE, &[]),
        // All programs have the same structure.
        (
            Command::Unused,
            uapi::_IOC_WRITE,
            &[Uuid, Device, Int, Int, Address],
        ),
    ]
};

/// The command of that word, and its argument.
fn command_of(word: u32, abi: Abi) -> Option<(Command, Layout)> {
    command_of_word(&COMMANDS, b'V', word.wrapping_sub(FIRST), abi)
}

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

    /// Does a command that each ABI has; `None` if the word is that of another one.
    pub(super) fn command(&self, abi: Abi, word: u32, address: usize) -> Option<Result> {
        let (command, layout) = command_of(word, abi)?;
        Some(match command {
            Command::Bind => {
                self.bind();
                Ok(())
            }
            Command::Unused => Struct::read(abi, layout, address)
                .and_then(|args| self.give_unused(Call { abi, address, args })),
        })
    }

    /// Snapshots that are created from now on end with the file.
    fn bind(&self) {
        self.bound.lock().get_or_insert_with(KVVec::new);
    }

    /// Ranges of a captured device had no meaning at the instant.
    ///
    /// Fails with `ESRCH` if there is no such snapshot, `EPERM` if it is bound to another file,
    /// `EINVAL` if what must be 0 is not, or as [`Snapshot::give_unused`] does.
    fn give_unused(&self, call: Call) -> Result {
        let snapshot = self
            .registry
            .snapshot_of(self.front_end, call.args.uuid(0))?;
        if !self.may_change(&snapshot) {
            return Err(EPERM);
        }
        if call.args.u32(2) != 0 {
            return Err(EINVAL);
        }
        snapshot.give_unused(call.args.device(1), &call.ranges(4)?)
    }

    /// Whether the client may change what the images of a snapshot show.
    fn may_change(&self, snapshot: &Snapshot) -> bool {
        let id = snapshot.id();
        let bound = self.bound.lock();
        !snapshot.is_bound() || bound.as_ref().is_some_and(|all| all.contains(&id))
    }

    /// Remembers a new snapshot, if snapshots are bound.
    fn remember(&self, id: Uuid) -> Result {
        match &mut *self.bound.lock() {
            Some(bound) => bound.push(id, GFP_KERNEL)?,
            None => return Ok(()),
        }
        if let Ok(snapshot) = self.registry.snapshot(id) {
            snapshot.set_bound();
        }
        Ok(())
    }

    /// Hands a new snapshot over: `tell` tells the client its name. If that fails, or there is no
    /// memory to remember it, it is destroyed again.
    pub(super) fn created(&self, id: Uuid, tell: impl FnOnce() -> Result) -> Result {
        let told = self.remember(id).and_then(|()| tell());
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

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_client)]
mod tests {
    use super::{
        super::structs::{
            offset,
            test_abis::{
                I386,
                WIDE, //
            }, //
        },
        *, //
    };

    #[test]
    fn all_programs_have_the_same_words_and_structures() {
        for abi in [WIDE, I386] {
            let found = |word| command_of(word, abi).map(|found| found.0);
            assert_eq!(found(0x5640), Some(Command::Bind));
            assert_eq!(found(0x40285641), Some(Command::Unused));
            for word in [
                0x5641, 0x40285640, 0x40285642, 0x80285641, 0x40205641, 0x40285601,
            ] {
                assert_eq!(found(word), None);
            }
            let layout = command_of(0x40285641, abi).map_or(&[] as Layout, |found| found.1);
            for (field, at) in [0, 16, 24, 28, 32, 40].into_iter().enumerate() {
                assert_eq!(offset(abi, layout, field), at);
            }
        }
    }
}
