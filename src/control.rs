// SPDX-License-Identifier: GPL-2.0

//! The control device: decodes the ioctls, and hands them to the registry.

use kernel::{
    capability::{
        capable,
        Capability, //
    },
    fs::File,
    miscdevice::with_data::SharedDevice,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    control::{
        abi::{
            layout,
            read_array,
            user,
            Abi,
            Command,
            Struct, //
        },
        registry::Registry, //
    },
    storage::events::Kind, //
};

pub(crate) mod abi;
mod commands;
mod feeding;
pub(crate) mod registry;
pub(crate) mod sysfs;

/// Major, minor, revision, build.
const VERSION: [u16; 4] = [1, 0, 0, 0];

/// The largest number of devices in a snapshot.
const MAX_DEVICES: u32 = 4096;

/// The largest number of ranges in one call.
const MAX_RANGES: u32 = 1 << 20;

/// Bytes of a map that are copied at a time.
const MAP_PIECE: usize = 16 << 10;

/// What is behind the control device.
pub(crate) struct Control(pub(crate) Arc<Registry>);

impl SharedDevice for Control {
    type OwnerModule = crate::LocalModule;

    fn open(&self, _file: &File) -> Result {
        // Whatever the node's mode says.
        if capable(Capability::SysAdmin) {
            Ok(())
        } else {
            Err(EPERM)
        }
    }

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        this.command(Abi::NATIVE, cmd, arg)
    }

    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        this: ArcBorrow<'_, Self>,
        _file: &File,
        cmd: u32,
        arg: usize,
    ) -> Result<isize> {
        this.command(Abi::COMPAT, cmd, arg)
    }
}

/// The argument of a command.
struct Call {
    abi: Abi,
    /// Where it is in user space.
    address: usize,
    args: Struct,
}

impl Call {
    /// Writes `items` to the array at field `array`, of which the field before it says how many
    /// there is room for, and their number to that field. Without an array only the latter. Fails
    /// with `full` if there is too little room; then only the number is written.
    fn write_array(&self, array: usize, items: &[Struct], full: Error) -> Result {
        let counter = array.saturating_sub(1);
        let room = self.args.u32(counter) as usize;
        // CAST: There are less than that.
        let count = (items.len() as u32).to_ne_bytes();
        user(self.address.wrapping_add(self.args.offset(counter)), 4)
            .writer()
            .write_slice(&count)?;
        let mut address = self.args.pointer(array);
        if address == 0 {
            return Ok(());
        }
        if items.len() > room {
            return Err(full);
        }
        for item in items {
            item.write(address)?;
            address = address.wrapping_add(item.size());
        }
        Ok(())
    }

    /// Reads the array of ranges at field `array`, of which the field before it says how many
    /// there are, each as first sector and number of sectors.
    fn ranges(&self, array: usize) -> Result<KVVec<(u64, u64)>> {
        read_array(
            (self.abi, layout::RANGE),
            self.args.pointer(array),
            self.args.u32(array.saturating_sub(1)),
            MAX_RANGES,
            |range| (range.u64(0), range.u64(1)),
        )
    }
}

fn version(mut call: Call) -> Result {
    for (i, part) in VERSION.iter().enumerate() {
        call.args.set(i, &part.to_ne_bytes());
    }
    call.args.write(call.address)
}

