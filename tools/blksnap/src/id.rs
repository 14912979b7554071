// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of things: devices, snapshots, generations.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::sys;

/// The number of a block device, as user space sees it in `st_rdev`. Written `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevId {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DevId {
    /// The block device that a person names: by a path, or as `MAJOR:MINOR`.
    pub fn resolve(name: impl AsRef<Path>) -> Result<Self> {
        let path = name.as_ref();
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(source) => {
                if let Some(id) = path.to_str().and_then(|name| name.parse().ok()) {
                    return Ok(id);
                }
                return Err(Error::file("look at device", path, source));
            }
        };
        if !meta.file_type().is_block_device() {
            return Err(Error::NotBlockDevice(path.to_owned()));
        }
        Ok(Self::from_raw(meta.rdev()))
    }

    /// From the `st_dev` or `st_rdev` of a file.
    pub fn from_raw(raw: u64) -> Self {
        Self {
            major: rustix::fs::major(raw),
            minor: rustix::fs::minor(raw),
        }
    }

    /// The directory of the device in sysfs.
    pub fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{self}"))
    }

    /// The kernel's name of the device, such as `vda` or `dm-3`.
    pub fn kernel_name(self) -> Option<String> {
        let target = fs::read_link(self.sysfs()).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// A path in `/dev` for the device: the kernel's name for it, or its number if it has gone.
    pub fn path(self) -> PathBuf {
        match self.kernel_name() {
            Some(name) => Path::new("/dev").join(name.replace('!', "/")),
            None => Path::new("/dev/block").join(self.to_string()),
        }
    }

    /// For messages: the path, and the number.
    pub fn describe(self) -> String {
        match self.kernel_name() {
            Some(_) => format!("{} ({self})", self.path().display()),
            None => self.to_string(),
        }
    }

    /// Where this device lies if it is a partition: the disk, and the first byte on it.
    pub fn partition_of(self) -> Option<(Self, u64)> {
        let dir = self.sysfs();
        let read = |name: &str| Some(fs::read_to_string(dir.join(name)).ok()?.trim().to_owned());
        read("partition")?;
        let start: u64 = read("start")?.parse().ok()?;
        // The directory is a link into the disk's, and `..` is taken on where the link leads.
        Some((read("../dev")?.parse().ok()?, start.checked_mul(512)?))
    }
}

impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl From<sys::DevT> for DevId {
    fn from(raw: sys::DevT) -> Self {
        Self {
            major: raw.mj,
            minor: raw.mn,
        }
    }
}

impl From<DevId> for sys::DevT {
    fn from(id: DevId) -> Self {
        Self {
            mj: id.major,
            mn: id.minor,
        }
    }
}

/// Why a text is not a [`DevId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device number: write MAJOR:MINOR, such as 8:0")]
pub struct ParseDevIdError(String);

impl FromStr for DevId {
    type Err = ParseDevIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (major, minor) = text.split_once(':')?;
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParseDevIdError(text.to_owned()))
    }
}

/// A snapshot: a random identifier given by the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub Uuid);

/// A generation of change tracking. Numbers of snapshots can only be compared within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub Uuid);

macro_rules! uuid_type {
    ($name:ident) => {
        impl $name {
            /// From the 16 bytes of the control interface.
            pub const fn from_raw(raw: sys::RawUuid) -> Self {
                Self(Uuid::from_bytes(raw))
            }

            /// The 16 bytes of the control interface.
            pub const fn to_raw(self) -> sys::RawUuid {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_type!(SnapshotId);
uuid_type!(GenerationId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read_and_written() {
        let id = DevId {
            major: 259,
            minor: 7,
        };
        assert_eq!("259:7".parse(), Ok(id));
        assert_eq!(id.to_string(), "259:7");
        assert!("sda".parse::<DevId>().is_err());
        assert!("8:0:1".parse::<DevId>().is_err());
    }

    #[test]
    fn a_uuid_has_the_bytes_in_order() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id: SnapshotId = text.parse().unwrap();
        assert_eq!(id.to_raw()[..3], [0x00, 0x11, 0x22]);
        assert_eq!(id.to_string(), text);
    }

    #[test]
    fn a_file_is_not_a_device() {
        let error = DevId::resolve("/proc/self/exe").unwrap_err();
        assert!(matches!(error, Error::NotBlockDevice(_)), "{error}");
        assert!(DevId::resolve("/nonexistent").is_err());
    }
}
