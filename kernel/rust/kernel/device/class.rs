// SPDX-License-Identifier: GPL-2.0

//! Classes, and devices in them that stand for things which only a driver knows.
//!
//! A [`Class`] is a directory in `/sys/class`; a [`ClassDevice`] is a directory in it, with the
//! files of a [`Group`], that can [send uevents](ClassDevice::changed) and
//! [wake those who poll a file](ClassDevice::notify).
//!
//! C header: [`include/linux/device/class.h`](srctree/include/linux/device/class.h)

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    prelude::*,
    str::CString,
    sync::Arc,
    sysfs::{
        self,
        Group,
        Output, //
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// A class, with a file `name` in its directory that shows something of a `T`.
///
/// # Invariants
///
/// `class` was created by `class_create()`, and `attribute` was added to it; it does not move.
#[repr(C)]
pub struct Class<T> {
    /// First, so that a pointer to it is one to the whole.
    attribute: bindings::class_attribute,
    class: NonNull<bindings::class>,
    data: T,
    show: fn(&T, &mut Output<'_>) -> Result,
}

// SAFETY: The class may be used and destroyed from any thread.
unsafe impl<T: Send> Send for Class<T> {}
// SAFETY: The C functions are thread-safe; `T` is shared with those who read the file.
unsafe impl<T: Sync> Sync for Class<T> {}

impl<T: Send + Sync + 'static> Class<T> {
    /// Creates a class with a file that all may read. `show` writes its value, without a line
    /// feed; it may sleep.
    pub fn new(
        name: &'static CStr,
        file: &'static CStr,
        data: T,
        show: fn(&T, &mut Output<'_>) -> Result,
    ) -> Result<Arc<Self>> {
        let mut attribute: bindings::class_attribute = pin_init::zeroed();
        attribute.attr = sysfs::attribute(file, 0o444);
        attribute.show = Some(Self::show_callback);
        let name = crate::str::as_char_ptr_in_const_context(name);
        // SAFETY: The name is static.
        let class = from_err_ptr(unsafe { bindings::class_create(name) })?;
        // INVARIANT: The class was created, and is destroyed by `drop()` if what follows fails.
        let this = Arc::new(
            Self {
                attribute,
                // SAFETY: Not an error pointer, and never null.
                class: unsafe { NonNull::new_unchecked(class) },
                data,
                show,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The class is valid. The attribute does not move, being in an `Arc`, and lives
        // until the class was destroyed.
        to_result(unsafe { bindings::class_create_file_ns(class, &this.attribute, ptr::null()) })?;
        Ok(this)
    }

    /// # Safety
    ///
    /// Only called by sysfs, for the attribute of a `Class<T>`, with a page to write to.
    unsafe extern "C" fn show_callback(
        _class: *const bindings::class,
        attr: *const bindings::class_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: The attribute is the first field of a `Class<T>`, which is `repr(C)`.
        let this = unsafe { &*attr.cast::<Self>() };
        // SAFETY: sysfs gives a page.
        unsafe { sysfs::show_page(buf.cast(), |out| (this.show)(&this.data, out)) }
    }
}

impl<T> Drop for Class<T> {
    fn drop(&mut self) {
        // SAFETY: Created by `class_create()`. Its files are removed: nobody reads them when this
        // returns. Its devices are gone, as each holds a reference.
        unsafe { bindings::class_destroy(self.class.as_ptr()) };
    }
}

/// A device of a class, with files that show something of a `T`. Removed when dropped.
///
/// Dropping it waits for those who are reading its files, so no lock that they take may be held.
///
/// # Invariants
///
/// `device` is registered, and its driver data is a pointer to `data`.
pub struct ClassDevice<T: 'static, C> {
    device: NonNull<bindings::device>,
    data: Arc<T>,
    _group: Arc<Group<T>>,
    _class: Arc<Class<C>>,
}

// SAFETY: A device may be used and removed from any thread.
unsafe impl<T: Send + Sync, C: Send + Sync> Send for ClassDevice<T, C> {}
// SAFETY: The C functions are thread-safe.
unsafe impl<T: Send + Sync, C: Send + Sync> Sync for ClassDevice<T, C> {}

impl<T: Send + Sync, C: Send + Sync> ClassDevice<T, C> {
    /// Adds a device. Its name must be a new one in the class. May sleep.
    pub fn new(
        class: &Arc<Class<C>>,
        name: fmt::Arguments<'_>,
        group: &Arc<Group<T>>,
        data: Arc<T>,
    ) -> Result<Self> {
        let name = CString::try_from_fmt(name)?;
        // SAFETY: The class is valid; the group and the data are kept until the device was
        // removed; the format takes one string, which is copied.
        let device = from_err_ptr(unsafe {
            bindings::device_create_with_groups(
                class.class.as_ptr(),
                ptr::null_mut(),
                0,
                Arc::as_ptr(&data).cast_mut().cast(),
                group.as_raw().cast_mut(),
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        // INVARIANT: Just registered.
        Ok(Self {
            // SAFETY: Not an error pointer, and never null.
            device: unsafe { NonNull::new_unchecked(device) },
            data,
            _group: group.clone(),
            _class: class.clone(),
        })
    }

    /// What the files show.
    pub fn data(&self) -> &Arc<T> {
        &self.data
    }

    fn kobject(&self) -> *mut bindings::kobject {
        // SAFETY: The device is valid by the type invariant.
        unsafe { &raw mut (*self.device.as_ptr()).kobj }
    }

    /// Tells those who poll the file `name` that it shows something new. May sleep.
    pub fn notify(&self, name: &'static CStr) {
        let name = crate::str::as_char_ptr_in_const_context(name);
        // SAFETY: The device is registered by the type invariant.
        unsafe { bindings::sysfs_notify(self.kobject(), ptr::null(), name) };
    }

    /// Sends the uevent "change" with one variable more, `KEY=value`. May sleep.
    pub fn changed(&self, variable: &'static CStr) -> Result {
        let variable = crate::str::as_char_ptr_in_const_context(variable);
        let mut list = [variable.cast_mut(), ptr::null_mut()];
        // SAFETY: The device is registered by the type invariant. The list ends with null; the
        // strings in it are copied.
        to_result(unsafe {
            bindings::kobject_uevent_env(
                self.kobject(),
                bindings::kobject_action_KOBJ_CHANGE,
                list.as_mut_ptr(),
            )
        })
    }
}

impl<T, C> Drop for ClassDevice<T, C> {
    fn drop(&mut self) {
        // SAFETY: Registered by the type invariant. When this returns its files are removed, and
        // nobody reads them.
        unsafe { bindings::device_unregister(self.device.as_ptr()) };
    }
}