impl Control {
    fn command(&self, abi: Abi, word: u32, address: usize) -> Result<isize> {
        let (command, layout) = Command::from_word(word, abi).ok_or(ENOTTY)?;
        let args = Struct::read(abi, layout, address)?;
        let call = Call { abi, address, args };
        match command {
            Command::Version => version(call),
            Command::TrackerRemove => self.0.remove_tracker(args.device(0)),
            Command::TrackerCollect => self.tracker_collect(call),
            Command::TrackerReadCbtMap => return self.read_cbt_map(call),
            Command::TrackerMarkDirtyBlocks => self.0.mark_dirty(args.device(0), &call.ranges(2)?),
            Command::SnapshotCreate => self.snapshot_create(call),
            Command::SnapshotDestroy => self.0.destroy(args.uuid(0)),
            Command::SnapshotAppendStorage => self.append_storage(call),
            Command::SnapshotTake => self.0.take(args.uuid(0)),
            Command::SnapshotCollect => self.snapshot_collect(call),
            Command::SnapshotCollectImages => self.collect_images(call),
            Command::SnapshotWaitEvent => self.wait_event(call),
        }
        .map(|()| 0)
    }

    fn tracker_collect(&self, call: Call) -> Result {
        let trackers = self.0.trackers()?;
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
        let cbt = self.0.taken_map(call.args.device(0))?;
        let (offset, length) = (call.args.u32(1), call.args.u32(2));
        let length = length.min(cbt.block_count().saturating_sub(offset)) as usize;
        let mut piece = KVec::from_elem(0u8, MAP_PIECE.min(length), GFP_KERNEL)?;
        let mut writer = user(call.args.pointer(3), length).writer();
        let mut done = 0;
        while done < length {
            let want = piece.len().min(length - done);
            let piece = piece.get_mut(..want).ok_or(EINVAL)?;
            // CAST: `done` is less than `length`, which was a `u32`.
            let got = cbt.read(offset + done as u32, piece);
            writer.write_slice(piece.get(..got).ok_or(EINVAL)?)?;
            done += got;
        }
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
        let id = self.0.create(&ids)?;
        let written = call.args.set_uuid(2, id).write(call.address);
        if written.is_err() {
            // The client will never know its name.
            self.0.destroy(id)?;
        }
        written
    }

    fn append_storage(&self, call: Call) -> Result {
        // An unknown snapshot is the first thing to be told.
        self.0.snapshot(call.args.uuid(0))?;
        self.0
            .append(call.args.uuid(0), call.args.device(1), &call.ranges(3)?)
    }

    fn snapshot_collect(&self, call: Call) -> Result {
        let snapshots = self.0.snapshots()?;
        let mut ids = KVVec::with_capacity(snapshots.len(), GFP_KERNEL)?;
        for snapshot in &snapshots {
            let mut id = Struct::new(call.abi, layout::UUID);
            id.set_uuid(0, snapshot.id());
            ids.push(id, GFP_KERNEL)?;
        }
        call.write_array(1, &ids, ENODATA)
    }

    fn collect_images(&self, call: Call) -> Result {
        let snapshot = self.0.snapshot(call.args.uuid(0))?;
        let mut images = KVVec::with_capacity(snapshot.devices.len(), GFP_KERNEL)?;
        snapshot.for_each_captured(|device, captured| {
            let mut image = Struct::new(call.abi, layout::IMAGE_INFO);
            image
                .set_device(0, device.tracker.id())
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
        let events = self.0.snapshot(call.args.uuid(0))?.events.clone();
        let event = events.wait(call.args.u32(1))?;
        let written = Self::write_event(&mut call, event.kind, event.time);
        if written.is_err() {
            events.put_back(event);
        }
        written
    }

    fn write_event(call: &mut Call, kind: Kind, time: i64) -> Result {
        let mut data = Struct::new(call.abi, layout::CORRUPTED);
        let code = match kind {
            Kind::LowFreeSpace(sectors) => {
                data = Struct::new(call.abi, layout::LOW_FREE_SPACE);
                data.set_u64(0, sectors);
                0
            }
            Kind::Corrupted(device, err) => {
                data.set_device(0, device)
                    .set_u32(1, err.to_errno().unsigned_abs());
                1
            }
        };
        // What is behind the data stays as it was.
        call.args.set_u32(2, code).set(3, &time.to_ne_bytes());
        call.args.write(call.address)?;
        data.write(call.address.wrapping_add(call.args.size()))
    }
}
