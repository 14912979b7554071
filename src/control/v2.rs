// SPDX-License-Identifier: GPL-2.0

//! The ABI of 2025, `include/uapi/linux/blksnap.h`.
//!
//! What is about a snapshot comes by a node, `/dev/blksnap-control`: here. What is about a device
//! comes by ioctls of the device itself: see [`device`].

use kernel::{
    fs::File,
    miscdevice::with_data::{
        OpenFile,
        SharedDevice, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    uaccess::UserPtr,
    uapi, //
};

use super::{
    call::{
        command_of_word,
        write_event,
        write_version,
        Call,
        Entry, //
    },
    client::Client,
    front_end::FrontEnd,
    may_open,
    registry::Registry,
    structs::{
        Abi,
        Struct, //
    }, //
};
use crate::storage::events::Kind;

pub(crate) mod device;

/// Structures that are not the argument of a command.
mod layout {
    use super::super::structs::{
        Field::*,
        Layout, //
    };

    /// `struct blksnap_uuid`
    pub(crate) const UUID: Layout = &[Uuid];
    /// `struct blksnap_event_corrupted`
    pub(crate) const CORRUPTED: Layout = &[Device, Int];
    /// `struct blksnap_event_no_space`
    pub(crate) const NO_SPACE: Layout = &[Long];
}

/// Major, minor, revision, build.
const VERSION: [u16; 4] = [2, 0, 0, 0];

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Version,
    Create,
    Destroy,
    Take,
    Collect,
    WaitEvent,
}

/// The magic number of all commands.
const MAGIC: u8 = b'V';

/// By number: the commands, the direction in their words, and their argument.
const COMMANDS: [Entry<Command>; 6] = {
    use super::structs::Field::*;
    use Command::*;
    const R: u32 = uapi::_IOC_READ;
    const W: u32 = uapi::_IOC_WRITE;
    [
        (Version, R, &[Short, Short, Short, Short]),
        (Create, R | W, &[Long, Address, Uuid]),
        (Destroy, W, &[Uuid]),
        (Take, W, &[Uuid]),
        // These two are read from, too.
        (Collect, R, &[Int, Address]),
        (WaitEvent, R, &[Uuid, Int, Int, Long, Data]),
    ]
};

/// What is behind the node.
pub(crate) struct Node(pub(crate) Arc<Registry>);

impl SharedDevice for Node {
    type OwnerModule = crate::LocalModule;
    type Open = Control;

    fn open(&self, _file: &File) -> Result<Arc<Control>> {
        may_open()?;
        Arc::pin_init(Control::new(&self.0, FrontEnd::V2, VERSION), GFP_KERNEL)
    }
}

/// An open file of it, or of one with the same commands.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    pub(super) client: Client,
    version: [u16; 4],
}

impl OpenFile for Control {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize, compat: bool) -> Result<isize> {
        this.command(Abi::of(compat), cmd, arg)
    }
}

impl Control {
    /// Of a file that is being opened.
    pub(super) fn new(
        registry: &Arc<Registry>,
        front_end: FrontEnd,
        version: [u16; 4],
    ) -> impl PinInit<Self, Error> {
        let client = Client::new(registry, front_end);
        try_pin_init!(Self {
            client <- client,
            version,
        })
    }

    pub(super) fn command(&self, abi: Abi, word: u32, address: usize) -> Result<isize> {
        if let Some(done) = self.client.command(abi, word, address) {
            return done.map(|()| 0);
        }
        let found = command_of_word(&COMMANDS, MAGIC, word, abi);
        let (command, layout) = found.ok_or(ENOTTY)?;
        let args = Struct::read(abi, layout, address)?;
        let call = Call { abi, address, args };
        let (us, registry) = (self.client.front_end, &self.client.registry);
        match command {
            Command::Version => write_version(call, self.version),
            Command::Create => self.create(call),
            Command::Destroy => registry.destroy(us, args.uuid(0)),
            Command::Take => registry.take(us, args.uuid(0)),
            Command::Collect => self.collect(call),
            Command::WaitEvent => self.wait_event(call),
        }
        .map(|()| 0)
    }

