// SPDX-License-Identifier: GPL-2.0

//! The control device: decodes the ioctls, and hands them to the registry.

use kernel::{
    fs::File,
    miscdevice::with_data::SharedDevice,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    abi::{
        cmd,
        read_array,
        user,
        Struct, //
    },
    events::{
        Event,
        Kind, //
    },
    registry::Registry, //
};

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

    fn ioctl(this: ArcBorrow<'_, Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let done = |()| 0;
        match cmd {
            cmd::VERSION => version(arg).map(done),
            cmd::TRACKER_REMOVE => this.tracker_remove(arg).map(done),
            cmd::TRACKER_COLLECT => this.tracker_collect(arg).map(done),
            cmd::TRACKER_READ_CBT_MAP => this.read_cbt_map(arg),
            cmd::TRACKER_MARK_DIRTY_BLOCKS => this.mark_dirty_blocks(arg).map(done),
            cmd::SNAPSHOT_CREATE => this.snapshot_create(arg).map(done),
            cmd::SNAPSHOT_DESTROY => this.snapshot_destroy(arg).map(done),
            cmd::SNAPSHOT_APPEND_STORAGE => this.append_storage(arg).map(done),
            cmd::SNAPSHOT_TAKE => this.snapshot_take(arg).map(done),
            cmd::SNAPSHOT_COLLECT => this.snapshot_collect(arg).map(done),
            cmd::SNAPSHOT_COLLECT_IMAGES => this.collect_images(arg).map(done),
            cmd::SNAPSHOT_WAIT_EVENT => this.wait_event(arg).map(done),
            _ => Err(ENOTTY),
        }
    }
}

fn version(arg: usize) -> Result {
    let mut out = Struct::<8>::new();
    for (i, part) in VERSION.iter().enumerate() {
        out.set(i * 2, &part.to_ne_bytes());
    }
    out.write(arg)
}

/// Writes `items` to the array at `array`, of which there is room for `room`, and their number to
/// the `u32` at `counter`. Without an array only the latter. Fails with `full` if there is too
/// little room; then only the number is written.
fn write_array<const N: usize>(
    array: usize,
    room: u32,
    counter: usize,
    items: &[Struct<N>],
    full: Error,
) -> Result {
    // CAST: There are less than that.
    user(counter, 4).writer().write(&(items.len() as u32))?;
    if array == 0 {
        return Ok(());
    }
    if items.len() > room as usize {
        return Err(full);
    }
    let mut address = array;
    for item in items {
        item.write(address)?;
        address = address.wrapping_add(N);
    }
    Ok(())
}

impl Control {
    fn tracker_remove(&self, arg: usize) -> Result {
        self.0.remove_tracker(Struct::<8>::read(arg)?.device(0))
    }

    fn tracker_collect(&self, arg: usize) -> Result {
        let args = Struct::<16>::read(arg)?;
        let infos = self.0.with_trackers(|trackers| -> Result<_> {
            let mut infos = KVVec::with_capacity(trackers.len(), GFP_KERNEL)?;
            for tracker in trackers {
                let cbt = tracker.cbt();
                let mut info = Struct::<48>::new();
                info.set_device(0, tracker.id())
                    .set_u32(8, cbt.block_size())
                    .set_u64(16, cbt.sectors() << crate::units::SECTOR_SHIFT)
                    .set_u32(24, cbt.block_count())
                    .set(28, &cbt.generation().0)
                    .set(44, &[cbt.previous()]);
                infos.push(info, GFP_KERNEL)?;
            }
            Ok(infos)
        })?;
        write_array(args.pointer(8), args.u32(0), arg, &infos, ENOBUFS)
    }

