// SPDX-License-Identifier: GPL-2.0

//! Disks whose driver takes bios rather than requests.
//!
//! A driver implements [`Operations`] and makes a [`BioDisk`] under a [`Major`] of its own. The
//! disk goes when the `BioDisk` is dropped, open or not: its users then get errors.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bdev::{
        BlockDevice,
        DevId, //
    },
    bio::OwnedBio, //
};
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt::{
        self,
        Write, //
    },
    module::this_module,
    prelude::*,
    static_lock_class,
    str::NullTerminatedFormatter,
    sync::{
        new_mutex,
        Arc,
        ArcBorrow,
        Mutex, //
    },
    sysfs::Group,
    types::ScopeGuard, //
};
use core::ptr::NonNull;

/// A disk that has a minor number.
///
/// # Invariants
///
/// Owns a reference on `disk`, of which `part0` is the whole.
struct Numbered {
    minor: u32,
    disk: NonNull<bindings::gendisk>,
    part0: *mut bindings::block_device,
    /// It is being added, or was; and not removed.
    live: bool,
}

// SAFETY: References on a disk may be given back by any thread.
unsafe impl Send for Numbered {}

impl Numbered {
    /// Whether somebody may still find it by its number: it was not removed, or is open, as it is
    /// as long as a file system on it is mounted.
    fn is_used(&self) -> bool {
        // SAFETY: We have a reference. The counter is only changed by atomic operations.
        let openers = unsafe { (&raw const (*self.part0).bd_openers.counter).read_volatile() };
        // Nobody can open a disk that was removed: it stays 0.
        self.live || openers != 0
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::put_disk(self.disk.as_ptr()) };
    }
}

/// A major number for block devices, given back when dropped. Its disks keep it.
///
/// # Invariants
///
/// `number` is registered under `name`.
#[pin_data(PinnedDrop)]
pub struct Major {
    number: c_uint,
    name: &'static CStr,
    /// The disks that have its minor numbers, in their order. Below it are only the locks that the
    /// release of a disk takes.
    #[pin]
    disks: Mutex<KVec<Numbered>>,
}

impl Major {
    /// Registers a free major number under `name`.
    pub fn register(name: &'static CStr) -> Result<Arc<Self>> {
        let name_ptr = crate::str::as_char_ptr_in_const_context(name);
        // SAFETY: The name is static; no probe function is given.
        let ret = unsafe { bindings::__register_blkdev(0, name_ptr, None) };
        to_result(ret.min(0))?;
        // INVARIANT: Just registered.
        let this = pin_init!(Self {
            // CAST: Positive, as there was no error.
            number: ret as c_uint,
            name,
            disks <- new_mutex!(KVec::new()),
        });
        Arc::pin_init(this, GFP_KERNEL).inspect_err(|_| {
            // SAFETY: Registered above, and nobody has it.
            unsafe { bindings::unregister_blkdev(ret as c_uint, name_ptr) }
        })
    }

    /// The number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Gives `disk` the lowest minor number that is free, until it was removed and the last of its
    /// users has closed it. May sleep.
    ///
    /// # Safety
    ///
    /// The caller has a reference on `disk`.
    unsafe fn give_number(&self, disk: NonNull<bindings::gendisk>) -> Result<u32> {
        let mut disks = self.disks.lock();
        disks.retain(|numbered| numbered.is_used());
        let taken = |minor: &u32| {
            disks
                .get(*minor as usize)
                .is_some_and(|n| n.minor == *minor)
        };
        // They are in order: those before the first gap are where their number says.
        // CAST: There are not as many disks.
        let count = disks.len() as u32;
        let minor = (0..count).find(|minor| !taken(minor)).unwrap_or(count);
        disks.reserve(1, GFP_KERNEL)?;
        // SAFETY: As the caller says.
        let part0 = unsafe { (*disk.as_ptr()).part0 };
        // SAFETY: It lives as long as the disk.
        unsafe { bindings::get_device(&raw mut (*part0).bd_device) };
        // INVARIANT: We have just got a reference.
        let numbered = Numbered {
            minor,
            disk,
            part0,
            live: true,
        };
        disks
            .insert_within_capacity(minor as usize, numbered)
            .map_err(|_| ENOMEM)?;
        Ok(minor)
    }

