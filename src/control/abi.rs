// SPDX-License-Identifier: GPL-2.0

//! The commands and structures of `include/uapi/linux/blk_snap.h`, as bytes.
//!
//! Structures are read into and written from arrays of bytes: so each bit pattern is valid,
//! nothing is left uninitialised, and padding is zero. Where a field lies is written down nowhere:
//! it follows from the fields before it and from the program's [`Abi`], as it does in C, because
//! 32-bit programs lay out the same fields in another way.

use kernel::{
    block::bdev::DevId,
    ioctl::{
        _IOC_DIR,
        _IOC_NR,
        _IOC_SIZE,
        _IOC_TYPE, //
    },
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi,
    uuid::Uuid, //
};

/// How a program lays out structures.
#[derive(Clone, Copy)]
pub(crate) struct Abi {
    /// The size, and alignment, of pointers.
    pointer: usize,
    /// The alignment of 64-bit integers.
    align: usize,
}

impl Abi {
    /// As the kernel does.
    pub(crate) const NATIVE: Self = Self {
        pointer: size_of::<usize>(),
        align: align_of::<u64>(),
    };

    /// As 32-bit programs do on this 64-bit kernel.
    #[cfg(CONFIG_COMPAT)]
    pub(crate) const COMPAT: Self = Self {
        pointer: 4,
        align: if cfg!(CONFIG_COMPAT_FOR_U64_ALIGNMENT) {
            4
        } else {
            8
        },
    };
}

/// The kinds of fields.
#[derive(Clone, Copy)]
pub(crate) enum Field {
    /// `__u8`
    Byte,
    /// `__u16`
    Short,
    /// `__u32`
    Int,
    /// `__u64`
    Long,
    /// A pointer.
    Pointer,
    /// `struct blk_snap_dev_t`
    Device,
    /// `struct blk_snap_uuid`
    Uuid,
    /// The data of an event, which has structures of its own.
    Data,
}

impl Field {
    /// The size and the alignment in bytes.
    const fn size(self, abi: Abi) -> (usize, usize) {
        match self {
            Self::Byte => (1, 1),
            Self::Short => (2, 2),
            Self::Int => (4, 4),
            Self::Long => (8, abi.align),
            Self::Pointer => (abi.pointer, abi.pointer),
            Self::Device => (8, 4),
            Self::Uuid => (16, 1),
            Self::Data => (4064, 1),
        }
    }
}

/// The fields of a structure, in order.
pub(crate) type Layout = &'static [Field];

/// Where the field of that number begins; with the number of fields, the structure's size.
fn offset(abi: Abi, layout: Layout, number: usize) -> usize {
    let mut end = 0usize;
    let mut largest = 1;
    for (i, field) in layout.iter().enumerate() {
        let (size, align) = field.size(abi);
        largest = largest.max(align);
        let start = align_up(end, align);
        if i == number {
            return start;
        }
        end = start + size;
    }
    align_up(end, largest)
}

/// `offset` or the next higher multiple of `align`, a power of two.
fn align_up(offset: usize, align: usize) -> usize {
    offset.wrapping_add(align - 1) & !(align - 1)
}

/// The size of a structure in bytes.
fn size(abi: Abi, layout: Layout) -> usize {
    offset(abi, layout, layout.len())
}

/// Structures that are not the argument of a command.
pub(crate) mod layout {
    use super::{
        Field::*,
        Layout, //
    };

