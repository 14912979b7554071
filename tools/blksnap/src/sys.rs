// SPDX-License-Identifier: MIT OR Apache-2.0

//! The raw control interface: numbers and layouts of `include/uapi/linux/blk_snap.h`, and, in
//! [`v2`], those of `include/uapi/linux/blksnap.h`.
//!
//! Nothing here checks anything. The layouts are those of the C compiler for the target this crate
//! is built for, so a 32-bit build has the 32-bit layouts. [`Control`](crate::Control) is the safe
//! side.

pub mod v2;

use std::ffi::c_void;
use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Path of the control device.
pub const CONTROL_PATH: &str = "/dev/blksnap";
/// Path of an image device without its minor number.
pub const IMAGE_PATH: &str = "/dev/blksnap-image";

/// The direction a number says "write" with.
const WRITE: u32 = 1;
/// The direction a number says "read" with.
const READ: u32 = 2;

/// Composes a control number.
const fn number<T>(direction: u32, nr: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32) << 16 | (b'V' as u32) << 8 | nr
}

/// Asks for the version.
pub const VERSION: u32 = number::<Version>(WRITE, 0);
/// Ends the tracking of a device.
pub const TRACKER_REMOVE: u32 = number::<TrackerRemove>(WRITE, 1);
/// Lists the trackers.
pub const TRACKER_COLLECT: u32 = number::<TrackerCollect>(WRITE, 2);
/// Reads a change map.
pub const TRACKER_READ_CBT_MAP: u32 = number::<TrackerReadCbtBitmap>(READ, 3);
/// Marks ranges as changed.
pub const TRACKER_MARK_DIRTY_BLOCKS: u32 = number::<TrackerMarkDirtyBlocks>(READ, 4);
/// Prepares a snapshot.
pub const SNAPSHOT_CREATE: u32 = number::<SnapshotCreate>(WRITE, 5);
/// Ends a snapshot.
pub const SNAPSHOT_DESTROY: u32 = number::<SnapshotDestroy>(READ, 6);
/// Gives a snapshot disk space.
pub const SNAPSHOT_APPEND_STORAGE: u32 = number::<SnapshotAppendStorage>(WRITE, 7);
/// Captures the devices.
pub const SNAPSHOT_TAKE: u32 = number::<SnapshotTake>(READ, 8);
/// Lists the snapshots.
pub const SNAPSHOT_COLLECT: u32 = number::<SnapshotCollect>(WRITE, 9);
/// Lists the images of a snapshot.
pub const SNAPSHOT_COLLECT_IMAGES: u32 = number::<SnapshotCollectImages>(WRITE, 10);
/// Waits for an event.
pub const SNAPSHOT_WAIT_EVENT: u32 = number::<SnapshotEvent>(WRITE, 11);

/// Binds snapshots to the open file that makes them; of both interfaces, and without an argument.
pub const BIND: u32 = (b'V' as u32) << 8 | 64;
/// Tells what was not used at the instant; of both interfaces.
pub const UNUSED: u32 = number::<Unused>(WRITE, 65);

/// Code of [`EventLowFreeSpace`].
pub const EVENT_LOW_FREE_SPACE: u32 = 0;
/// Code of [`EventCorrupted`].
pub const EVENT_CORRUPTED: u32 = 1;

/// An identifier of 16 bytes in the order of RFC 9562.
pub type RawUuid = [u8; 16];

/// `struct blk_snap_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Version {
    /// Changes when programs must change.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
    /// Changes when something is mended.
    pub revision: u16,
    /// The build.
    pub build: u16,
}

/// `struct blk_snap_dev_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DevT {
    /// Major number.
    pub mj: u32,
    /// Minor number.
    pub mn: u32,
}

/// `struct blk_snap_tracker_remove`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrackerRemove {
    /// The device.
    pub dev_id: DevT,
}

/// `struct blk_snap_cbt_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CbtInfo {
    /// The device.
    pub dev_id: DevT,
    /// Bytes in a tracking block.
    pub blk_size: u32,
    /// Bytes of the device.
    pub device_capacity: u64,
    /// Number of tracking blocks.
    pub blk_count: u32,
    /// The generation.
    pub generation_id: RawUuid,
    /// Number of the last snapshot taken.
    pub snap_number: u8,
}

/// `struct blk_snap_tracker_collect`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrackerCollect {
    /// Room in, number out.
    pub count: u32,
    /// Where they go, or null.
    pub cbt_info_array: *mut CbtInfo,
}

/// `struct blk_snap_tracker_read_cbt_bitmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrackerReadCbtBitmap {
    /// The device.
    pub dev_id: DevT,
    /// First block.
    pub offset: u32,
    /// Number of blocks.
    pub length: u32,
    /// Where they go.
    pub buff: *mut u8,
}

/// `struct blk_snap_block_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlockRange {
    /// First sector of 512 bytes.
    pub sector_offset: u64,
    /// Number of sectors of 512 bytes.
    pub sector_count: u64,
}

/// `struct blk_snap_tracker_mark_dirty_blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrackerMarkDirtyBlocks {
    /// The device.
    pub dev_id: DevT,
    /// Number of ranges.
    pub count: u32,
    /// The ranges.
    pub dirty_blocks_array: *const BlockRange,
}

/// `struct blk_snap_snapshot_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCreate {
    /// Number of devices.
    pub count: u32,
    /// The devices.
    pub dev_id_array: *const DevT,
    /// The snapshot, out.
    pub id: RawUuid,
}

/// `struct blk_snap_snapshot_destroy`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotDestroy {
    /// The snapshot.
    pub id: RawUuid,
}

