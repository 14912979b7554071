// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a backup has to read, one range after the other.

use std::ffi::c_int;
use std::ops::Range;
use std::vec;

use crate::failure::guard;
use crate::pointer::{Out, change, read};
use crate::session::Session;
use crate::types::Point;

/// The ranges of a device that a backup has to read.
pub struct Changes {
    full: bool,
    point: Point,
    left: vec::IntoIter<Range<u64>>,
}

/// Tells what of a captured device (number `index` in the session, from 0 on) a backup has to read
/// that continues one made at the point `since`. It is all of it if `since` is NULL, or if what was
/// written since is not known: after a reboot, for example.
///
/// Does not depend on the session afterwards. To be closed with blksnap_changes_close(). One thread
/// at a time may use it.
///
/// # Safety
///
/// `session` is NULL or a session; `since` is NULL or a point; `changes` is NULL or good for
/// writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_changes_open(
    session: *const Session,
    index: usize,
    since: *const Point,
    changes: *mut *mut Changes,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let since = unsafe { since.as_ref() };
        // SAFETY: By the contract of this function.
        let changes = unsafe { Out::new(changes, "changes") }?;
        let found = session.with(|taken| {
            let device = taken.image(index)?.original;
            let since = since.map(|&point| point.into());
            Ok(taken.session.changes(device, since)?)
        })?;
        let ranges: Vec<_> = found.ranges().collect();
        changes.fill(Box::into_raw(Box::new(Changes {
            full: found.is_full(),
            point: found.info().point().into(),
            left: ranges.into_iter(),
        })));
        Ok(0)
    })
}

/// 1 if all of the device has to be read, 0 if only what has changed.
///
/// # Safety
///
/// `changes` is NULL or was opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_changes_is_full(changes: *const Changes) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let changes = unsafe { read(changes, "changes") }?;
        Ok(changes.full.into())
    })
}

/// Tells the point of the session's own snapshot: keep it with the backup once that is complete.
///
/// # Safety
///
/// `changes` is NULL or was opened; `point` is NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_changes_point(
    changes: *const Changes,
    point: *mut Point,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let changes = unsafe { read(changes, "changes") }?;
        // SAFETY: By the contract of this function.
        unsafe { Out::new(point, "point") }?.fill(changes.point);
        Ok(0)
    })
}

/// Gives the next range, in bytes: ascending, never empty, no two touch. 1 if there was one, 0 at
/// the end.
///
/// # Safety
///
/// `changes` is NULL or was opened; `offset` and `length` are NULL or good for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_changes_next(
    changes: *mut Changes,
    offset: *mut u64,
    length: *mut u64,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let changes = unsafe { change(changes, "changes") }?;
        // SAFETY: By the contract of this function.
        let offset = unsafe { Out::new(offset, "offset") }?;
        // SAFETY: By the contract of this function.
        let length = unsafe { Out::new(length, "length") }?;
        Ok(match changes.left.next() {
            Some(range) => {
                offset.fill(range.start);
                length.fill(range.end - range.start);
                1
            }
            None => 0,
        })
    })
}

/// Frees it. NULL is fine.
///
/// # Safety
///
/// `changes` is NULL or was opened, and nobody uses it now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_changes_close(changes: *mut Changes) {
    if !changes.is_null() {
        // SAFETY: By the contract of this function it was made by `blksnap_changes_open`, from a
        // box, and nobody uses it.
        drop(unsafe { Box::from_raw(changes) });
    }
}