    /// `struct blk_snap_dev_t`
    pub(crate) const DEVICE: Layout = &[Device];
    /// `struct blk_snap_uuid`
    pub(crate) const UUID: Layout = &[Uuid];
    /// `struct blk_snap_cbt_info`
    pub(crate) const CBT_INFO: Layout = &[Device, Int, Long, Int, Uuid, Byte];
    /// `struct blk_snap_block_range`
    pub(crate) const RANGE: Layout = &[Long, Long];
    /// `struct blk_snap_image_info`
    pub(crate) const IMAGE_INFO: Layout = &[Device, Device];
    /// `struct blk_snap_event_low_free_space`
    pub(crate) const LOW_FREE_SPACE: Layout = &[Long];
    /// `struct blk_snap_event_corrupted`
    pub(crate) const CORRUPTED: Layout = &[Device, Int];
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Command {
    Version,
    TrackerRemove,
    TrackerCollect,
    TrackerReadCbtMap,
    TrackerMarkDirtyBlocks,
    SnapshotCreate,
    SnapshotDestroy,
    SnapshotAppendStorage,
    SnapshotTake,
    SnapshotCollect,
    SnapshotCollectImages,
    SnapshotWaitEvent,
}

/// The magic number of all commands.
const MAGIC: u32 = b'V' as u32;

/// By number: the commands, the direction in their words, and their argument. The directions are
/// the reverse of what they should be, for ever.
const COMMANDS: [(Command, u32, Layout); 12] = {
    use Command::*;
    use Field::*;
    const R: u32 = uapi::_IOC_READ;
    const W: u32 = uapi::_IOC_WRITE;
    [
        (Version, W, &[Short, Short, Short, Short]),
        (TrackerRemove, W, &[Device]),
        (TrackerCollect, W, &[Int, Pointer]),
        (TrackerReadCbtMap, R, &[Device, Int, Int, Pointer]),
        (TrackerMarkDirtyBlocks, R, &[Device, Int, Pointer]),
        (SnapshotCreate, W, &[Int, Pointer, Uuid]),
        (SnapshotDestroy, R, &[Uuid]),
        (SnapshotAppendStorage, W, &[Uuid, Device, Int, Pointer]),
        (SnapshotTake, R, &[Uuid]),
        (SnapshotCollect, W, &[Int, Pointer]),
        (SnapshotCollectImages, W, &[Uuid, Int, Pointer]),
        (SnapshotWaitEvent, W, &[Uuid, Int, Int, Long, Data]),
    ]
};

impl Command {
    /// The command of that word, if the whole word is right, and its argument's layout but for
    /// an event's data.
    pub(crate) fn from_word(word: u32, abi: Abi) -> Option<(Self, Layout)> {
        let &(command, dir, layout) = COMMANDS.get(_IOC_NR(word) as usize)?;
        let right = _IOC_TYPE(word) == MAGIC
            && _IOC_DIR(word) == dir
            && _IOC_SIZE(word) == size(abi, layout);
        let layout = match layout {
            [head @ .., Field::Data] => head,
            all => all,
        };
        right.then_some((command, layout))
    }
}

/// The size of the largest structure that is handled as a whole.
const MAX: usize = 48;

/// A structure in user space, and our copy of it.
#[derive(Clone, Copy)]
pub(crate) struct Struct {
    abi: Abi,
    layout: Layout,
    bytes: [u8; MAX],
}

impl Struct {
    /// All zeroes.
    pub(crate) const fn new(abi: Abi, layout: Layout) -> Self {
        Self {
            abi,
            layout,
            bytes: [0; MAX],
        }
    }

    /// Copies the structure from user space. Fails with `EFAULT`.
    pub(crate) fn read(abi: Abi, layout: Layout, address: usize) -> Result<Self> {
        let mut this = Self::new(abi, layout);
        let size = this.size();
        let bytes = this.bytes.get_mut(..size).ok_or(EINVAL)?;
        user(address, size).reader().read_slice(bytes)?;
        Ok(this)
    }

    /// Copies the structure to user space. Fails with `EFAULT`.
    pub(crate) fn write(&self, address: usize) -> Result {
        let bytes = self.bytes.get(..self.size()).ok_or(EINVAL)?;
        user(address, bytes.len()).writer().write_slice(bytes)
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> usize {
        size(self.abi, self.layout)
    }

    /// Where a field begins, in bytes. Fields are numbered from 0.
    pub(crate) fn offset(&self, field: usize) -> usize {
        offset(self.abi, self.layout, field)
    }

    fn bytes<const N: usize>(&self, field: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let at = self.offset(field);
        if let Some(found) = self.bytes.get(at..at + N) {
            bytes.copy_from_slice(found);
        }
        bytes
    }

    /// An [`Int`](Field::Int).
    pub(crate) fn u32(&self, field: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(field))
    }

