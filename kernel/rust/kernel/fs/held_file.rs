// SPDX-License-Identifier: GPL-2.0

//! Files that the kernel holds, to use their space as it uses that of swap files.
//!
//! C header: [`include/linux/held_file.h`](srctree/include/linux/held_file.h)

use crate::{
    bindings,
    block::bdev::DevId,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    uaccess::UserPtr, //
};
use core::ptr::NonNull;

/// What a path names.
pub enum Opened {
    /// A regular file, or one without a name in a directory.
    File(NewFile),
    /// A block device.
    Device(DevId),
}

/// How the data of a held file is reached.
#[derive(Clone, Copy)]
pub enum Way {
    /// By its blocks, on this device: see [`HeldFile::extents`].
    Blocks(DevId),
    /// By reads and writes of the file, which bios are turned into.
    Content,
}

/// A pointer to a `struct held_file`, put when dropped.
///
/// # Invariants
///
/// `0` is valid and ours.
struct Raw(NonNull<bindings::held_file>);

// SAFETY: A held file may be used and put from any thread.
unsafe impl Send for Raw {}
// SAFETY: What a shared reference can do is thread-safe.
unsafe impl Sync for Raw {}

impl Raw {
    fn size(&self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::held_file_size(self.0.as_ptr()) }
    }

    fn allocate(&self, from: u64, to: u64) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { bindings::held_file_allocate(self.0.as_ptr(), from, to) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: Valid by the type invariant, and not used again.
        unsafe { bindings::held_file_put(self.0.as_ptr()) };
    }
}

/// A file that was opened and is not held yet.
pub struct NewFile(Raw);

impl NewFile {
    /// Opens what `path` names for the current task. May sleep.
    ///
    /// Fails with the errors of opening it, and with `EINVAL` if it is not a regular file, a
    /// directory or a block device.
    pub fn open(path: UserPtr) -> Result<Opened> {
        let mut dev: bindings::dev_t = 0;
        // SAFETY: Any address is allowed; `dev` is valid for writes.
        let file = from_err_ptr(unsafe {
            bindings::held_file_open(path.as_const_ptr().cast(), &mut dev)
        })?;
        Ok(match NonNull::new(file) {
            // INVARIANT: Just made for us.
            Some(file) => Opened::File(Self(Raw(file))),
            None => Opened::Device(DevId::from_raw(dev)),
        })
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Allocates all space from the first byte to `to`, which the file has at least then, as the
    /// current task may. May sleep.
    ///
    /// Fails with `EOPNOTSUPP` if the file system cannot do that, or with its error.
    pub fn allocate(&self, to: u64) -> Result {
        self.0.allocate(0, to)
    }

    /// Begins to hold the file. May sleep.
    ///
    /// Fails with `EBUSY` if the kernel holds it already, or if somebody else could write to it.
    pub fn hold(self) -> Result<Arc<HeldFile>> {
        let mut dev: bindings::dev_t = 0;
        // SAFETY: Valid by the type invariant, and not held.
        let ret = unsafe { bindings::held_file_hold(self.0 .0.as_ptr(), &mut dev) };
        to_result(ret.min(0))?;
        let way = if ret > 0 {
            Way::Blocks(DevId::from_raw(dev))
        } else {
            Way::Content
        };
        // INVARIANT: It is held in this way.
        Ok(Arc::new(HeldFile { raw: self.0, way }, GFP_KERNEL)?)
    }
}

/// A file that is held.
///
/// It is closed when the last reference is dropped, which must be where one may sleep; after that
/// its file system can be unmounted.
///
/// # Invariants
///
/// `raw` is held, in the given way.
pub struct HeldFile {
    raw: Raw,
    way: Way,
}

impl HeldFile {
    /// How the data is reached.
    pub fn way(&self) -> Way {
        self.way
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.raw.size()
    }

    /// The block device that its file system is on, if any; there may be others.
    pub fn super_device(&self) -> Option<DevId> {
        // SAFETY: Valid by the type invariant.
        match unsafe { bindings::held_file_super_dev(self.raw.0.as_ptr()) } {
            0 => None,
            dev => Some(DevId::from_raw(dev)),
        }
    }

    /// How many bytes are free on its file system; 0 if that is not known. May sleep.
    pub fn free_space(&self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { bindings::held_file_free(self.raw.0.as_ptr()) }
    }

    /// Allocates space from byte `from` to `to`. May sleep.
    ///
    /// Fails with `EAGAIN` if its file system is frozen, or with the error of that.
    pub fn allocate(&self, from: u64, to: u64) -> Result {
        self.raw.allocate(from, to)
    }

    /// Its extents on the device, each as first sector and number of sectors, in the order of the
    /// file. Those that were told before come again. May sleep; calls must not overlap with those
    /// of [`allocate`](Self::allocate).
    ///
    /// Fails with an error of the file system, or with `EOPNOTSUPP` if it is held by its content.
    pub fn extents(&self) -> Result<KVVec<(u64, u64)>> {
        let mut all = KVVec::<(u64, u64)>::new();
        if let Way::Content = self.way {
            return Err(EOPNOTSUPP);
        }
        // SAFETY: Held by its blocks; the callback gets our vector, which nobody else uses.
        to_result(unsafe {
            bindings::held_file_extents(
                self.raw.0.as_ptr(),
                Some(Self::take_extent),
                (&raw mut all).cast(),
            )
        })?;
        Ok(all)
    }

    /// # Safety
    ///
    /// `data` must be the vector of [`extents`](Self::extents).
    unsafe extern "C" fn take_extent(data: *mut c_void, sector: u64, sectors: u64) -> c_int {
        // SAFETY: As promised by the caller.
        let all = unsafe { &mut *data.cast::<KVVec<(u64, u64)>>() };
        from_result(|| {
            all.push((sector, sectors), GFP_KERNEL)?;
            Ok(0)
        })
    }

    /// Brings what was written to stable storage. May sleep.
    pub fn sync(&self) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { bindings::held_file_sync(self.raw.0.as_ptr()) })
    }

    /// The C structure. A bio that is sent to one without [`Way::Content`] gets an error.
    pub(crate) fn as_raw(&self) -> *mut bindings::held_file {
        self.raw.0.as_ptr()
    }
}
