// SPDX-License-Identifier: MIT OR Apache-2.0

//! The devices whose changes are tracked.

use std::ffi::c_int;

use blksnap_rs::Control;
use rustix::io::Errno;

use crate::failure::{Failure, guard};
use crate::pointer::change;
use crate::types::Tracker;

/// Lists the tracked devices, in the order in which tracking began.
///
/// `count` says for how many `trackers` has room, and is set to the number that there is.
/// `trackers` may be NULL if that is all that is wanted. -ENOBUFS if there is too little room;
/// nothing is stored then.
///
/// # Safety
///
/// `trackers` is NULL or good for writing `*count` elements; `count` is NULL or good for reading
/// and writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_trackers(trackers: *mut Tracker, count: *mut usize) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let count = unsafe { change(count, "count") }?;
        let found = Control::open()?.trackers()?;
        let room = std::mem::replace(count, found.len());
        if trackers.is_null() {
            return Ok(0);
        }
        if room < found.len() {
            let text = format!(
                "there are {} tracked devices, and room for {room}",
                found.len()
            );
            return Err(Failure::new(Errno::NOBUFS, text));
        }
        for (place, info) in found.into_iter().enumerate() {
            // SAFETY: By the contract of this function there is room for `room`, which is more.
            unsafe { trackers.add(place).write(info.into()) };
        }
        Ok(0)
    })
}
