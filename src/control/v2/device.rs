// SPDX-License-Identifier: GPL-2.0

//! Commands of the ABI of 2025 that come by the block device which they are about.

use kernel::{
    block::{
        bdev::BlockDevice,
        filter::Filter,
        filter_type::{
            Control,
            FilterType, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    base::units::SECTOR_SHIFT,
    control::{
        call::{
            copy_map,
            Call, //
        },
        commands::mark,
        front_end::FrontEnd,
        registry::Registry,
        structs::{
            size,
            Abi,
            Layout,
            Struct,
            NAME_LEN, //
        }, //
    },
    tracking::tracker::{
        Tracker,
        TrackerRef, //
    }, //
};

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    CbtInfo,
    CbtMap,
    CbtDirty,
    SnapshotAdd,
    SnapshotInfo,
    Stat,
}

/// The number of [`Command::Stat`], which only this module has.
const STAT: u32 = 64;

/// What `struct blksnap_stat` has: one that is longer some day begins with the same.
const STAT_LAYOUT: Layout = {
    use super::super::structs::Field::*;
    &[
        Long, Long, Long, Long, Long, Long, Long, Long, Long, Long, //
    ]
};

/// By number: the commands, and their argument.
const COMMANDS: [(Command, Layout); 5] = {
    use super::super::structs::Field::*;
    use Command::*;
    [
        (CbtInfo, &[Long, Int, Int, Uuid, Byte]),
        (CbtMap, &[Int, Int, Address]),
        (CbtDirty, &[Int, Address]),
        (SnapshotAdd, &[Uuid]),
        (SnapshotInfo, &[Int, Name]),
    ]
};

/// The bytes of `struct blksnap_cbtinfo` without what pads it at its end, which programs of 32 and
/// of 64 bits do not have in common.
const CBT_INFO: usize = 33;

/// Serves the commands, of the ioctls and of [`standalone`](super::super::standalone).
pub(crate) struct Devices {
    registry: Arc<Registry>,
    front_end: FrontEnd,
}

impl Devices {
    /// For clients of `front_end`.
    pub(in crate::control) fn new(registry: &Arc<Registry>, front_end: FrontEnd) -> Self {
        Self {
            registry: registry.clone(),
            front_end,
        }
    }

    /// Attaches the filter.
    pub(in crate::control) fn attach(&self, bdev: &BlockDevice) -> Result {
        self.registry.attach(bdev)
    }

    /// Detaches the filter.
    pub(in crate::control) fn detach(&self, bdev: &BlockDevice) -> Result {
        self.registry.detach(bdev).map_err(not_attached)
    }

    /// A command.
    pub(in crate::control) fn control(&self, bdev: &BlockDevice, control: Control) -> Result {
        let tracker = self.registry.find(bdev).ok_or(ENOENT)?;
        let (command, layout) = match control.command {
            STAT => (Command::Stat, STAT_LAYOUT),
            number => *COMMANDS.get(number as usize).ok_or(ENOTTY)?,
        };
        let abi = Abi::of(control.compat);
        let length = control.length as usize;
        let least = match command {
            Command::CbtInfo => CBT_INFO,
            Command::Stat => 1,
            _ => size(abi, layout),
        };
        if length < least {
            return Err(EINVAL);
        }
        let reads = matches!(
            command,
            Command::CbtMap | Command::CbtDirty | Command::SnapshotAdd
        );
        let mut call = Call {
            abi,
            address: control.address,
            args: Struct::new(abi, layout),
        };
        if reads {
            call.args = Struct::read(abi, layout, control.address)?;
        }
        match command {
            Command::CbtInfo => cbt_info(call, &tracker, length),
            Command::CbtMap => cbt_map(call, &tracker),
            Command::CbtDirty => mark(&tracker, &call.ranges(1)?),
            Command::SnapshotAdd => self.registry.add(self.front_end, call.args.uuid(0), bdev),
            Command::SnapshotInfo => self.snapshot_info(call, &tracker),
            Command::Stat => self.stat(call, &tracker, length),
        }
    }
}

impl FilterType for Devices {
    const NAME: &'static CStr = Tracker::NAME;

    fn attach(this: ArcBorrow<'_, Self>, bdev: &BlockDevice) -> Result {
        this.attach(bdev)
    }

    fn detach(this: ArcBorrow<'_, Self>, bdev: &BlockDevice) -> Result {
        this.detach(bdev)
    }

    fn control(this: ArcBorrow<'_, Self>, bdev: &BlockDevice, control: Control) -> Result {
        this.control(bdev, control)
    }
}

/// What a device without a filter answers.
fn not_attached(err: Error) -> Error {
    if err == ENODATA {
        ENOENT
    } else {
        err
    }
}

fn cbt_info(mut call: Call, tracker: &TrackerRef, length: usize) -> Result {
    let cbt = tracker.cbt();
    call.args
        .set_u64(0, cbt.sectors() << SECTOR_SHIFT)
        .set_u32(1, cbt.block_size())
        .set_u32(2, cbt.block_count())
        .set_uuid(3, cbt.generation())
        .set(4, &[cbt.previous()]);
    call.args.write_at_most(length, call.address)
}

fn cbt_map(call: Call, tracker: &TrackerRef) -> Result {
    let cbt = tracker.cbt();
    let (offset, length) = (call.args.u32(0), call.args.u32(1));
    if offset >= cbt.block_count() {
        return Err(ENODATA);
    }
    copy_map(&cbt, offset, length, call.args.pointer(2)).map(|_| ())
}

impl Devices {
    fn snapshot_info(&self, mut call: Call, tracker: &TrackerRef) -> Result {
        let mut name = [0u8; NAME_LEN];
        let mut error = 0;
        let membership = tracker.membership();
        if let Some(snapshot) = membership.and_then(|m| self.registry.snapshot(m.snapshot).ok()) {
            snapshot.for_each_captured(|captured| {
                if Arc::ptr_eq(&captured.tracker, tracker) {
                    captured.image.write_name(&mut name);
                }
            });
            error = snapshot.health.device_error(tracker.id());
        }
        call.args
            .set(0, &(-error).to_ne_bytes())
            .set(1, &name)
            .write(call.address)
    }
}

impl Devices {
    /// What is not known, as the device is in no snapshot or that was not taken, is 0.
    fn stat(&self, mut call: Call, tracker: &TrackerRef, length: usize) -> Result {
        let known = call.args.size().min(length) as u64;
        let mut numbers = [0u64; 10];
        let [size, map, held, copies, memory, retried, copied, capacity, filled, since] =
            &mut numbers;
        *size = known;
        *map = tracker.cbt().memory() as u64;
        *held = u64::from(tracker.held());
        *since = u64::try_from(tracker.since()).unwrap_or(0);
        let membership = tracker.membership();
        if let Some(snapshot) = membership.and_then(|m| self.registry.snapshot(m.snapshot).ok()) {
            snapshot.for_each_captured(|captured| {
                if Arc::ptr_eq(&captured.tracker, tracker) {
                    let usage = captured.engine.cow.usage();
                    (*copies, *memory) = (usage.0 as u64, usage.1 as u64);
                    *retried = captured.image.data().io().retried();
                }
            });
            let usage = snapshot.space.usage();
            *copied = snapshot.space.copied.load(Relaxed) << SECTOR_SHIFT;
            *capacity = usage.capacity << SECTOR_SHIFT;
            *filled = usage.filled << SECTOR_SHIFT;
        }
        for (field, number) in numbers.into_iter().enumerate() {
            call.args.set_u64(field, number);
        }
        call.args.write_at_most(length, call.address)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_v2_device)]
mod tests {
    use super::{
        super::super::structs::{
            offset,
            test_abis::{
                I386,
                WIDE, //
            }, //
        },
        *, //
    };

    #[test]
    fn places() {
        let places = |abi, number: usize, wanted: &[usize]| {
            let layout = COMMANDS.get(number).map_or(&[] as Layout, |entry| entry.1);
            for (field, &at) in wanted.iter().enumerate() {
                assert_eq!(offset(abi, layout, field), at);
            }
        };
        places(WIDE, 0, &[0, 8, 12, 16, 32, 40]);
        places(I386, 0, &[0, 8, 12, 16, 32, 36]);
        for abi in [WIDE, I386] {
            places(abi, 1, &[0, 4, 8, 16]);
            places(abi, 3, &[0, 16]);
            places(abi, 4, &[0, 4, 36]);
        }
        places(WIDE, 2, &[0, 8, 16]);
        places(I386, 2, &[0, 4, 12]);
    }

    #[test]
    fn commands_by_number() {
        for (number, (command, _)) in COMMANDS.iter().enumerate() {
            assert_eq!(*command as usize, number);
        }
    }
}