    fn read_cbt_map(&self, arg: usize) -> Result<isize> {
        let args = Struct::<24>::read(arg)?;
        let cbt = self.0.taken_map(args.device(0))?;
        let (offset, length, buffer) = (args.u32(8), args.u32(12), args.pointer(16));
        let length = length.min(cbt.block_count().saturating_sub(offset)) as usize;
        let mut piece = KVec::from_elem(0u8, MAP_PIECE.min(length), GFP_KERNEL)?;
        let mut writer = user(buffer, length).writer();
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

    fn mark_dirty_blocks(&self, arg: usize) -> Result {
        let args = Struct::<24>::read(arg)?;
        let ranges = read_ranges(args.pointer(16), args.u32(8))?;
        self.0.mark_dirty(args.device(0), &ranges)
    }

    fn snapshot_create(&self, arg: usize) -> Result {
        let mut args = Struct::<32>::read(arg)?;
        let ids = read_array::<8, _>(args.pointer(8), args.u32(0), MAX_DEVICES, |s| s.device(0))?;
        let id = self.0.create(&ids)?;
        let written = args.set(16, &id.0).write(arg);
        if written.is_err() {
            // The client will never know its name.
            self.0.destroy(id)?;
        }
        written
    }

    fn snapshot_destroy(&self, arg: usize) -> Result {
        self.0.destroy(Struct::<16>::read(arg)?.uuid(0))
    }

    fn append_storage(&self, arg: usize) -> Result {
        let args = Struct::<40>::read(arg)?;
        // An unknown snapshot is the first thing to be told.
        self.0.snapshot(args.uuid(0))?;
        let ranges = read_ranges(args.pointer(32), args.u32(24))?;
        self.0.append(args.uuid(0), args.device(16), &ranges)
    }

    fn snapshot_take(&self, arg: usize) -> Result {
        self.0.take(Struct::<16>::read(arg)?.uuid(0))
    }

    fn snapshot_collect(&self, arg: usize) -> Result {
        let args = Struct::<16>::read(arg)?;
        let mut ids = KVVec::with_capacity(self.0.snapshot_count(), GFP_KERNEL)?;
        self.0.for_each_snapshot(|snapshot| {
            let mut id = Struct::<16>::new();
            id.set(0, &snapshot.id().0);
            Ok(ids.push(id, GFP_KERNEL)?)
        })?;
        write_array(args.pointer(8), args.u32(0), arg, &ids, ENODATA)
    }

    fn collect_images(&self, arg: usize) -> Result {
        let args = Struct::<32>::read(arg)?;
        let snapshot = self.0.snapshot(args.uuid(0))?;
        let mut images = KVVec::with_capacity(snapshot.devices.len(), GFP_KERNEL)?;
        snapshot.for_each_captured(|device, captured| {
            let mut image = Struct::<16>::new();
            image
                .set_device(0, device.tracker.id())
                .set_device(8, captured.image.id());
            // There is room for all devices.
            let _ = images.push_within_capacity(image);
        });
        if images.is_empty() {
            return Err(ENODEV);
        }
        write_array(args.pointer(24), args.u32(16), arg + 16, &images, ENODATA)
    }

    fn wait_event(&self, arg: usize) -> Result {
        let args = Struct::<24>::read(arg)?;
        let snapshot = self.0.snapshot(args.uuid(0))?;
        let event = snapshot.storage.events().wait(args.u32(16))?;
        write_event(arg, &event)
    }
}

/// Writes the code, the time and the data of an event; the bytes after the data stay as they were.
fn write_event(arg: usize, event: &Event) -> Result {
    // From offset 20 on: the code, the time, the data.
    let mut out = Struct::<24>::new();
    match event.kind {
        Kind::LowFreeSpace(sectors) => out.set_u32(0, 0).set_u64(12, sectors),
        Kind::Corrupted(device, err) => {
            let errno = err.to_errno().unsigned_abs();
            out.set_u32(0, 1).set_device(12, device).set_u32(20, errno)
        }
    };
    out.set(4, &event.time.to_ne_bytes());
    out.write(arg.wrapping_add(20))
}

/// Reads an array of ranges, each as first sector and number of sectors.
fn read_ranges(address: usize, count: u32) -> Result<KVVec<(u64, u64)>> {
    read_array::<16, _>(address, count, MAX_RANGES, |s| (s.u64(0), s.u64(8)))
}