    fn create(&self, mut call: Call) -> Result {
        let (us, registry) = (self.client.front_end, &self.client.registry);
        let id = match call.args.pointer(1) {
            // It comes by ranges.
            0 if us == FrontEnd::Standalone => registry.create_empty(us)?,
            path => registry.create_held(us, UserPtr::from_addr(path), call.args.u64(0))?,
        };
        self.client
            .created(id, || call.args.set_uuid(2, id).write(call.address))
    }

    fn collect(&self, call: Call) -> Result {
        let snapshots = self.client.registry.snapshots_of(self.client.front_end)?;
        let mut ids = KVVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for snapshot in &snapshots {
            let mut id = Struct::new(call.abi, layout::UUID);
            id.set_uuid(0, snapshot.id());
            ids.push(id, GFP_KERNEL)?;
        }
        call.write_array(1, &ids, ENODATA)
    }

    fn wait_event(&self, mut call: Call) -> Result {
        // Not the snapshot: it may be destroyed meanwhile.
        let us = self.client.front_end;
        let snapshot = self.client.registry.snapshot_of(us, call.args.uuid(0))?;
        let events = snapshot.events.clone();
        drop(snapshot);
        let event = events.wait(call.args.u32(1))?;
        let written = write(&mut call, event.kind, event.time);
        if written.is_err() {
            events.put_back(event);
        }
        written
    }
}

/// Writes an event.
fn write(call: &mut Call, kind: Kind, time: i64) -> Result {
    let (code, data) = match kind {
        Kind::Corrupted(device, err) => {
            let mut data = Struct::new(call.abi, layout::CORRUPTED);
            data.set_device(0, device)
                .set_u32(1, err.to_errno().unsigned_abs());
            (0, data)
        }
        Kind::NoSpace(sectors) | Kind::LowFreeSpace(sectors) => {
            let mut data = Struct::new(call.abi, layout::NO_SPACE);
            data.set_u64(0, sectors);
            (1, data)
        }
    };
    write_event(call, code, time, &data)
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_v2)]
mod tests {
    use super::{
        super::structs::{
            offset,
            test_abis::{
                I386,
                WIDE, //
            },
            Layout, //
        },
        *, //
    };

    #[test]
    fn command_words() {
        for (number, (wide, i386)) in [
            (0x80085600, 0x80085600),
            (0xC0205601, 0xC0205601),
            (0x40105602, 0x40105602),
            (0x40105603, 0x40105603),
            (0x80105604, 0x800C5604),
            (0x90005605, 0x90005605),
        ]
        .into_iter()
        .enumerate()
        {
            let command = COMMANDS.get(number).map(|entry| entry.0);
            assert!(command.is_some_and(|command| command as usize == number));
            for (abi, word) in [(WIDE, wide), (I386, i386)] {
                let found =
                    |word| command_of_word(&COMMANDS, MAGIC, word, abi).map(|found| found.0);
                assert_eq!(found(word), command);
                assert_eq!(found(word ^ 0x100), None);
                assert_eq!(found(word ^ 0x40000000), None);
                assert_eq!(found(word + 0x10000), None);
            }
        }
        assert!(command_of_word(&COMMANDS, MAGIC, 0x80085606, WIDE).is_none());
    }

    #[test]
    fn places() {
        let places = |abi, number: usize, wanted: &[usize]| {
            let layout = COMMANDS.get(number).map_or(&[] as Layout, |entry| entry.2);
            for (field, &at) in wanted.iter().enumerate() {
                assert_eq!(offset(abi, layout, field), at);
            }
        };
        for abi in [WIDE, I386] {
            places(abi, 1, &[0, 8, 16, 32]);
            places(abi, 5, &[0, 16, 20, 24, 32, 4096]);
        }
        places(WIDE, 4, &[0, 8, 16]);
        places(I386, 4, &[0, 4, 12]);
    }
}
