// SPDX-License-Identifier: GPL-2.0

//! The layouts of `include/uapi/linux/blk_snap.h`, as bytes.
//!
//! Structures are read into and written from arrays of bytes, at the offsets below: so each bit
//! pattern is valid, nothing is left uninitialised, and padding is zero.

use kernel::{
    block::bdev::DevId,
    ioctl::{
        _IOR,
        _IOW, //
    },
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uuid::Uuid, //
};

/// The magic number of all commands.
const MAGIC: u32 = b'V' as u32;

/// The commands' words. Their directions are the reverse of what they should be, for ever.
pub(crate) mod cmd {
    use super::*;

    pub(crate) const VERSION: u32 = _IOW::<[u8; 8]>(MAGIC, 0);
    pub(crate) const TRACKER_REMOVE: u32 = _IOW::<[u8; 8]>(MAGIC, 1);
    pub(crate) const TRACKER_COLLECT: u32 = _IOW::<[u8; 16]>(MAGIC, 2);
    pub(crate) const TRACKER_READ_CBT_MAP: u32 = _IOR::<[u8; 24]>(MAGIC, 3);
    pub(crate) const TRACKER_MARK_DIRTY_BLOCKS: u32 = _IOR::<[u8; 24]>(MAGIC, 4);
    pub(crate) const SNAPSHOT_CREATE: u32 = _IOW::<[u8; 32]>(MAGIC, 5);
    pub(crate) const SNAPSHOT_DESTROY: u32 = _IOR::<[u8; 16]>(MAGIC, 6);
    pub(crate) const SNAPSHOT_APPEND_STORAGE: u32 = _IOW::<[u8; 40]>(MAGIC, 7);
    pub(crate) const SNAPSHOT_TAKE: u32 = _IOR::<[u8; 16]>(MAGIC, 8);
    pub(crate) const SNAPSHOT_COLLECT: u32 = _IOW::<[u8; 16]>(MAGIC, 9);
    pub(crate) const SNAPSHOT_COLLECT_IMAGES: u32 = _IOW::<[u8; 32]>(MAGIC, 10);
    pub(crate) const SNAPSHOT_WAIT_EVENT: u32 = _IOW::<[u8; 4096]>(MAGIC, 11);
}

/// A structure of `N` bytes in user space.
#[derive(Clone, Copy)]
pub(crate) struct Struct<const N: usize>([u8; N]);

impl<const N: usize> Struct<N> {
    /// All zeroes.
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Copies the structure from user space. Fails with `EFAULT`.
    pub(crate) fn read(address: usize) -> Result<Self> {
        Ok(Self(user(address, N).reader().read()?))
    }

    /// Copies the structure to user space. Fails with `EFAULT`.
    pub(crate) fn write(&self, address: usize) -> Result {
        user(address, N).writer().write(&self.0)
    }

    fn bytes<const M: usize>(&self, offset: usize) -> [u8; M] {
        let mut bytes = [0; M];
        if let Some(field) = self.0.get(offset..offset + M) {
            bytes.copy_from_slice(field);
        }
        bytes
    }

    /// The `u32` at `offset`.
    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(offset))
    }

    /// The `u64` at `offset`.
    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(offset))
    }

    /// The pointer at `offset`.
    pub(crate) fn pointer(&self, offset: usize) -> usize {
        usize::from_ne_bytes(self.bytes(offset))
    }

    /// The device number at `offset`.
    pub(crate) fn device(&self, offset: usize) -> DevId {
        DevId {
            major: self.u32(offset),
            minor: self.u32(offset + 4),
        }
    }

    /// The UUID at `offset`.
    pub(crate) fn uuid(&self, offset: usize) -> Uuid {
        Uuid(self.bytes(offset))
    }

    /// Sets the bytes from `offset` on.
    pub(crate) fn set(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        if let Some(field) = self.0.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
        self
    }

    /// Sets the `u32` at `offset`.
    pub(crate) fn set_u32(&mut self, offset: usize, value: u32) -> &mut Self {
        self.set(offset, &value.to_ne_bytes())
    }

    /// Sets the `u64` at `offset`.
    pub(crate) fn set_u64(&mut self, offset: usize, value: u64) -> &mut Self {
        self.set(offset, &value.to_ne_bytes())
    }

    /// Sets the device number at `offset`.
    pub(crate) fn set_device(&mut self, offset: usize, device: DevId) -> &mut Self {
        self.set_u32(offset, device.major)
            .set_u32(offset + 4, device.minor)
    }
}

/// The `len` bytes of user space from `address` on.
pub(crate) fn user(address: usize, len: usize) -> UserSlice {
    UserSlice::new(UserPtr::from_addr(address), len)
}

/// Reads an array of `count` structures of `N` bytes and decodes each. May sleep.
///
/// Fails with `EFAULT`, and with `EINVAL` if `count` is more than `most`, before anything is
/// allocated.
pub(crate) fn read_array<const N: usize, T>(
    address: usize,
    count: u32,
    most: u32,
    decode: impl Fn(&Struct<N>) -> T,
) -> Result<KVVec<T>> {
    if count > most {
        return Err(EINVAL);
    }
    let count = count as usize;
    let mut reader = user(address, count * N).reader();
    let mut items = KVVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        items.push(decode(&Struct(reader.read()?)), GFP_KERNEL)?;
    }
    Ok(items)
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_abi)]
mod tests {
    use super::*;

    #[test]
    fn command_words() {
        assert_eq!(cmd::VERSION, 0x40085600);
        assert_eq!(cmd::TRACKER_REMOVE, 0x40085601);
        assert_eq!(cmd::TRACKER_COLLECT, 0x40105602);
        assert_eq!(cmd::TRACKER_READ_CBT_MAP, 0x80185603);
        assert_eq!(cmd::TRACKER_MARK_DIRTY_BLOCKS, 0x80185604);
        assert_eq!(cmd::SNAPSHOT_CREATE, 0x40205605);
        assert_eq!(cmd::SNAPSHOT_DESTROY, 0x80105606);
        assert_eq!(cmd::SNAPSHOT_APPEND_STORAGE, 0x40285607);
        assert_eq!(cmd::SNAPSHOT_TAKE, 0x80105608);
        assert_eq!(cmd::SNAPSHOT_COLLECT, 0x40105609);
        assert_eq!(cmd::SNAPSHOT_COLLECT_IMAGES, 0x4020560A);
        assert_eq!(cmd::SNAPSHOT_WAIT_EVENT, 0x5000560B);
    }

    #[test]
    fn fields_round_trip() {
        let mut s = Struct::<32>::new();
        let device = DevId {
            major: 8,
            minor: 17,
        };
        s.set_device(0, device)
            .set_u64(8, u64::MAX - 1)
            .set_u32(16, 7)
            .set(20, &[1, 2, 3]);
        assert_eq!(s.device(0), device);
        assert_eq!(s.u64(8), u64::MAX - 1);
        assert_eq!(s.u32(16), 7);
        assert_eq!(s.u32(20), u32::from_ne_bytes([1, 2, 3, 0]));
        // Outside: nothing happens.
        s.set_u64(28, 5);
        assert_eq!(s.u32(28), 0);
        assert_eq!(s.u64(28), 0);
    }

    #[test]
    fn too_many_is_an_error_before_anything_else() {
        let none = read_array::<16, _>(0, u32::MAX, 100, |s| s.u32(0));
        assert_eq!(none.map(|items| items.len()), Err(EINVAL));
        let none = read_array::<16, _>(0, 0, 100, |s| s.u32(0));
        assert_eq!(none.map(|items| items.len()), Ok(0));
    }
}
