// SPDX-License-Identifier: GPL-2.0

//! The ABI of 2022, `include/uapi/linux/blk_snap.h`: all commands by one node, `/dev/blksnap`.

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
    uapi, //
};

use super::{
    call::{
        command_of_word,
        copy_map,
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
        read_array,
        Abi,
        Struct, //
    }, //
};
use crate::storage::events::Kind;

/// Major, minor, revision, build.
const VERSION: [u16; 4] = [1, 0, 0, 0];

/// The largest number of devices in a snapshot.
const MAX_DEVICES: u32 = 4096;

/// Whose snapshots these are.
const US: FrontEnd = FrontEnd::V1;

/// Structures that are not the argument of a command.
mod layout {
    use super::super::structs::{
        Field::*,
        Layout, //
    };

    /// `struct blk_snap_dev_t`
    pub(crate) const DEVICE: Layout = &[Device];
    /// `struct blk_snap_uuid`
    pub(crate) const UUID: Layout = &[Uuid];
    /// `struct blk_snap_cbt_info`
    pub(crate) const CBT_INFO: Layout = &[Device, Int, Long, Int, Uuid, Byte];
    /// `struct blk_snap_image_info`
    pub(crate) const IMAGE_INFO: Layout = &[Device, Device];
    /// `struct blk_snap_event_low_free_space`
    pub(crate) const LOW_FREE_SPACE: Layout = &[Long];
    /// `struct blk_snap_event_corrupted`
    pub(crate) const CORRUPTED: Layout = &[Device, Int];
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
enum Command {
    Version,
    TrackerRemove,
    TrackerCollect,
    TrackerReadCbtMap,
    TrackerMarkDirtyBlocks,
    SnapshotCreate,
    SnapshotDestroy,
    SnapshotAppendStorage,
    SnapshotTake,
    SnapshotCollect,
    SnapshotCollectImages,
    SnapshotWaitEvent,
}

/// The magic number of all commands.
const MAGIC: u8 = b'V';

/// By number: the commands, the direction in their words, and their argument. The directions are
/// the reverse of what they should be, for ever.
const COMMANDS: [Entry<Command>; 12] = {
    use super::structs::Field::*;
    use Command::*;
    const R: u32 = uapi::_IOC_READ;
    const W: u32 = uapi::_IOC_WRITE;
    [
        (Version, W, &[Short, Short, Short, Short]),
        (TrackerRemove, W, &[Device]),
        (TrackerCollect, W, &[Int, Pointer]),
        (TrackerReadCbtMap, R, &[Device, Int, Int, Pointer]),
        (TrackerMarkDirtyBlocks, R, &[Device, Int, Pointer]),
        (SnapshotCreate, W, &[Int, Pointer, Uuid]),
        (SnapshotDestroy, R, &[Uuid]),
        (SnapshotAppendStorage, W, &[Uuid, Device, Int, Pointer]),
        (SnapshotTake, R, &[Uuid]),
        (SnapshotCollect, W, &[Int, Pointer]),
        (SnapshotCollectImages, W, &[Uuid, Int, Pointer]),
        (SnapshotWaitEvent, W, &[Uuid, Int, Int, Long, Data]),
    ]
};

/// What is behind the node.
pub(crate) struct Node(pub(crate) Arc<Registry>);

impl SharedDevice for Node {
    type OwnerModule = crate::LocalModule;
    type Open = Control;

    fn open(&self, _file: &File) -> Result<Arc<Control>> {
        may_open()?;
        Arc::pin_init(
            try_pin_init!(Control { client <- Client::new(&self.0, US) }),
            GFP_KERNEL,
        )
    }
}

/// An open file of it.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    client: Client,
}

impl OpenFile for Control {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize, compat: bool) -> Result<isize> {
        this.command(Abi::of(compat), cmd, arg)
    }
}

