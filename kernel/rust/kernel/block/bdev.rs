// SPDX-License-Identifier: GPL-2.0

//! Block devices, opened by number.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    prelude::*,
    str::BStr,
    sync::{
        atomic::{
            atomic_load,
            Relaxed, //
        },
        rcu,
        Arc, //
    },
    types::Opaque, //
};
use core::ptr::NonNull;

/// A device number, as user space sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevId {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// As in `/sys/dev/block`: `8:1`.
impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{}:{}", self.major, self.minor))
    }
}

impl DevId {
    /// The kernel's `dev_t`, if the numbers fit: 12 bits for the major, 20 for the minor.
    fn to_raw(self) -> Option<bindings::dev_t> {
        if self.major >= 1 << 12 || self.minor >= 1 << 20 {
            return None;
        }
        Some(self.major << 20 | self.minor)
    }

    /// Splits the kernel's `dev_t`.
    pub(crate) fn from_raw(dev: bindings::dev_t) -> Self {
        Self {
            major: dev >> 20,
            minor: dev & ((1 << 20) - 1),
        }
    }
}

/// A block device: a whole disk or a partition.
///
/// # Invariants
///
/// The device is open as long as the reference lives.
#[repr(transparent)]
pub struct BlockDevice(Opaque<bindings::block_device>);

/// What identifies a disk for as long as a filter is attached to it or it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskId {
    /// The address of the `struct gendisk`.
    address: usize,
    /// The sequence number, which changes with the medium.
    seq: u64,
}

impl DiskId {
    /// The sequence number of the disk: of two disks, the one that was made, or got its medium,
    /// later has the higher one.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

impl BlockDevice {
    /// Returns the C pointer.
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    /// The disk that the device is, or is a partition of.
    #[inline]
    fn disk(&self) -> *mut bindings::gendisk {
        // SAFETY: The device is open by the type invariant; the field never changes.
        unsafe { (*self.as_raw()).bd_disk }
    }

    /// The request queue.
    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: The device is open by the type invariant; the field never changes.
        unsafe { (*self.as_raw()).bd_queue }
    }

    /// The queue's limits, valid as long as the device is open.
    ///
    /// The driver may replace them at any time, by a copy of the whole structure. Readers of single
    /// limits take no lock against that, here as elsewhere, so each is to be read by `READ_ONCE()`.
    fn limits(&self) -> *mut bindings::queue_limits {
        // SAFETY: The queue lives as long as the device.
        unsafe { &raw mut (*self.queue()).limits }
    }

    /// The device number.
    pub fn id(&self) -> DevId {
        // SAFETY: The device is open by the type invariant; the field never changes.
        DevId::from_raw(unsafe { (*self.as_raw()).bd_dev })
    }

    /// The disk's identity.
    #[inline]
    pub fn disk_id(&self) -> DiskId {
        let disk = self.disk();
        DiskId {
            address: disk as usize,
            // SAFETY: The disk lives as long as the device. The number may change beside us, which
            // the volatile read allows for.
            seq: unsafe { (&raw const (*disk).diskseq).read_volatile() },
        }
    }

    /// Whether the device is a partition.
    pub fn is_partition(&self) -> bool {
        // SAFETY: The device is open by the type invariant.
        unsafe { bindings::bdev_is_partition(self.as_raw()) }
    }

    /// The device number of a partition of the disk, if there is one with that number.
    fn partition_id(&self, number: u64) -> Option<DevId> {
        let _rcu = rcu::read_lock();
        // SAFETY: The disk lives as long as the device, and so does the table.
        let part =
            unsafe { bindings::xa_load(&raw mut (*self.disk()).part_tbl, number as c_ulong) };
        if part.is_null() {
            return None;
        }
        // SAFETY: Partitions are freed after a grace period.
        Some(DevId::from_raw(unsafe {
            (*part.cast::<bindings::block_device>()).bd_dev
        }))
    }

    /// The first sector on the disk, in units of 512 bytes: 0 for a whole disk.
    #[inline]
    pub fn start_sector(&self) -> u64 {
        // SAFETY: The device is open by the type invariant.
        unsafe { (*self.as_raw()).bd_start_sect }
    }