    /// A [`Long`](Field::Long).
    pub(crate) fn u64(&self, field: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(field))
    }

    /// A [`Pointer`](Field::Pointer).
    pub(crate) fn pointer(&self, field: usize) -> usize {
        if self.abi.pointer == 4 {
            self.u32(field) as usize
        } else {
            usize::from_ne_bytes(self.bytes(field))
        }
    }

    /// A [`Device`](Field::Device).
    pub(crate) fn device(&self, field: usize) -> DevId {
        let [a, b, c, d, e, f, g, h] = self.bytes(field);
        DevId {
            major: u32::from_ne_bytes([a, b, c, d]),
            minor: u32::from_ne_bytes([e, f, g, h]),
        }
    }

    /// A [`Uuid`](Field::Uuid).
    pub(crate) fn uuid(&self, field: usize) -> Uuid {
        Uuid(self.bytes(field))
    }

    /// Sets the bytes from the beginning of a field on.
    pub(crate) fn set(&mut self, field: usize, bytes: &[u8]) -> &mut Self {
        let at = self.offset(field);
        if let Some(found) = self.bytes.get_mut(at..at + bytes.len()) {
            found.copy_from_slice(bytes);
        }
        self
    }

    /// Sets an [`Int`](Field::Int).
    pub(crate) fn set_u32(&mut self, field: usize, value: u32) -> &mut Self {
        self.set(field, &value.to_ne_bytes())
    }

    /// Sets a [`Long`](Field::Long).
    pub(crate) fn set_u64(&mut self, field: usize, value: u64) -> &mut Self {
        self.set(field, &value.to_ne_bytes())
    }

    /// Sets a [`Device`](Field::Device).
    pub(crate) fn set_device(&mut self, field: usize, device: DevId) -> &mut Self {
        let [a, b, c, d] = device.major.to_ne_bytes();
        let [e, f, g, h] = device.minor.to_ne_bytes();
        self.set(field, &[a, b, c, d, e, f, g, h])
    }

    /// Sets a [`Uuid`](Field::Uuid).
    pub(crate) fn set_uuid(&mut self, field: usize, uuid: Uuid) -> &mut Self {
        self.set(field, &uuid.0)
    }
}

/// The `len` bytes of user space from `address` on.
pub(crate) fn user(address: usize, len: usize) -> UserSlice {
    UserSlice::new(UserPtr::from_addr(address), len)
}

/// Reads an array of `count` structures and decodes each. May sleep.
///
/// Fails with `EFAULT`, and with `EINVAL` if `count` is more than `most`, before anything is
/// allocated.
pub(crate) fn read_array<T>(
    (abi, layout): (Abi, Layout),
    address: usize,
    count: u32,
    most: u32,
    decode: impl Fn(&Struct) -> T,
) -> Result<KVVec<T>> {
    if count > most {
        return Err(EINVAL);
    }
    let count = count as usize;
    let mut items = KVVec::with_capacity(count, GFP_KERNEL)?;
    let mut address = address;
    for _ in 0..count {
        let item = Struct::read(abi, layout, address)?;
        address = address.wrapping_add(item.size());
        items.push(decode(&item), GFP_KERNEL)?;
    }
    Ok(items)
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_abi)]
mod tests {
    use super::*;

    /// 64-bit programs, and those of i386.
    const WIDE: Abi = Abi {
        pointer: 8,
        align: 8,
    };
    const I386: Abi = Abi {
        pointer: 4,
        align: 4,
    };