impl Control {
    fn command(&self, abi: Abi, word: u32, address: usize) -> Result<isize> {
        if let Some(done) = self.client.command(abi, word, address) {
            return done.map(|()| 0);
        }
        let (command, layout) = command_of_word(&COMMANDS, MAGIC, word, abi).ok_or(ENOTTY)?;
        let args = Struct::read(abi, layout, address)?;
        let call = Call { abi, address, args };
        let registry = &self.client.registry;
        match command {
            Command::Version => write_version(call, VERSION),
            Command::TrackerRemove => registry.remove_tracker(args.device(0)),
            Command::TrackerCollect => self.tracker_collect(call),
            Command::TrackerReadCbtMap => return self.read_cbt_map(call),
            Command::TrackerMarkDirtyBlocks => {
                registry.mark_dirty(args.device(0), &call.ranges(2)?)
            }
            Command::SnapshotCreate => self.snapshot_create(call),
            Command::SnapshotDestroy => registry.destroy(US, args.uuid(0)),
            Command::SnapshotAppendStorage => self.append_storage(call),
            Command::SnapshotTake => registry.take(US, args.uuid(0)),
            Command::SnapshotCollect => self.snapshot_collect(call),
            Command::SnapshotCollectImages => self.collect_images(call),
            Command::SnapshotWaitEvent => self.wait_event(call),
        }
        .map(|()| 0)
    }

    fn tracker_collect(&self, call: Call) -> Result {
        let trackers = self.client.registry.trackers()?;
        let mut infos = KVVec::with_capacity(trackers.len(), GFP_KERNEL)?;
        for tracker in &trackers {
            let cbt = tracker.cbt();
            let mut info = Struct::new(call.abi, layout::CBT_INFO);
            info.set_device(0, tracker.id())
                .set_u32(1, cbt.block_size())
                .set_u64(2, cbt.capacity())
                .set_u32(3, cbt.block_count())
                .set_uuid(4, cbt.generation())
                .set(5, &[cbt.previous()]);
            infos.push(info, GFP_KERNEL)?;
        }
        call.write_array(1, &infos, ENOBUFS)
    }

    fn read_cbt_map(&self, call: Call) -> Result<isize> {
        let cbt = self.client.registry.taken_map(call.args.device(0))?;
        let (offset, length) = (call.args.u32(1), call.args.u32(2));
        let done = copy_map(&cbt, offset, length, call.args.pointer(3))?;
        // CAST: Was a `u32`.
        Ok(done as isize)
    }

    fn snapshot_create(&self, mut call: Call) -> Result {
        let ids = read_array(
            (call.abi, layout::DEVICE),
            call.args.pointer(1),
            call.args.u32(0),
            MAX_DEVICES,
            |device| device.device(0),
        )?;
        let id = self.client.registry.create(&ids)?;
        self.client
            .created(id, || call.args.set_uuid(2, id).write(call.address))
    }

    fn append_storage(&self, call: Call) -> Result {
        // An unknown snapshot is the first thing to be told.
        self.client.registry.snapshot_of(US, call.args.uuid(0))?;
        self.client
            .registry
            .append(US, call.args.uuid(0), call.args.device(1), &call.ranges(3)?)
    }

    fn snapshot_collect(&self, call: Call) -> Result {
        let snapshots = self.client.registry.snapshots_of(US)?;
        let mut ids = KVVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for snapshot in &snapshots {
            let mut id = Struct::new(call.abi, layout::UUID);
            id.set_uuid(0, snapshot.id());
            ids.push(id, GFP_KERNEL)?;
        }
        call.write_array(1, &ids, ENODATA)
    }

    fn collect_images(&self, call: Call) -> Result {
        let snapshot = self.client.registry.snapshot_of(US, call.args.uuid(0))?;
        let mut images = KVVec::with_capacity(snapshot.originals()?.len(), GFP_KERNEL)?;
        snapshot.for_each_captured(|captured| {
            let mut image = Struct::new(call.abi, layout::IMAGE_INFO);
            image
                .set_device(0, captured.tracker.id())
                .set_device(1, captured.image.id());
            // There is room for all devices.
            let _ = images.push_within_capacity(image);
        });
        if images.is_empty() {
            return Err(ENODEV);
        }
        call.write_array(2, &images, ENODATA)
    }

