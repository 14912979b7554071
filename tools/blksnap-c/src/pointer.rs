// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pointers from C: NULL is an error that names the argument; what else there is to know about
//! them, only the caller does.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;

use crate::failure::Failure;

fn null(name: &str) -> Failure {
    Failure::invalid(format!("{name} is NULL"))
}

/// Something that the caller has.
///
/// # Safety
///
/// The pointer is NULL or good for reading a `T` that nobody changes during `'a`.
pub unsafe fn read<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: By the contract of this function.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// An array that the caller has; it may be NULL if nothing is in it.
///
/// # Safety
///
/// The pointer is NULL or to `count` of `T` that nobody changes during `'a`.
pub unsafe fn array<'a, T>(
    pointer: *const T,
    count: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    match count {
        0 => Ok(&[]),
        _ if pointer.is_null() => Err(null(name)),
        // More than there can be in memory was not meant.
        _ if count > isize::MAX as usize / size_of::<T>().max(1) => Err(Failure::invalid(format!(
            "{name} cannot have {count} elements"
        ))),
        // SAFETY: By the contract of this function, and it is not NULL, nor too long.
        _ => Ok(unsafe { std::slice::from_raw_parts(pointer, count) }),
    }
}

/// Something of the caller's that is changed.
///
/// # Safety
///
/// The pointer is NULL or good for a `T` that nobody else uses during `'a`.
pub unsafe fn change<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: By the contract of this function.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// Where a result goes: checked before the work is done, filled after it. What was there is not
/// looked at.
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    ///
    /// The pointer is NULL or good for writing a `T` as long as the result lives.
    pub unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        if pointer.is_null() {
            return Err(null(name));
        }
        Ok(Self(pointer))
    }

    pub fn fill(self, value: T) {
        // SAFETY: By the contract of `new`, and it is not NULL.
        unsafe { self.0.write(value) }
    }
}

/// A string that names a file or a device.
///
/// # Safety
///
/// The pointer is NULL or to a string that nobody changes during `'a`.
pub unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a OsStr, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: By the contract of this function, and it is not NULL.
    let text = unsafe { CStr::from_ptr(pointer) };
    if text.is_empty() {
        return Err(Failure::invalid(format!("{name} is empty")));
    }
    Ok(OsStr::from_bytes(text.to_bytes()))
}
