// SPDX-License-Identifier: GPL-2.0

//! Filters that user space attaches and controls by name.
//!
//! What implements [`FilterType`] gets the ioctls of `<uapi/linux/blk-filter.h>` that clients make
//! on block devices, from its [`Registration`] on. How bios are filtered is another matter, see
//! [`filter`](super::filter).
//!
//! C header: [`include/linux/blk-filter.h`](srctree/include/linux/blk-filter.h)

use super::bdev::BlockDevice;
use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::Opaque, //
};

/// A command to a filter.
#[derive(Clone, Copy)]
pub struct Control {
    /// What to do, by number.
    pub command: u32,
    /// The address of its structure in user space.
    pub address: usize,
    /// How many bytes the client says that it has.
    pub length: u32,
    /// It is laid out as 32-bit programs do on this 64-bit kernel.
    pub compat: bool,
}

/// What serves the clients.
///
/// Calls come in the client's context, with no locks, for a device that the client has open, and
/// that may be going. Any number of them run at the same time. The client has `CAP_SYS_ADMIN`.
pub trait FilterType: Send + Sync + 'static {
    /// The name: of the type, and of its filters.
    const NAME: &'static CStr;

    /// Attaches a filter to a device.
    fn attach(this: ArcBorrow<'_, Self>, bdev: &BlockDevice) -> Result;

    /// Detaches the filter from a device.
    fn detach(this: ArcBorrow<'_, Self>, bdev: &BlockDevice) -> Result;

    /// A command to the filter of a device, which had one attached just before.
    fn control(this: ArcBorrow<'_, Self>, bdev: &BlockDevice, control: Control) -> Result;
}

/// A type that user space can name. Dropping it waits for calls.
///
/// # Invariants
///
/// `ty` is registered, with the callbacks of `T`.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Registration<T: FilterType> {
    /// First, so that a pointer to it is one to the whole.
    #[pin]
    ty: Opaque<bindings::blk_filter_type>,
    data: Arc<T>,
}

// SAFETY: A type may be unregistered from any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: FilterType> Send for Registration<T> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: FilterType> Sync for Registration<T> {}

impl<T: FilterType> Registration<T> {
    /// Registers a type. Calls may come before this returns. May sleep.
    ///
    /// Fails with `EEXIST` if there is one of that name.
    pub fn new(data: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            data,
            // After `data`, which the callbacks use.
            ty <- Opaque::try_ffi_init(|slot: *mut bindings::blk_filter_type| {
                let ty = bindings::blk_filter_type {
                    name: crate::str::as_char_ptr_in_const_context(T::NAME),
                    attach: Some(Self::attach),
                    detach: Some(Self::detach),
                    ctl: Some(Self::control),
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(ty) };
                // SAFETY: Complete, and pinned until it was unregistered.
                to_result(unsafe { bindings::blk_filter_register(slot) })
            }),
        }? Error)
    }

    /// # Safety
    ///
    /// `ty` must be the field of a registration, which stays registered during `'a`; and `bdev` a
    /// device that is open so long.
    unsafe fn parts<'a>(
        ty: *mut bindings::blk_filter_type,
        bdev: *mut bindings::block_device,
    ) -> (ArcBorrow<'a, T>, &'a BlockDevice) {
        // SAFETY: `ty` is the first field of a `Registration<T>`, which is `repr(C)`.
        let this = unsafe { &*ty.cast::<Self>() };
        // SAFETY: As promised by the caller; `BlockDevice` is transparent.
        let bdev = unsafe { &*bdev.cast() };
        (this.data.as_arc_borrow(), bdev)
    }

    /// # Safety
    ///
    /// Only called by the block layer, with a type that was registered by `new()`, for a device
    /// that the caller of the ioctl has open.
    unsafe extern "C" fn attach(
        ty: *mut bindings::blk_filter_type,
        bdev: *mut bindings::block_device,
        _opt: u64,
        _len: u32,
    ) -> c_int {
        // SAFETY: The unregistration waits for this call, and the client has the device open.
        let (this, bdev) = unsafe { Self::parts(ty, bdev) };
        from_result(|| T::attach(this, bdev).map(|()| 0))
    }

    /// # Safety
    ///
    /// As for [`attach`](Self::attach).
    unsafe extern "C" fn detach(
        ty: *mut bindings::blk_filter_type,
        bdev: *mut bindings::block_device,
    ) -> c_int {
        // SAFETY: The unregistration waits for this call, and the client has the device open.
        let (this, bdev) = unsafe { Self::parts(ty, bdev) };
        from_result(|| T::detach(this, bdev).map(|()| 0))
    }

    /// # Safety
    ///
    /// As for [`attach`](Self::attach).
    unsafe extern "C" fn control(
        ty: *mut bindings::blk_filter_type,
        bdev: *mut bindings::block_device,
        command: u32,
        opt: u64,
        length: u32,
        compat: bool,
    ) -> c_int {
        // SAFETY: The unregistration waits for this call, and the client has the device open.
        let (this, bdev) = unsafe { Self::parts(ty, bdev) };
        let Ok(address) = usize::try_from(opt) else {
            return EFAULT.to_errno();
        };
        let control = Control {
            command,
            address,
            length,
            compat,
        };
        from_result(|| T::control(this, bdev, control).map(|()| 0))
    }
}

#[pinned_drop]
impl<T: FilterType> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant.
        unsafe { bindings::blk_filter_unregister(self.ty.get()) };
    }
}