    /// The disk with that number is not there any more, for who would open it.
    fn removed(&self, disk: NonNull<bindings::gendisk>) {
        let mut disks = self.disks.lock();
        if let Some(numbered) = disks.iter_mut().find(|numbered| numbered.disk == disk) {
            numbered.live = false;
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Major {
    fn drop(self: Pin<&mut Self>) {
        let name = crate::str::as_char_ptr_in_const_context(self.name);
        // SAFETY: Registered by the type invariant.
        unsafe { bindings::unregister_blkdev(self.number, name) };
    }
}

/// What the driver of a [`BioDisk`] does.
#[vtable]
pub trait Operations: Send + Sync + Sized + 'static {
    /// Serves a bio.
    ///
    /// Called in process context. Bios submitted here are queued, so it must not wait for them.
    fn submit_bio(this: ArcBorrow<'_, Self>, bio: OwnedBio);
}

/// What a disk is to be like.
pub struct Options<'a, T: 'static> {
    /// Whose major number the disk has.
    pub major: &'a Arc<Major>,
    /// The number of sectors of 512 bytes.
    pub sectors: u64,
    /// The device whose block sizes and alignment the disk takes over, if any.
    pub like: Option<&'a BlockDevice>,
    /// The files that the disk has in sysfs beside the usual ones.
    pub group: &'a Arc<Group<T>>,
}

/// A disk that was added. Removed when dropped.
///
/// # Invariants
///
/// `disk` was added. Its `private_data` and its device's driver data are `data`, borrowed.
pub struct BioDisk<T: Operations> {
    disk: NonNull<bindings::gendisk>,
    data: Arc<T>,
    id: DevId,
    major: Arc<Major>,
    _group: Arc<Group<T>>,
}

// SAFETY: A disk may be removed from any thread.
unsafe impl<T: Operations> Send for BioDisk<T> {}
// SAFETY: A reference only gives constants to read.
unsafe impl<T: Operations> Sync for BioDisk<T> {}

impl<T: Operations> BioDisk<T> {
    /// Adds a disk, without partitions, served by `data`. It has the lowest minor number that is
    /// free, and the name that `name` writes, given that number. May sleep.
    ///
    /// Fails with `EINVAL` if the name is too long, and with an error of adding it if there is one
    /// of that name.
    pub fn new(
        name: impl FnOnce(u32, &mut dyn Write) -> fmt::Result,
        options: Options<'_, T>,
        data: Arc<T>,
    ) -> Result<Self> {
        let mut limits: bindings::queue_limits = pin_init::zeroed();
        // SAFETY: A plain data structure.
        unsafe { bindings::blk_set_stacking_limits(&mut limits) };
        if let Some(like) = options.like {
            // SAFETY: `like` is open.
            unsafe {
                bindings::queue_limits_stack_bdev(&mut limits, like.as_raw(), 0, c"".as_char_ptr())
            };
            (limits.io_min, limits.io_opt) = like.io_sizes();
            limits.logical_block_size = like.logical_block_size();
            limits.physical_block_size = like.physical_block_size();
        }
        // What a plain reader and writer needs; the rest concerns the devices below. These are not
        // all known, and one of them may compute checksums of the data that it writes: so no page
        // may change meanwhile.
        limits.features = bindings::BLK_FEAT_STABLE_WRITES;
        limits.alignment_offset = 0;
        limits.max_hw_discard_sectors = 0;
        limits.max_discard_sectors = 0;
        limits.max_secure_erase_sectors = 0;
        limits.max_write_zeroes_sectors = 0;
        limits.max_hw_wzeroes_unmap_sectors = 0;
        limits.max_wzeroes_unmap_sectors = 0;
        limits.max_hw_zone_append_sectors = 0;
        limits.chunk_sectors = 0;
        limits.integrity = pin_init::zeroed();

        // SAFETY: The limits are valid; they are copied.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_alloc_disk(
                &mut limits,
                bindings::NUMA_NO_NODE,
                static_lock_class!().as_ptr(),
            )
        })?;
        let cleanup = ScopeGuard::new_with_data(disk, |disk| {
            // SAFETY: Allocated and not added, or removed again.
            unsafe { bindings::put_disk(disk) }
        });

        // Not an error pointer, and never null.
        let ours = NonNull::new(disk).ok_or(ENOMEM)?;
        // SAFETY: We have a reference.
        let minor = unsafe { options.major.give_number(ours) }?;
        let number = ScopeGuard::new(|| options.major.removed(ours));
        // SAFETY: The disk is ours alone until it was added.
        let raw = unsafe { &mut *disk };
        raw.major = options.major.number as c_int;
        raw.first_minor = minor as c_int;
        raw.minors = 1;
        raw.flags |= bindings::GENHD_FL_NO_PART as c_int;
        raw.fops = Self::VTABLE;
        raw.private_data = Arc::as_ptr(&data).cast_mut().cast();
        let mut writer = NullTerminatedFormatter::new(&mut raw.disk_name).ok_or(EINVAL)?;
        name(minor, &mut writer).map_err(|_| EINVAL)?;
        // SAFETY: The disk is ours.
        unsafe { bindings::set_capacity(disk, options.sectors) };
        // SAFETY: The disk is ours, and nobody else uses its device's driver data.
        unsafe { bindings::dev_set_drvdata(&raw mut (*raw.part0).bd_device, raw.private_data) };
        // SAFETY: The disk is complete. The group and `data`, which its files show, are kept until
        // the disk was removed.
        to_result(unsafe {
            bindings::device_add_disk(
                core::ptr::null_mut(),
                disk,
                options.group.as_raw().cast_mut(),
            )
        })?;
        number.dismiss();
        cleanup.dismiss();
        // INVARIANT: Just added.
        Ok(Self {
            disk: ours,
            data,
            id: DevId {
                major: options.major.number,
                minor,
            },
            major: options.major.clone(),
            _group: options.group.clone(),
        })
    }

