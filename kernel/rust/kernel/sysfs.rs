// SPDX-License-Identifier: GPL-2.0

//! Attributes: files in sysfs, each of which shows one value that a driver knows about a device.
//!
//! A driver lists the [`Attribute`]s of a type in a static, makes a [`Group`] of them, and hands
//! that to whatever makes the device: see [`ClassDevice`](crate::device::class::ClassDevice) and
//! [`BioDisk`](crate::block::bio_disk::BioDisk).
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use crate::{
    bindings,
    container_of,
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter,
    sync::Arc, //
};
use core::{
    fmt::Write,
    marker::PhantomData,
    ptr, //
};

/// What an attribute writes its value to.
pub type Output<'a> = Formatter<'a>;

/// Fills a page with what `show` writes and a line feed. Returns what a `show` callback returns.
///
/// # Safety
///
/// `page` must be valid for writes of [`PAGE_SIZE`] bytes.
pub(crate) unsafe fn show_page(
    page: *mut u8,
    show: impl FnOnce(&mut Output<'_>) -> Result,
) -> isize {
    // SAFETY: The page is valid for writes by the requirements of this function.
    let mut out = unsafe { Formatter::from_buffer(page, PAGE_SIZE) };
    let result = show(&mut out).and_then(|()| Ok(out.write_char('\n')?));
    match result {
        // CAST: At most a page.
        Ok(()) => out.bytes_written() as isize,
        Err(err) => err.to_errno() as isize,
    }
}

/// The part of an attribute that all kinds have.
pub(crate) fn attribute(name: &'static CStr, mode: u16) -> bindings::attribute {
    let mut attribute: bindings::attribute = pin_init::zeroed();
    attribute.name = crate::str::as_char_ptr_in_const_context(name);
    attribute.mode = mode;
    // The attribute is allocated, but lockdep wants a static key.
    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
    {
        attribute.key = crate::static_lock_class!().as_ptr();
    }
    attribute
}

/// A file that shows something of a `T`.
pub struct Attribute<T> {
    name: &'static CStr,
    show: fn(&T, &mut Output<'_>) -> Result,
}

impl<T> Attribute<T> {
    /// A file that all may read. `show` writes the value, without a line feed; it may sleep.
    pub const fn new(name: &'static CStr, show: fn(&T, &mut Output<'_>) -> Result) -> Self {
        Self { name, show }
    }
}

/// A file that shows bytes of a `T`.
pub struct BinaryAttribute<T> {
    name: &'static CStr,
    read: fn(&T, u64, &mut [u8]) -> Result<usize>,
}

impl<T> BinaryAttribute<T> {
    /// A file that only root may read. `read` gets the offset and a slice; it fills as much of the
    /// slice as it can and returns the number of bytes, 0 at the end. It may sleep.
    pub const fn new(name: &'static CStr, read: fn(&T, u64, &mut [u8]) -> Result<usize>) -> Self {
        Self { name, read }
    }
}

/// An [`Attribute`] as C sees it.
#[repr(C)]
struct RawAttribute<T> {
    raw: bindings::device_attribute,
    show: fn(&T, &mut Output<'_>) -> Result,
}

impl<T> RawAttribute<T> {
    fn new(attribute: &Attribute<T>) -> Self {
        let mut raw: bindings::device_attribute = pin_init::zeroed();
        raw.attr = self::attribute(attribute.name, 0o444);
        raw.__bindgen_anon_1.show = Some(Self::show_callback);
        Self {
            raw,
            show: attribute.show,
        }
    }

    /// # Safety
    ///
    /// Only called by sysfs, for a device whose driver data is a `T` and for an attribute of a
    /// `Group<T>`, with a page to write to.
    unsafe extern "C" fn show_callback(
        dev: *mut bindings::device,
        attr: *mut bindings::device_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: By the requirements of `Group::as_raw()`.
        let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<T>() };
        // SAFETY: `attr` is the first field of a `RawAttribute<T>`, which is `repr(C)`.
        let this = unsafe { &*attr.cast::<Self>() };
        // SAFETY: sysfs gives a page.
        unsafe { show_page(buf.cast(), |out| (this.show)(data, out)) }
    }
}

/// A [`BinaryAttribute`] as C sees it.
#[repr(C)]
struct RawBinaryAttribute<T> {
    raw: bindings::bin_attribute,
    read: fn(&T, u64, &mut [u8]) -> Result<usize>,
}

impl<T> RawBinaryAttribute<T> {
    fn new(attribute: &BinaryAttribute<T>) -> Self {
        Self {
            raw: bindings::bin_attribute {
                attr: self::attribute(attribute.name, 0o400),
                read: Some(Self::read_callback),
                ..pin_init::zeroed()
            },
            read: attribute.read,
        }
    }

    /// # Safety
    ///
    /// Only called by sysfs, for a device whose driver data is a `T` and for an attribute of a
    /// `Group<T>`, with a buffer of `count` bytes to write to.
    unsafe extern "C" fn read_callback(
        _file: *mut bindings::file,
        kobj: *mut bindings::kobject,
        attr: *const bindings::bin_attribute,
        buf: *mut c_char,
        offset: bindings::loff_t,
        count: usize,
    ) -> isize {
        // SAFETY: The kobject is that of a device.
        let dev = unsafe { container_of!(kobj, bindings::device, kobj) };
        // SAFETY: By the requirements of `Group::as_raw()`.
        let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<T>() };
        // SAFETY: `attr` is the first field of a `RawBinaryAttribute<T>`, which is `repr(C)`.
        let this = unsafe { &*attr.cast::<Self>() };
        let Ok(offset) = u64::try_from(offset) else {
            return EINVAL.to_errno() as isize;
        };
        // SAFETY: sysfs gives `count` bytes, which may not be initialised yet.
        unsafe { ptr::write_bytes(buf, 0, count) };
        // SAFETY: They are now, and ours until we return.
        let out = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), count) };
        match (this.read)(data, offset, out) {
            // CAST: A slice is never longer.
            Ok(len) => len.min(count) as isize,
            Err(err) => err.to_errno() as isize,
        }
    }
}

