// SPDX-License-Identifier: GPL-2.0

//! The commands of 2025 in another wrapping, which agents speak that bring their own module for
//! kernels as they are: off unless the parameter `frontends` asks for it.
//!
//! What is about a device does not come by the device but by a node of its own, `/dev/bdevfilter`,
//! with the device's path. And a snapshot may be created without storage, which the client appends
//! then, asked for it by events, as in the ABI of 2022.

use kernel::{
    block::{
        bdev::{
            BdevFile,
            DevId, //
        },
        filter::Filter,
        filter_type, //
    },
    fs::File,
    miscdevice::with_data::{
        OpenFile,
        SharedDevice, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    uapi, //
};

use super::{
    call::{
        command_of_word,
        Call,
        Entry, //
    },
    front_end::FrontEnd,
    may_open,
    registry::Registry,
    structs::{
        user,
        Abi,
        Field,
        Struct,
        NAME_LEN, //
    },
    v2::{
        self,
        device::Devices, //
    }, //
};
use crate::tracking::tracker::Tracker;

/// Whose snapshots these are.
const US: FrontEnd = FrontEnd::Standalone;

/// Major, minor, revision, build.
const VERSION: [u16; 4] = [7, 0, 0, 0];

/// The bytes of the longest path, with the NUL at its end.
const PATH_MAX: usize = uapi::PATH_MAX as usize;

/// A command that the ABI of 2025 does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    /// What the module can do beside.
    Mod,
    /// Where to write a log: not here.
    SetLog,
    /// Ranges of a device for a snapshot.
    AppendStorage,
}

/// The number of the first of them.
const FIRST_MORE: u32 = 32;

/// Those commands by number, from the first one on.
const MORE: [Entry<More>; 3] = {
    use Field::*;
    [
        (More::Mod, uapi::_IOC_READ, &[Long, Name]),
        (More::SetLog, uapi::_IOC_WRITE, &[Int, Int, Int, Address]),
        (
            More::AppendStorage,
            uapi::_IOC_WRITE,
            &[Uuid, Address, Int, Address],
        ),
    ]
};

/// The device that a path in user space names. Fails with `EFAULT`, `ENAMETOOLONG`, or the error
/// of looking it up.
fn device_at(path: usize) -> Result<DevId> {
    let mut buffer = KVec::from_elem(0u8, PATH_MAX, GFP_KERNEL)?;
    let path = user(path, PATH_MAX).reader().strcpy_into_buf(&mut buffer)?;
    // The last byte there is room for is a NUL in any case.
    if path.count_bytes() == PATH_MAX - 1 {
        return Err(ENAMETOOLONG);
    }
    BdevFile::lookup(path)
}

/// What is behind the node for snapshots.
pub(crate) struct Node(pub(crate) Arc<Registry>);

impl SharedDevice for Node {
    type OwnerModule = crate::LocalModule;
    type Open = Control;

    fn open(&self, _file: &File) -> Result<Arc<Control>> {
        may_open()?;
        let inner = v2::Control::new(&self.0, US, VERSION);
        Arc::pin_init(try_pin_init!(Control { inner <- inner }), GFP_KERNEL)
    }
}

/// An open file of it.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    inner: v2::Control,
}

impl OpenFile for Control {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize, compat: bool) -> Result<isize> {
        this.command(Abi::of(compat), cmd, arg)
    }
}

impl Control {
    fn command(&self, abi: Abi, word: u32, address: usize) -> Result<isize> {
        let more = word.wrapping_sub(FIRST_MORE);
        let Some((command, layout)) = command_of_word(&MORE, b'V', more, abi) else {
            return self.inner.command(abi, word, address);
        };
        let mut args = Struct::new(abi, layout);
        match command {
            More::Mod => args.set(1, b"standalone").write(address)?,
            More::SetLog => return Err(ENOTTY),
            More::AppendStorage => {
                args = Struct::read(abi, layout, address)?;
                let call = Call { abi, address, args };
                let registry = &self.inner.client.registry;
                let id = args.uuid(0);
                registry.snapshot_of(US, id)?;
                registry.append(US, id, device_at(args.pointer(1))?, &call.ranges(3)?)?;
            }
        }
        Ok(0)
    }
}