    /// The device number.
    pub fn id(&self) -> DevId {
        self.id
    }

    /// Writes the disk's name to the beginning of `out`, as much as there is room for.
    pub fn write_name(&self, out: &mut [u8]) {
        // SAFETY: The disk lives as long as we do; its name does not change after it was added.
        let name = unsafe { &(*self.disk.as_ptr()).disk_name };
        for (to, &from) in out
            .iter_mut()
            .zip(name.iter().take_while(|&&byte| byte != 0))
        {
            *to = from;
        }
    }

    /// What serves the disk.
    pub fn data(&self) -> &Arc<T> {
        &self.data
    }

    const OPERATIONS: bindings::block_device_operations = {
        let mut ops: bindings::block_device_operations = pin_init::zeroed();
        ops.submit_bio = Some(Self::submit_bio_callback);
        ops.owner = this_module::<T::OwnerModule>().as_ptr();
        ops
    };
    const VTABLE: &'static bindings::block_device_operations = &Self::OPERATIONS;

    /// # Safety
    ///
    /// Only called by the block layer, for a disk that was added by `new()`.
    unsafe extern "C" fn submit_bio_callback(bio: *mut bindings::bio) {
        // SAFETY: The bio is valid and has a device with a disk.
        let data = unsafe { (*(*(*bio).bi_bdev).bd_disk).private_data };
        // SAFETY: The pointer was taken from an `Arc` that lives until the disk was removed, which
        // waits for this call.
        let this = unsafe { ArcBorrow::from_raw(data.cast::<T>().cast_const()) };
        // SAFETY: The block layer hands the bio over.
        T::submit_bio(this, unsafe { OwnedBio::from_raw(bio) });
    }
}

impl<T: Operations> Drop for BioDisk<T> {
    fn drop(&mut self) {
        // SAFETY: Added by the type invariant. No `submit_bio` runs when this returns.
        unsafe { bindings::del_gendisk(self.disk.as_ptr()) };
        self.major.removed(self.disk);
        // SAFETY: We give up our reference. Users that have the disk open keep it, without `data`.
        unsafe { bindings::put_disk(self.disk.as_ptr()) };
    }
}
