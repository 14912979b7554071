// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the commands of both control interfaces have in common.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::ptr;

use rustix::io::Errno;

use crate::error::{Command, Error, Result};
use crate::id::{DevId, SnapshotId};
use crate::sys;
use crate::units::SectorRange;

/// Ranges in a call, at the most.
const MOST_RANGES: usize = 1 << 20;

/// Opens a control device.
pub(crate) fn open_control(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| Error::Open {
        path: path.to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })
}

/// Tells a control device that is not there from one that cannot be opened.
pub(crate) fn if_there<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(Error::Open {
            errno: Errno::NOENT,
            ..
        }) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Binds the snapshots that are made by a control device from now on to it. `false` if the module
/// does not know that.
pub(crate) fn bind(file: &File) -> Result<bool> {
    // SAFETY: The number has no argument.
    match unsafe { sys::call(file, sys::BIND, &mut ()) } {
        Ok(_) => Ok(true),
        Err(Errno::NOTTY) => Ok(false),
        Err(errno) => Err(failed(Command::Bind, "", errno)),
    }
}

/// Tells a snapshot what of a device was not used at the instant. `false` if the module does not know
/// that.
pub(crate) fn give_unused(
    file: &File,
    id: SnapshotId,
    device: DevId,
    ranges: &[SectorRange],
) -> Result<bool> {
    for ranges in ranges.chunks(MOST_RANGES) {
        let ranges = raw_ranges(ranges);
        let mut raw = sys::Unused {
            id: id.to_raw(),
            dev_id: device.into(),
            flags: 0,
            count: count_of(&ranges),
            ranges: ranges.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: The number is that of this structure, whose pointer is good for `count` ranges.
        match unsafe { sys::call(file, sys::UNUSED, &mut raw) } {
            Ok(_) => {}
            Err(Errno::NOTTY) => return Ok(false),
            Err(errno) => {
                let subject = format!("{id} of {}", device.describe());
                return Err(failed(Command::SnapshotUnused, subject, errno));
            }
        }
    }
    Ok(true)
}

/// The error of a command.
pub(crate) fn failed(command: Command, subject: impl fmt::Display, errno: Errno) -> Error {
    Error::Command {
        command,
        subject: subject.to_string(),
        errno,
    }
}

/// The number of elements as the interface has it. More than it can say is refused by the module
/// all the same.
pub(crate) fn count_of<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

/// The ranges as the interface has them.
pub(crate) fn raw_ranges(ranges: &[SectorRange]) -> Vec<sys::BlockRange> {
    ranges
        .iter()
        .map(|range| sys::BlockRange {
            sector_offset: range.start.0,
            sector_count: range.count.0,
        })
        .collect()
}

/// Asks for the number of elements, then for the elements, and again while there are more than
/// there was room for.
///
/// `ask` gets the room and the array, and gives the number; or the error and the number needed.
pub(crate) fn collect<T: Copy + Default>(
    too_small: Errno,
    mut ask: impl FnMut(u32, *mut T) -> Result<u32, (Errno, u32)>,
) -> Result<Vec<T>, Errno> {
    let mut room = ask(0, ptr::null_mut()).map_err(|(errno, _)| errno)?;
    loop {
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut array = vec![T::default(); room as usize];
        match ask(room, array.as_mut_ptr()) {
            Ok(count) => {
                array.truncate(count as usize);
                return Ok(array);
            }
            Err((errno, needed)) if errno == too_small && needed > room => room = needed,
            Err((errno, _)) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collecting_asks_again_when_there_are_more() {
        let mut real = vec![1u64, 2];
        let found = collect(Errno::NOBUFS, |room, array: *mut u64| {
            let count = real.len() as u32;
            if array.is_null() {
                real.push(3);
                return Ok(count);
            }
            if room < count {
                return Err((Errno::NOBUFS, count));
            }
            // SAFETY: `collect` gives room for `room` elements, and these are no more.
            unsafe { ptr::copy_nonoverlapping(real.as_ptr(), array, real.len()) };
            Ok(count)
        });
        assert_eq!(found, Ok(vec![1, 2, 3]));
    }
}