    fn wait_event(&self, mut call: Call) -> Result {
        // Not the snapshot: it may be destroyed meanwhile.
        let events = self
            .client
            .registry
            .snapshot_of(US, call.args.uuid(0))?
            .events
            .clone();
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
        Kind::LowFreeSpace(sectors) | Kind::NoSpace(sectors) => {
            let mut data = Struct::new(call.abi, layout::LOW_FREE_SPACE);
            data.set_u64(0, sectors);
            (0, data)
        }
        Kind::Corrupted(device, err) => {
            let mut data = Struct::new(call.abi, layout::CORRUPTED);
            data.set_device(0, device)
                .set_u32(1, err.to_errno().unsigned_abs());
            (1, data)
        }
    };
    write_event(call, code, time, &data)
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_v1)]
mod tests {
    use super::{
        super::structs::{
            offset,
            test_abis::{
                I386,
                WIDE, //
            },
            Layout,
            RANGE, //
        },
        *, //
    };

    #[test]
    fn command_words() {
        for (number, (wide, i386)) in [
            (0x40085600, 0x40085600),
            (0x40085601, 0x40085601),
            (0x40105602, 0x40085602),
            (0x80185603, 0x80145603),
            (0x80185604, 0x80105604),
            (0x40205605, 0x40185605),
            (0x80105606, 0x80105606),
            (0x40285607, 0x40205607),
            (0x80105608, 0x80105608),
            (0x40105609, 0x40085609),
            (0x4020560A, 0x4018560A),
            (0x5000560B, 0x5000560B),
        ]
        .into_iter()
        .enumerate()
        {
            let command = COMMANDS.get(number).map(|entry| entry.0);
            assert!(command.is_some_and(|command| command as usize == number));
            for (abi, word, other) in [(WIDE, wide, i386), (I386, i386, wide)] {
                let found =
                    |word| command_of_word(&COMMANDS, MAGIC, word, abi).map(|found| found.0);
                assert_eq!(found(word), command);
                assert_eq!(found(word ^ 0x100), None);
                assert_eq!(found(word ^ 0xc0000000), None);
                assert_eq!(found(word + 0x10000), None);
                assert!(word == other || found(other).is_none());
            }
        }
        assert!(command_of_word(&COMMANDS, MAGIC, 0x4008560C, WIDE).is_none());
        assert!(command_of_word(&COMMANDS, MAGIC, 0x400856FF, WIDE).is_none());
    }

    #[test]
    fn places() {
        let places = |abi, layout: Layout, wanted: &[usize]| {
            for (field, &at) in wanted.iter().enumerate() {
                assert_eq!(offset(abi, layout, field), at);
            }
        };
        places(WIDE, layout::CBT_INFO, &[0, 8, 16, 24, 28, 44, 48]);
        places(I386, layout::CBT_INFO, &[0, 8, 12, 20, 24, 40, 44]);
        places(WIDE, layout::CORRUPTED, &[0, 8, 12]);
        places(I386, RANGE, &[0, 8, 16]);
        let argument = |number: usize| COMMANDS.get(number).map_or(&[] as Layout, |entry| entry.2);
        places(WIDE, argument(7), &[0, 16, 24, 32, 40]);
        places(I386, argument(7), &[0, 16, 24, 28, 32]);
        places(WIDE, argument(5), &[0, 8, 16, 32]);
        places(I386, argument(5), &[0, 4, 8, 24]);
        places(WIDE, argument(11), &[0, 16, 20, 24, 32, 4096]);
        places(I386, argument(11), &[0, 16, 20, 24, 32, 4096]);
        places(WIDE, argument(3), &[0, 8, 12, 16, 24]);
        places(I386, argument(3), &[0, 8, 12, 16, 20]);
    }
}