    #[test]
    fn command_words() {
        for (number, (wide, i386)) in [
            (0x40085600, 0x40085600),
            (0x40085601, 0x40085601),
            (0x40105602, 0x40085602),
            (0x80185603, 0x80145603),
            (0x80185604, 0x80105604),
            (0x40205605, 0x40185605),
            (0x80105606, 0x80105606),
            (0x40285607, 0x40205607),
            (0x80105608, 0x80105608),
            (0x40105609, 0x40085609),
            (0x4020560A, 0x4018560A),
            (0x5000560B, 0x5000560B),
        ]
        .into_iter()
        .enumerate()
        {
            let command = COMMANDS.get(number).map(|entry| entry.0);
            assert!(command.is_some_and(|command| command as usize == number));
            for (abi, word, other) in [(WIDE, wide, i386), (I386, i386, wide)] {
                let found = |word| Command::from_word(word, abi).map(|found| found.0);
                assert_eq!(found(word), command);
                assert_eq!(found(word ^ 0x100), None);
                assert_eq!(found(word ^ 0xc0000000), None);
                assert_eq!(found(word + 0x10000), None);
                assert!(word == other || found(other).is_none());
            }
        }
        assert!(Command::from_word(0x4008560C, WIDE).is_none());
        assert!(Command::from_word(0x400856FF, WIDE).is_none());
    }

    #[test]
    fn places() {
        let places = |abi, layout: Layout, wanted: &[usize]| {
            for (field, &at) in wanted.iter().enumerate() {
                assert_eq!(offset(abi, layout, field), at);
            }
        };
        places(WIDE, layout::CBT_INFO, &[0, 8, 16, 24, 28, 44, 48]);
        places(I386, layout::CBT_INFO, &[0, 8, 12, 20, 24, 40, 44]);
        places(WIDE, layout::CORRUPTED, &[0, 8, 12]);
        places(I386, layout::RANGE, &[0, 8, 16]);
        let argument = |number: usize| COMMANDS.get(number).map_or(&[] as Layout, |entry| entry.2);
        places(WIDE, argument(7), &[0, 16, 24, 32, 40]);
        places(I386, argument(7), &[0, 16, 24, 28, 32]);
        places(WIDE, argument(5), &[0, 8, 16, 32]);
        places(I386, argument(5), &[0, 4, 8, 24]);
        places(WIDE, argument(11), &[0, 16, 20, 24, 32, 4096]);
        places(I386, argument(11), &[0, 16, 20, 24, 32, 4096]);
        places(WIDE, argument(3), &[0, 8, 12, 16, 24]);
        places(I386, argument(3), &[0, 8, 12, 16, 20]);
    }

    #[test]
    fn fields_round_trip() {
        let device = DevId {
            major: 8,
            minor: 17,
        };
        for abi in [WIDE, I386] {
            let mut s = Struct::new(abi, layout::CBT_INFO);
            s.set_device(0, device)
                .set_u32(1, 7)
                .set_u64(2, u64::MAX - 1)
                .set_uuid(4, Uuid([3; 16]))
                .set(5, &[9]);
            assert_eq!(s.device(0), device);
            assert_eq!(s.u32(1), 7);
            assert_eq!(s.u64(2), u64::MAX - 1);
            assert_eq!(s.u32(3), 0);
            assert_eq!(s.uuid(4).0, [3; 16]);
            assert_eq!(s.bytes::<2>(5), [9, 0]);
            // Outside: nothing happens.
            s.set_u64(6, 5);
            assert_eq!(s.uuid(4).0, [3; 16]);
        }
    }

    #[test]
    fn pointers_have_two_sizes() {
        const LAYOUT: Layout = &[Field::Pointer, Field::Int];
        for (abi, wanted) in [(WIDE, usize::MAX), (I386, u32::MAX as usize)] {
            let mut s = Struct::new(abi, LAYOUT);
            s.set(0, &usize::MAX.to_ne_bytes());
            assert_eq!(s.pointer(0), wanted);
        }
    }

    #[test]
    fn too_many_is_an_error_before_anything_else() {
        let read = |count| {
            read_array((WIDE, layout::RANGE), 0, count, 100, |s| s.u64(0)).map(|items| items.len())
        };
        assert_eq!(read(u32::MAX), Err(EINVAL));
        assert_eq!(read(101), Err(EINVAL));
        assert_eq!(read(0), Ok(0));
    }
}