/// A command about a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Attach,
    Detach,
    Control,
}

/// The number of the first of them.
const FIRST: u32 = 140;

/// Those commands by number, from the first one on.
const COMMANDS: [Entry<Command>; 3] = {
    use Field::*;
    const RW: u32 = uapi::_IOC_READ | uapi::_IOC_WRITE;
    [
        (Command::Attach, RW, &[Address, Name, Address, Int]),
        (Command::Detach, RW, &[Address, Name]),
        (Command::Control, RW, &[Address, Name, Int, Int, Address]),
    ]
};

/// An older form of the first one.
const OLDER: [Entry<Command>; 1] = [(
    Command::Attach,
    uapi::_IOC_READ | uapi::_IOC_WRITE,
    &[Field::Address, Field::Name],
)];

/// What is behind the node for devices.
pub(crate) struct DevicesNode(pub(crate) Arc<Registry>);

impl SharedDevice for DevicesNode {
    type OwnerModule = crate::LocalModule;
    type Open = DevicesFile;

    fn open(&self, _file: &File) -> Result<Arc<DevicesFile>> {
        may_open()?;
        Ok(Arc::new(
            DevicesFile(Devices::new(&self.0, US)),
            GFP_KERNEL,
        )?)
    }
}

/// An open file of it.
pub(crate) struct DevicesFile(Devices);

impl OpenFile for DevicesFile {
    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize, compat: bool) -> Result<isize> {
        this.command(compat, cmd, arg)
    }
}

impl DevicesFile {
    fn command(&self, compat: bool, word: u32, address: usize) -> Result<isize> {
        let abi = Abi::of(compat);
        let word = word.wrapping_sub(FIRST);
        let found = command_of_word(&COMMANDS, b'F', word, abi)
            .or_else(|| command_of_word(&OLDER, b'F', word, abi));
        let (command, layout) = found.ok_or(ENOTTY)?;
        let args = Struct::read(abi, layout, address)?;
        let name: [u8; NAME_LEN] = args.bytes(1);
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| EINVAL)?;
        let file = BdevFile::open(device_at(args.pointer(0))?)?;
        if name != Tracker::NAME {
            return Err(ENOENT);
        }
        let bdev = file.bdev();
        match command {
            Command::Attach => self.0.attach(bdev)?,
            Command::Detach => self.0.detach(bdev)?,
            Command::Control => {
                let control = filter_type::Control {
                    command: args.u32(2),
                    length: args.u32(3),
                    address: args.pointer(4),
                    compat,
                };
                self.0.control(bdev, control)?;
            }
        }
        Ok(0)
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_standalone)]
mod tests {
    use super::{
        super::structs::test_abis::WIDE,
        *, //
    };

    #[test]
    fn command_words() {
        let more = |word: u32| command_of_word(&MORE, b'V', word - FIRST_MORE, WIDE);
        for (number, word) in [0x80285620, 0x40185621, 0x40285622].into_iter().enumerate() {
            assert!(more(word).is_some_and(|found| found.0 as usize == number));
        }
        let found = |word: u32| command_of_word(&COMMANDS, b'F', word - FIRST, WIDE);
        for (number, word) in [0xC038468C, 0xC028468D, 0xC038468E].into_iter().enumerate() {
            assert!(found(word).is_some_and(|found| found.0 as usize == number));
        }
        assert!(found(0xC028468C).is_none());
        assert!(command_of_word(&OLDER, b'F', 0xC028468C - FIRST, WIDE).is_some());
        assert!(found(0x4018468F).is_none());
    }
}
