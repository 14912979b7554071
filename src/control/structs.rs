// SPDX-License-Identifier: GPL-2.0

//! The structures of the ABIs, as bytes.
//!
//! Structures are read into and written from arrays of bytes: so each bit pattern is valid,
//! nothing is left uninitialised, and padding is zero. Where a field lies is written down nowhere:
//! it follows from the fields before it and from the program's [`Abi`], as it does in C, because
//! 32-bit programs lay out the same fields in another way.

use kernel::{
    block::bdev::DevId,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
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
    const NATIVE: Self = Self {
        pointer: size_of::<usize>(),
        align: align_of::<u64>(),
    };

    /// That of a program; `compat` says that it is one of 32 bits on this 64-bit kernel.
    pub(crate) fn of(compat: bool) -> Self {
        if !compat {
            return Self::NATIVE;
        }
        Self {
            pointer: 4,
            align: if cfg!(CONFIG_COMPAT_FOR_U64_ALIGNMENT) {
                4
            } else {
                8
            },
        }
    }
}

/// The bytes of a disk's name, with zeroes behind it.
pub(crate) const NAME_LEN: usize = 32;

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
    /// A pointer in a `__u64`, of all programs.
    Address,
    /// `struct blk_snap_dev_t`
    Device,
    /// `struct blk_snap_uuid`
    Uuid,
    /// The name of a disk.
    Name,
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
            Self::Long | Self::Address => (8, abi.align),
            Self::Pointer => (abi.pointer, abi.pointer),
            Self::Device => (8, 4),
            Self::Uuid => (16, 1),
            Self::Name => (NAME_LEN, 1),
            Self::Data => (4064, 1),
        }
    }
}

/// The fields of a structure, in order.
pub(crate) type Layout = &'static [Field];

/// A range of sectors: the first one, and their number.
pub(crate) const RANGE: Layout = &[Field::Long, Field::Long];

/// Where the field of that number begins; with the number of fields, the structure's size.
pub(crate) fn offset(abi: Abi, layout: Layout, number: usize) -> usize {
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
pub(crate) fn size(abi: Abi, layout: Layout) -> usize {
    offset(abi, layout, layout.len())
}

/// The size of the largest structure that is handled as a whole.
const MAX: usize = 80;

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
        self.write_at_most(self.size(), address)
    }

    /// The same for no more than the first `most` bytes.
    pub(crate) fn write_at_most(&self, most: usize, address: usize) -> Result {
        let bytes = self.bytes.get(..self.size().min(most)).ok_or(EINVAL)?;
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

    /// The `N` bytes from the beginning of a field on.
    pub(crate) fn bytes<const N: usize>(&self, field: usize) -> [u8; N] {
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

    /// A [`Pointer`](Field::Pointer) or an [`Address`](Field::Address). One that this kernel does
    /// not have is one where nothing is.
    pub(crate) fn pointer(&self, field: usize) -> usize {
        if let Some(Field::Address) = self.layout.get(field) {
            return usize::try_from(self.u64(field)).unwrap_or(usize::MAX);
        }
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
pub(crate) mod test_abis {
    use super::Abi;

    /// 64-bit programs.
    pub(crate) const WIDE: Abi = Abi {
        pointer: 8,
        align: 8,
    };

    /// Those of i386.
    pub(crate) const I386: Abi = Abi {
        pointer: 4,
        align: 4,
    };
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_structs)]
mod tests {
    use super::{
        test_abis::{
            I386,
            WIDE, //
        },
        *, //
    };

    const INFO: Layout = {
        use Field::*;
        &[Device, Int, Long, Int, Uuid, Byte]
    };

    #[test]
    fn fields_round_trip() {
        let device = DevId {
            major: 8,
            minor: 17,
        };
        for abi in [WIDE, I386] {
            let mut s = Struct::new(abi, INFO);
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
            let mut s = Struct::new(abi, &[Field::Int, Field::Address]);
            s.set_u64(1, 1 << 33 | 5);
            assert_eq!(s.pointer(1), 1 << 33 | 5);
        }
    }

    #[test]
    fn too_many_is_an_error_before_anything_else() {
        let read =
            |count| read_array((WIDE, RANGE), 0, count, 100, |s| s.u64(0)).map(|items| items.len());
        assert_eq!(read(u32::MAX), Err(EINVAL));
        assert_eq!(read(101), Err(EINVAL));
        assert_eq!(read(0), Ok(0));
    }
}
