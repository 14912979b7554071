// SPDX-License-Identifier: MIT OR Apache-2.0

//! What had no meaning at the instant, told to the kernel module.

use std::ffi::c_int;

use blksnap_rs::ByteSet;

use crate::failure::{Failure, guard};
use crate::pointer::{array, read};
use crate::session::Session;
use crate::types::Range;

impl Range {
    /// As the Rust library has it.
    fn bytes(&self) -> Result<std::ops::Range<u64>, Failure> {
        let Self { offset, length } = *self;
        let end = offset.checked_add(length).ok_or_else(|| {
            Failure::invalid(format!(
                "there is no range of {length} bytes from byte {offset} on"
            ))
        })?;
        Ok(offset..end)
    }
}

/// Tells the kernel module which parts of a captured device (number `index` in the session, from
/// 0 on) had no meaning at the instant, such as the free blocks of a file system as the bitmaps
/// in its image have them. What is written there is not copied from then on, so it takes no
/// storage, and the image shows zeros there, but for what was copied before. 1 if they were told;
/// 0 if the module is too old to know that, and all is as it was. -EINVAL if a range is not
/// inside of the device.
///
/// Best right after the take. The ranges may overlap and be in any order, and there may be more
/// of them later. Only whole sectors are told, and only whole chunks of the module (4 KiB; more
/// on devices beyond 4 TiB) count. What is told wrongly is lost for the image, and cannot be
/// taken back.
///
/// # Safety
///
/// `session` is NULL or a session; `ranges` is NULL or has `count` ranges.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn blksnap_session_give_unused(
    session: *const Session,
    index: usize,
    ranges: *const Range,
    count: usize,
) -> c_int {
    guard(|| {
        // SAFETY: By the contract of this function.
        let session = unsafe { read(session, "session") }?;
        // SAFETY: By the contract of this function.
        let ranges = unsafe { array(ranges, count, "ranges") }?;
        let told = session.with(|taken| {
            let device = taken.image(index)?.original;
            let unused = ranges.iter().map(Range::bytes);
            let unused = unused.collect::<Result<ByteSet, _>>()?;
            Ok(taken.session.give_unused(device, &unused)?)
        })?;
        Ok(told.into())
    })
}
