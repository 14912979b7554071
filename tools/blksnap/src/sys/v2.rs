// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers and layouts of the second interface, that of 2025: `include/uapi/linux/blksnap.h` and
//! `linux/blk-filter.h`.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{READ, RawUuid, SnapshotEvent, Version, WRITE, number};

/// Path of the control device.
pub const CONTROL_PATH: &str = "/dev/blksnap-control";
/// The name of the filter, as the structures have it.
pub const FILTER_NAME: [u8; 32] = {
    let mut name = [0; 32];
    let text = b"blksnap";
    let mut at = 0;
    while at < text.len() {
        name[at] = text[at];
        at += 1;
    }
    name
};

/// Composes a number of a block device.
const fn of_device<T>(nr: u32) -> u32 {
    (READ | WRITE) << 30 | (size_of::<T>() as u32) << 16 | 0x12 << 8 | nr
}

/// Begins to track a block device.
pub const ATTACH: u32 = of_device::<Attach>(142);
/// Ends that.
pub const DETACH: u32 = of_device::<Detach>(143);
/// Gives a command to the filter of a block device.
pub const CTL: u32 = of_device::<Ctl>(144);

/// Command of a device: what is known of its changes.
pub const CTL_CBTINFO: u32 = 0;
/// Command of a device: reads its change map.
pub const CTL_CBTMAP: u32 = 1;
/// Command of a device: marks ranges as changed.
pub const CTL_CBTDIRTY: u32 = 2;
/// Command of a device: adds it to a snapshot.
pub const CTL_SNAPSHOTADD: u32 = 3;
/// Command of a device: its image.
pub const CTL_SNAPSHOTINFO: u32 = 4;
/// Command of a device: its counters. Not in the interface of 2025.
pub const CTL_STAT: u32 = 64;

/// Asks for the version.
pub const VERSION: u32 = number::<Version>(READ, 0);
/// Prepares a snapshot.
pub const SNAPSHOT_CREATE: u32 = number::<SnapshotCreate>(READ | WRITE, 1);
/// Ends a snapshot.
pub const SNAPSHOT_DESTROY: u32 = number::<RawUuid>(WRITE, 2);
/// Captures the devices.
pub const SNAPSHOT_TAKE: u32 = number::<RawUuid>(WRITE, 3);
/// Lists the snapshots.
pub const SNAPSHOT_COLLECT: u32 = number::<SnapshotCollect>(READ, 4);
/// Waits for an event.
pub const SNAPSHOT_WAIT_EVENT: u32 = number::<SnapshotEvent>(READ, 5);

/// Code of [`EventCorrupted`](super::EventCorrupted), which is the same in both.
pub const EVENT_CORRUPTED: u32 = 0;
/// Code of [`EventNoSpace`].
pub const EVENT_NO_SPACE: u32 = 1;

/// `struct blkfilter_attach`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// The filter.
    pub name: [u8; 32],
    /// A pointer to its options.
    pub opt: u64,
    /// Their size.
    pub optlen: u32,
}

/// `struct blkfilter_detach`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Detach {
    /// The filter.
    pub name: [u8; 32],
}

/// `struct blkfilter_ctl`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ctl {
    /// The filter.
    pub name: [u8; 32],
    /// The command.
    pub cmd: u32,
    /// The size of its structure.
    pub optlen: u32,
    /// A pointer to it.
    pub opt: u64,
}

/// `struct blksnap_cbtinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CbtInfo {
    /// Bytes of the device.
    pub device_capacity: u64,
    /// Bytes in a tracking block.
    pub block_size: u32,
    /// Number of tracking blocks.
    pub block_count: u32,
    /// The generation.
    pub generation_id: RawUuid,
    /// Number of the last snapshot taken.
    pub changes_number: u8,
}

/// `struct blksnap_cbtmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CbtMap {
    /// First block.
    pub offset: u32,
    /// Number of blocks.
    pub length: u32,
    /// A pointer to where they go.
    pub buffer: u64,
}

/// `struct blksnap_cbtdirty`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CbtDirty {
    /// Number of ranges.
    pub count: u32,
    /// A pointer to the ranges, [`BlockRange`](super::BlockRange).
    pub dirty_sectors: u64,
}

/// `struct blksnap_snapshotinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SnapshotInfo {
    /// 0, or a negative errno.
    pub error_code: i32,
    /// The name of the image, NUL after it.
    pub image: [u8; 32],
}

/// `struct blksnap_stat`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    /// How many bytes of it were stored.
    pub size: u64,
    /// Bytes of memory of the change map.
    pub map_memory: u64,
    /// Writes that wait for a copy.
    pub writes_held: u64,
    /// Copies under way.
    pub copies_in_flight: u64,
    /// Bytes of memory of the copies.
    pub copy_memory: u64,
    /// Reads of the image that a write overtook.
    pub reads_retried: u64,
    /// Bytes copied for the snapshot.
    pub bytes_copied: u64,
    /// Bytes of its storage.
    pub storage_size: u64,
    /// Bytes of it in use.
    pub storage_used: u64,
    /// When tracking began.
    pub since: u64,
}

/// `struct blksnap_snapshot_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCreate {
    /// How large the storage may become, in sectors of 512 bytes.
    pub diff_storage_limit_sect: u64,
    /// A pointer to its path.
    pub diff_storage_filename: u64,
    /// The snapshot, out.
    pub id: RawUuid,
}

/// `struct blksnap_snapshot_collect`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCollect {
    /// Room in, number out.
    pub count: u32,
    /// A pointer to where they go, or 0.
    pub ids: u64,
}

/// `struct blksnap_event_no_space`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct EventNoSpace {
    /// Sectors of 512 bytes that the storage has.
    pub requested_nr_sect: u64,
}

const _: () = {
    assert!(DETACH == 0xC020_128F);
    assert!(CTL == 0xC030_1290);
    assert!(VERSION == 0x8008_5600);
    assert!(SNAPSHOT_CREATE == 0xC020_5601);
    assert!(SNAPSHOT_DESTROY == 0x4010_5602);
    assert!(SNAPSHOT_TAKE == 0x4010_5603);
    assert!(SNAPSHOT_WAIT_EVENT == 0x9000_5605);
    assert!(super::BIND == 0x5640);
    assert!(size_of::<SnapshotInfo>() == 36);
    assert!(size_of::<CbtMap>() == 16);
    assert!(size_of::<Stat>() == 80);
    assert!(std::mem::offset_of!(CbtInfo, changes_number) == 32);
};

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(ATTACH == 0xC030_128E);
    assert!(SNAPSHOT_COLLECT == 0x8010_5604);
    assert!(size_of::<CbtInfo>() == 40);
    assert!(size_of::<CbtDirty>() == 16);
};

#[cfg(target_arch = "x86")]
const _: () = {
    assert!(ATTACH == 0xC02C_128E);
    assert!(SNAPSHOT_COLLECT == 0x800C_5604);
    assert!(size_of::<CbtInfo>() == 36);
    assert!(size_of::<CbtDirty>() == 12);
};