    /// The number of sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        // SAFETY: The device is open by the type invariant.
        unsafe { bindings::bdev_nr_sectors(self.as_raw()) }
    }

    /// The logical block size in bytes.
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: Valid and aligned, see `limits()`; an old or a new value is equally good.
        unsafe { atomic_load(&raw mut (*self.limits()).logical_block_size, Relaxed) }
    }

    /// The physical block size in bytes.
    pub fn physical_block_size(&self) -> u32 {
        // SAFETY: Valid and aligned, see `limits()`; an old or a new value is equally good.
        unsafe { atomic_load(&raw mut (*self.limits()).physical_block_size, Relaxed) }
    }

    /// The minimum and the optimal I/O size in bytes; the latter is 0 when not known.
    pub fn io_sizes(&self) -> (u32, u32) {
        // SAFETY: Valid and aligned, see `limits()`; an old or a new value is equally good.
        let min = unsafe { atomic_load(&raw mut (*self.limits()).io_min, Relaxed) };
        // SAFETY: Valid and aligned, see `limits()`; an old or a new value is equally good.
        let opt = unsafe { atomic_load(&raw mut (*self.limits()).io_opt, Relaxed) };
        (min, opt)
    }

    /// Whether what is written to `other`'s disk is written to this device in the end, as the disk
    /// is made of it, directly or not. May sleep.
    ///
    /// That is known of disks of device mapper and md, and not of what is in between by way of a
    /// file or a network.
    #[cfg(CONFIG_BLK_FILTER)]
    pub fn is_below(&self, other: &BlockDevice) -> bool {
        // SAFETY: Both are open by the type invariant.
        unsafe { bindings::blk_filter_sees_writes(self.as_raw(), other.disk()) }
    }

    /// Looks whether filters see all that is written to the device, as when one is attached: it may
    /// have become a path of a multipath device since. May sleep.
    ///
    /// Fails with `EOPNOTSUPP`; the kernel's log says why.
    #[cfg(CONFIG_BLK_FILTER)]
    pub fn check_filters(&self) -> Result {
        // SAFETY: The device is open by the type invariant.
        to_result(unsafe { bindings::blk_filter_check(self.as_raw()) })
    }

    /// Whether the two have sectors in common: they are the same, or one is a partition of the
    /// other one.
    pub fn overlaps(&self, other: &BlockDevice) -> bool {
        let end = |bdev: &Self| bdev.start_sector().saturating_add(bdev.sectors());
        self.disk() == other.disk()
            && self.start_sector() < end(other)
            && other.start_sector() < end(self)
    }

    /// Whether the device has all sectors of the other one: it is the same, or the disk of that
    /// partition.
    pub fn contains(&self, other: &BlockDevice) -> bool {
        let end = |bdev: &Self| bdev.start_sector().saturating_add(bdev.sectors());
        self.disk() == other.disk()
            && self.start_sector() <= other.start_sector()
            && end(other) <= end(self)
    }

    /// Whether the device is read-only.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: The device is open by the type invariant.
        unsafe { bindings::bdev_read_only(self.as_raw()) }
    }
}

/// The name, such as `sda1`.
impl fmt::Display for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = [0u8; bindings::BDEVNAME_SIZE as usize];
        // SAFETY: The buffer has that size, and the format takes a pointer to a block device.
        unsafe {
            bindings::scnprintf(
                name.as_mut_ptr().cast(),
                name.len(),
                c"%pg".as_char_ptr(),
                self.as_raw(),
            )
        };
        let len = name.iter().position(|&byte| byte == 0).unwrap_or(0);
        fmt::Display::fmt(BStr::from_bytes(name.get(..len).unwrap_or(&[])), f)
    }
}

/// Who claims devices. Its address counts, so that it is to be a `static`; who opens a device again
/// for the same one shares the claim.
pub struct Holder {
    // Not a type without size: the address would not be its own.
    _address: u8,
}

impl Holder {
    /// Makes another one.
    pub const fn new() -> Self {
        Self { _address: 0 }
    }
}

impl Default for Holder {
    fn default() -> Self {
        Self::new()
    }
}

/// An open block device.
///
/// # Invariants
///
/// `file` is an open file of the block device `bdev`, without a holder or with a [`Holder`].
pub struct BdevFile {
    file: NonNull<bindings::file>,
    /// Found once, as each bio needs it.
    bdev: NonNull<bindings::block_device>,
}