/// The files of a directory, ready for C. Devices share one.
///
/// # Invariants
///
/// `groups` is a list, ended by null, of one pointer to `group`. That points to lists, ended by
/// null, of pointers to the elements of `attributes` and `binary`. None of them changes or moves.
pub struct Group<T: 'static> {
    attributes: KVec<RawAttribute<T>>,
    binary: KVec<RawBinaryAttribute<T>>,
    attribute_list: KVec<*mut bindings::attribute>,
    binary_list: KVec<*const bindings::bin_attribute>,
    group: KBox<bindings::attribute_group>,
    groups: [*const bindings::attribute_group; 2],
    _p: PhantomData<fn(&T)>,
}

// SAFETY: Nothing in it changes, and what it points to belongs to it.
unsafe impl<T> Send for Group<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Group<T> {}

impl<T: Send + Sync> Group<T> {
    /// Makes a group of these files, in a directory of the given name or, without one, in the
    /// device's own. May sleep.
    pub fn new(
        directory: Option<&'static CStr>,
        attributes: &'static [Attribute<T>],
        binary: &'static [BinaryAttribute<T>],
    ) -> Result<Arc<Self>> {
        let mut group: bindings::attribute_group = pin_init::zeroed();
        group.name = directory.map_or(ptr::null(), crate::str::as_char_ptr_in_const_context);
        let mut this = Self {
            attributes: KVec::with_capacity(attributes.len(), GFP_KERNEL)?,
            binary: KVec::with_capacity(binary.len(), GFP_KERNEL)?,
            attribute_list: KVec::with_capacity(attributes.len() + 1, GFP_KERNEL)?,
            binary_list: KVec::with_capacity(binary.len() + 1, GFP_KERNEL)?,
            group: KBox::new(group, GFP_KERNEL)?,
            groups: [ptr::null(); 2],
            _p: PhantomData,
        };
        for attribute in attributes {
            this.attributes
                .push(RawAttribute::new(attribute), GFP_KERNEL)?;
        }
        for attribute in binary {
            this.binary
                .push(RawBinaryAttribute::new(attribute), GFP_KERNEL)?;
        }
        // INVARIANT: From here on nothing moves: the vectors' elements and the box are in memory
        // of their own, and `groups` is only lent once `this` is in its `Arc`.
        for raw in &mut this.attributes {
            this.attribute_list
                .push(&raw mut raw.raw.attr, GFP_KERNEL)?;
        }
        this.attribute_list.push(ptr::null_mut(), GFP_KERNEL)?;
        for raw in &this.binary {
            this.binary_list.push(&raw const raw.raw, GFP_KERNEL)?;
        }
        this.binary_list.push(ptr::null(), GFP_KERNEL)?;
        this.group.__bindgen_anon_2.attrs = this.attribute_list.as_mut_ptr();
        this.group.bin_attrs = this.binary_list.as_ptr();
        this.groups[0] = &raw const *this.group;
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// The list of groups for C.
    ///
    /// The driver data of a device that has these files must be a pointer to a `T`, and the `T`
    /// and the group must live, from before the files are there until they were removed.
    pub(crate) fn as_raw(&self) -> *const *const bindings::attribute_group {
        self.groups.as_ptr()
    }
}
