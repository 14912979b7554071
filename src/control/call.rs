// SPDX-License-Identifier: GPL-2.0

//! Commands and their arguments: what the front ends have in common.

use kernel::{
    ioctl::{
        _IOC_DIR,
        _IOC_NR,
        _IOC_SIZE,
        _IOC_TYPE, //
    },
    prelude::*, //
};

use super::structs::{
    read_array,
    size,
    user,
    Abi,
    Field,
    Layout,
    Struct,
    RANGE, //
};
use crate::tracking::cbt::Cbt;

/// A command of a table: what it is, the direction in its word, and its argument.
pub(crate) type Entry<C> = (C, u32, Layout);

/// The command of that word in a table of those of magic number `magic` by their numbers, if the
/// whole word is right; and its argument's layout but for an event's data.
pub(crate) fn command_of_word<C: Copy>(
    table: &[Entry<C>],
    magic: u8,
    word: u32,
    abi: Abi,
) -> Option<(C, Layout)> {
    let &(command, dir, layout) = table.get(_IOC_NR(word) as usize)?;
    let right = _IOC_TYPE(word) == u32::from(magic)
        && _IOC_DIR(word) == dir
        && _IOC_SIZE(word) == size(abi, layout);
    let layout = match layout {
        [head @ .., Field::Data] => head,
        all => all,
    };
    right.then_some((command, layout))
}

/// A command with its argument.
pub(crate) struct Call {
    pub(crate) abi: Abi,
    /// Where the argument is in user space.
    pub(crate) address: usize,
    pub(crate) args: Struct,
}

impl Call {
    /// Writes `items` to the array at field `array`, of which the field before it says how many
    /// there is room for, and their number to that field. Without an array only the latter. Fails
    /// with `full` if there is too little room; then only the number is written.
    pub(crate) fn write_array(&self, array: usize, items: &[Struct], full: Error) -> Result {
        let counter = array.saturating_sub(1);
        let room = self.args.u32(counter) as usize;
        // CAST: There are less than that.
        let count = (items.len() as u32).to_ne_bytes();
        user(self.address.wrapping_add(self.args.offset(counter)), 4)
            .writer()
            .write_slice(&count)?;
        let mut address = self.args.pointer(array);
        if address == 0 {
            return Ok(());
        }
        if items.len() > room {
            return Err(full);
        }
        for item in items {
            item.write(address)?;
            address = address.wrapping_add(item.size());
        }
        Ok(())
    }

    /// Reads the array of ranges at field `array`, of which the field before it says how many
    /// there are, each as first sector and number of sectors.
    pub(crate) fn ranges(&self, array: usize) -> Result<KVVec<(u64, u64)>> {
        read_array(
            (self.abi, RANGE),
            self.args.pointer(array),
            self.args.u32(array.saturating_sub(1)),
            MAX_RANGES,
            |range| (range.u64(0), range.u64(1)),
        )
    }
}

/// The largest number of ranges in one call.
const MAX_RANGES: u32 = 1 << 20;

/// Bytes of a map that are copied at a time.
const MAP_PIECE: usize = 16 << 10;

/// Copies `length` bytes of a map from `offset` on to user space, or as many as there are. Returns
/// their number. May sleep. Fails with `EFAULT`.
pub(crate) fn copy_map(cbt: &Cbt, offset: u32, length: u32, address: usize) -> Result<u32> {
    let length = length.min(cbt.block_count().saturating_sub(offset));
    let mut piece = KVec::from_elem(0u8, MAP_PIECE.min(length as usize), GFP_KERNEL)?;
    let mut writer = user(address, length as usize).writer();
    let mut done = 0;
    while done < length {
        let want = piece.len().min((length - done) as usize);
        let piece = piece.get_mut(..want).ok_or(EINVAL)?;
        let got = cbt.read(offset + done, piece);
        writer.write_slice(piece.get(..got).ok_or(EINVAL)?)?;
        // CAST: Not more than `length`.
        done += got as u32;
    }
    Ok(done)
}

/// Writes an event: its code and time to the fields behind `code`, and the data behind them all.
/// Fails with `EFAULT`.
pub(crate) fn write_event(call: &mut Call, code: u32, time: i64, data: &Struct) -> Result {
    // What is behind the data stays as it was.
    call.args.set_u32(2, code).set(3, &time.to_ne_bytes());
    call.args.write(call.address)?;
    data.write(call.address.wrapping_add(call.args.size()))
}

/// Writes the version: major, minor, revision, build. Fails with `EFAULT`.
pub(crate) fn write_version(mut call: Call, version: [u16; 4]) -> Result {
    for (i, part) in version.iter().enumerate() {
        call.args.set(i, &part.to_ne_bytes());
    }
    call.args.write(call.address)
}