// SAFETY: A file may be used and closed from any thread.
unsafe impl Send for BdevFile {}
// SAFETY: All methods are thread-safe.
unsafe impl Sync for BdevFile {}

impl BdevFile {
    /// The number of the device that a path names for the current task. May sleep.
    ///
    /// Fails with the errors of looking it up, `ENOTBLK` if it is no block device, `EACCES` if
    /// devices are not allowed where it is.
    pub fn lookup(path: &CStr) -> Result<DevId> {
        let mut dev: bindings::dev_t = 0;
        // SAFETY: The path ends with NUL; `dev` is valid for writes.
        to_result(unsafe { bindings::lookup_bdev(path.as_char_ptr(), &mut dev) })?;
        Ok(DevId::from_raw(dev))
    }

    /// Opens the device with the given number for reading, not exclusively. May sleep.
    ///
    /// For writing, see [`open_for_writing`](Self::open_for_writing).
    pub fn open(id: DevId) -> Result<Arc<Self>> {
        Self::open_by(id, bindings::BLK_OPEN_READ, None)
    }

    /// Opens the device with the given number for reading and writing, and claims it if there is
    /// a `holder`: then nobody else can claim it, which mounting, for instance, does. May sleep.
    ///
    /// Fails with `EBUSY` if somebody else has claimed it; also if it is mounted and the kernel
    /// was told that such a device must not be written to (`CONFIG_BLK_DEV_WRITE_MOUNTED`). With
    /// `EACCES` or `EROFS` if the driver does not allow writing.
    pub fn open_for_writing(id: DevId, holder: Option<&'static Holder>) -> Result<Arc<Self>> {
        let mode = bindings::BLK_OPEN_READ | bindings::BLK_OPEN_WRITE;
        Self::open_by(id, mode, holder)
    }

    fn open_by(
        id: DevId,
        mode: bindings::blk_mode_t,
        holder: Option<&'static Holder>,
    ) -> Result<Arc<Self>> {
        let dev = id.to_raw().ok_or(ENXIO)?;
        let holder = holder.map_or(core::ptr::null_mut(), |holder| {
            core::ptr::from_ref(holder).cast_mut().cast()
        });
        // SAFETY: Only the holder's address is used, and there are no holder operations.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(dev, mode, holder, core::ptr::null())
        })?;
        // SAFETY: An open file of a block device, of which that never changes.
        let bdev = unsafe { bindings::file_bdev(file) };
        // INVARIANT: Just opened, with a `Holder` or none.
        let this = Self {
            // SAFETY: Not an error pointer, and never null.
            file: unsafe { NonNull::new_unchecked(file) },
            // SAFETY: The inode of the file is that of a device, which it is a part of.
            bdev: unsafe { NonNull::new_unchecked(bdev) },
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// Opens the partitions of a whole disk, and gives them together with the disk itself. A
    /// partition has none.
    pub fn with_partitions(self: &Arc<Self>) -> Result<KVec<Arc<Self>>> {
        let bdev = self.bdev();
        let mut files = KVec::new();
        files.push(self.clone(), GFP_KERNEL)?;
        if bdev.is_partition() {
            return Ok(files);
        }
        for number in 1..bindings::DISK_MAX_PARTS {
            let Some(id) = bdev.partition_id(u64::from(number)) else {
                continue;
            };
            match Self::open(id) {
                // The number may have changed hands meanwhile.
                Ok(file) if file.bdev().disk_id() == bdev.disk_id() => {
                    files.push(file, GFP_KERNEL)?
                }
                _ => {}
            }
        }
        Ok(files)
    }

    /// Gives up the claim and the right to write now, not some time after the last reference was
    /// dropped. Nothing may be written from then on. May sleep.
    pub fn yield_claim(&self) {
        // SAFETY: An open file of a block device by the type invariant.
        unsafe { bindings::bdev_yield_claim(self.file.as_ptr()) };
    }

    /// The device.
    #[inline]
    pub fn bdev(&self) -> &BlockDevice {
        // SAFETY: The device is open as long as the file, and `BlockDevice` is transparent.
        unsafe { self.bdev.cast().as_ref() }
    }
}

impl Drop for BdevFile {
    fn drop(&mut self) {
        // May run in atomic context, when a bio holds the last reference: `fput()` defers the
        // work. SAFETY: We hold a reference by the type invariant.
        unsafe { bindings::fput(self.file.as_ptr()) };
    }
}
