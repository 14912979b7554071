// SPDX-License-Identifier: GPL-2.0

//! Misc devices with data of their own.
//!
//! With [`MiscDevice`] alone, only a static leads from an open file to the driver's state, and one
//! that is made when the module is loaded and dropped when it is unloaded takes unsafe code. Here
//! the registration carries data, from which that of each open file is made.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use super::{
    MiscDevice,
    MiscDeviceOptions,
    MiscDeviceRegistration, //
};
use crate::{
    fs::File,
    module::ModuleMetadata,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};
use core::marker::PhantomData;

/// The state behind a misc device.
pub trait SharedDevice: Send + Sync + Sized + 'static {
    /// The module that must stay as long as a file is open: `crate::LocalModule`.
    type OwnerModule: ModuleMetadata;

    /// What an open file has. Dropped when that is closed, in process context.
    type Open: OpenFile;

    /// Opens the device for the current task, if it may.
    fn open(&self, file: &File) -> Result<Arc<Self::Open>>;
}

/// The state of an open file of a misc device.
pub trait OpenFile: Send + Sync + Sized + 'static {
    /// Handles an ioctl; `compat` says that it is of a 32-bit program on a 64-bit kernel. Any
    /// number of them run at the same time, on one file too.
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize, compat: bool) -> Result<isize>;
}

/// What makes a [`SharedDevice`] a [`MiscDevice`]. Private, so that each registration of it is
/// the first field of a [`SharedRegistration`].
struct Wrapper<T>(PhantomData<T>);

#[vtable]
impl<T: SharedDevice> MiscDevice for Wrapper<T> {
    type OwnerModule = T::OwnerModule;
    type Ptr = Arc<T::Open>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Arc<T::Open>> {
        // SAFETY: `misc` is the first field of a `SharedRegistration<T>`, which is `repr(C)`: only
        // this module can name `Wrapper`.
        let this = unsafe { &*core::ptr::from_ref(misc).cast::<SharedRegistration<T>>() };
        this.data.open(file)
    }

    fn ioctl(open: ArcBorrow<'_, T::Open>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        T::Open::ioctl(open, cmd, arg, false)
    }

    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        open: ArcBorrow<'_, T::Open>,
        _file: &File,
        cmd: u32,
        arg: usize,
    ) -> Result<isize> {
        T::Open::ioctl(open, cmd, arg, true)
    }
}

/// A registered misc device whose open files are made by `data`.
#[pin_data]
#[repr(C)]
pub struct SharedRegistration<T: SharedDevice> {
    #[pin]
    misc: MiscDeviceRegistration<Wrapper<T>>,
    data: T,
}

impl<T: SharedDevice> SharedRegistration<T> {
    /// Registers a misc device. Files can be opened as soon as, and before, this returns.
    pub fn register(options: MiscDeviceOptions, data: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // Before `misc`, whose `open` uses it.
            data,
            misc <- MiscDeviceRegistration::register(options),
        })
    }
}