/// `struct blk_snap_snapshot_append_storage`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotAppendStorage {
    /// The snapshot.
    pub id: RawUuid,
    /// The device of the ranges.
    pub dev_id: DevT,
    /// Number of ranges.
    pub count: u32,
    /// The ranges.
    pub ranges: *const BlockRange,
}

/// `struct blk_snap_snapshot_take`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotTake {
    /// The snapshot.
    pub id: RawUuid,
}

/// `struct blk_snap_snapshot_collect`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCollect {
    /// Room in, number out.
    pub count: u32,
    /// Where they go, or null.
    pub ids: *mut RawUuid,
}

/// `struct blk_snap_image_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageInfo {
    /// The captured device.
    pub orig_dev_id: DevT,
    /// Its image.
    pub image_dev_id: DevT,
}

/// `struct blk_snap_snapshot_collect_images`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotCollectImages {
    /// The snapshot.
    pub id: RawUuid,
    /// Room in, number out.
    pub count: u32,
    /// Where they go, or null.
    pub image_info_array: *mut ImageInfo,
}

/// `struct blk_snap_snapshot_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SnapshotEvent {
    /// The snapshot.
    pub id: RawUuid,
    /// How long to wait, in milliseconds.
    pub timeout_ms: u32,
    /// The code, out.
    pub code: u32,
    /// When it happened, in nanoseconds of the monotonic clock, out.
    pub time_label: i64,
    /// The rest, out.
    pub data: [u8; 4064],
}

/// `struct blk_snap_unused`, which is `struct blksnap_unused`; the same for all programs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Unused {
    /// The snapshot.
    pub id: RawUuid,
    /// One of its devices.
    pub dev_id: DevT,
    /// 0.
    pub flags: u32,
    /// Number of ranges.
    pub count: u32,
    /// The ranges: a pointer to [`BlockRange`]s.
    pub ranges: u64,
}

const _: () = {
    assert!(UNUSED == 0x4028_5641);
    assert!(std::mem::offset_of!(Unused, ranges) == 32);
};

/// `struct blk_snap_event_low_free_space`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct EventLowFreeSpace {
    /// Sectors of 512 bytes to append.
    pub requested_nr_sect: u64,
}

/// `struct blk_snap_event_corrupted`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct EventCorrupted {
    /// The captured device.
    pub orig_dev_id: DevT,
    /// A positive errno.
    pub err_code: i32,
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(VERSION == 0x4008_5600);
    assert!(TRACKER_REMOVE == 0x4008_5601);
    assert!(TRACKER_COLLECT == 0x4010_5602);
    assert!(TRACKER_READ_CBT_MAP == 0x8018_5603);
    assert!(TRACKER_MARK_DIRTY_BLOCKS == 0x8018_5604);
    assert!(SNAPSHOT_CREATE == 0x4020_5605);
    assert!(SNAPSHOT_DESTROY == 0x8010_5606);
    assert!(SNAPSHOT_APPEND_STORAGE == 0x4028_5607);
    assert!(SNAPSHOT_TAKE == 0x8010_5608);
    assert!(SNAPSHOT_COLLECT == 0x4010_5609);
    assert!(SNAPSHOT_COLLECT_IMAGES == 0x4020_560A);
    assert!(SNAPSHOT_WAIT_EVENT == 0x5000_560B);
    assert!(size_of::<CbtInfo>() == 48);
    assert!(std::mem::offset_of!(CbtInfo, generation_id) == 28);
    assert!(std::mem::offset_of!(CbtInfo, snap_number) == 44);
    assert!(std::mem::offset_of!(SnapshotCreate, id) == 16);
    assert!(std::mem::offset_of!(SnapshotAppendStorage, ranges) == 32);
    assert!(std::mem::offset_of!(SnapshotCollectImages, image_info_array) == 24);
    assert!(std::mem::offset_of!(SnapshotEvent, data) == 32);
    assert!(size_of::<EventCorrupted>() == 12);
};

#[cfg(target_arch = "x86")]
const _: () = {
    assert!(TRACKER_COLLECT == 0x4008_5602);
    assert!(TRACKER_READ_CBT_MAP == 0x8014_5603);
    assert!(TRACKER_MARK_DIRTY_BLOCKS == 0x8010_5604);
    assert!(SNAPSHOT_CREATE == 0x4018_5605);
    assert!(SNAPSHOT_APPEND_STORAGE == 0x4020_5607);
    assert!(SNAPSHOT_COLLECT == 0x4008_5609);
    assert!(SNAPSHOT_COLLECT_IMAGES == 0x4018_560A);
    assert!(SNAPSHOT_WAIT_EVENT == 0x5000_560B);
    assert!(size_of::<CbtInfo>() == 44);
};

/// One call: a number, and the structure it reads and writes. Gives what the kernel returns.
struct Call<'a, T> {
    number: u32,
    argument: &'a mut T,
}

// SAFETY: `as_ptr` is a valid pointer to the structure, exclusively borrowed for the call; that the
// number takes such a structure is the duty of the caller of `call`.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = u32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.argument).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<u32> {
        Ok(u32::try_from(out).unwrap_or(0))
    }
}

/// Issues a control call and gives the kernel's return value.
///
/// # Safety
///
/// `number` must take a `T`, and the pointers in `argument` must be null or good for the counts
/// beside them, during the call.
pub unsafe fn call<T>(fd: impl AsFd, number: u32, argument: &mut T) -> Result<u32> {
    // SAFETY: by the contract of this function, the kernel reads and writes a `T` and what its
    // pointers cover.
    unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }
}
