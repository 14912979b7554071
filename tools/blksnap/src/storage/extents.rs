// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a file lies on its block device.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

use crate::error::{Error, Result};
use crate::id::DevId;
use crate::units::{SectorRange, Sectors};

/// The ranges of a file on the block device of its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    /// The device.
    pub device: DevId,
    /// The ranges, in the order of the file.
    pub ranges: Vec<SectorRange>,
}

impl Extents {
    /// How much they hold.
    pub fn sectors(&self) -> Sectors {
        Sectors(self.ranges.iter().map(|range| range.count.0).sum())
    }
}

/// Finds the extents of a file after writing it back. The `path` is for messages.
///
/// Refuses what can't be written to directly on the device: files without a block device (btrfs,
/// overlayfs, network file systems), file systems other than ext4 and xfs, which may move a file or
/// tell places that are none (f2fs does both), inline, compressed, encrypted, shared or not yet
/// allocated extents. Holes are left out.
pub fn extents_of(file: &File, path: &Path) -> Result<Extents> {
    let refuse = |reason: String| Error::Storage {
        path: path.to_owned(),
        reason,
    };
    let meta = file
        .metadata()
        .map_err(|source| Error::file("look at", path, source))?;
    if !meta.is_file() {
        return Err(refuse("it is not a regular file".into()));
    }
    let device = DevId::from_raw(meta.dev());
    if !device.sysfs().exists() {
        return Err(refuse(format!(
            "its file system is not on one block device of its own (device number {device}), as btrfs, overlayfs, \
             tmpfs and network file systems are not; choose a place on ext4 or xfs, for example"
        )));
    }
    let kind = fstatfs(file).map_err(|errno| Error::file("look at", path, errno))?;
    if !keeps_places(kind.f_type as u64) {
        return Err(refuse(
            "its file system is neither ext4 nor xfs: others may move a file while it is written to directly".into(),
        ));
    }
    if is_realtime(file) {
        return Err(refuse(
            "it lies on the realtime device of its xfs file system".into(),
        ));
    }
    file.sync_all()
        .map_err(|source| Error::file("write back", path, source))?;
    let mut ranges = Vec::new();
    for extent in raw_extents(file).map_err(|errno| match errno {
        Errno::OPNOTSUPP | Errno::NOTTY => {
            refuse("its file system does not tell where files lie (no FIEMAP)".into())
        }
        errno => Error::file("find the extents of", path, errno),
    })? {
        if let Some(reason) = extent.unusable() {
            return Err(refuse(format!(
                "its data at byte {} is {reason}",
                extent.logical
            )));
        }
        push(&mut ranges, extent.range());
    }
    Ok(Extents { device, ranges })
}

/// Whether a file system, by its magic number, leaves the data of a file where it is, and tells where:
/// ext2, ext3, ext4 and xfs.
fn keeps_places(magic: u64) -> bool {
    matches!(magic, 0xEF53 | 0x5846_5342)
}

/// Adds a range, joined to the last one if it follows it on the device.
fn push(ranges: &mut Vec<SectorRange>, range: SectorRange) {
    match ranges.last_mut() {
        Some(last) if last.start.0 + last.count.0 == range.start.0 => {
            last.count.0 += range.count.0;
        }
        _ if range.count.0 > 0 => ranges.push(range),
        _ => {}
    }
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const LAST: u32 = 0x1;

impl Extent {
    /// Why the extent can't be written to on the device; `None` if it can. Allocated but unwritten
    /// is fine: what the module stores there, the file system does not show.
    fn unusable(&self) -> Option<&'static str> {
        const REASONS: &[(u32, &str)] = &[
            (0x4, "not allocated yet"),
            (0x2, "at an unknown place"),
            (0x80, "encrypted"),
            (0x200, "stored within metadata"),
            (0x400, "stored together with that of other files"),
            (0x8, "compressed or encoded"),
            (0x100, "not aligned to blocks"),
            (0x2000, "shared with other files"),
        ];
        // There is a boot sector or a superblock.
        if self.physical == 0 {
            return Some("at no place");
        }
        REASONS
            .iter()
            .find(|(flag, _)| self.flags & flag != 0)
            .map(|(_, reason)| *reason)
    }

    /// The whole sectors of it.
    fn range(&self) -> SectorRange {
        let start = Sectors::ceil(self.physical);
        let end = Sectors::floor(self.physical.saturating_add(self.length));
        SectorRange::new(start.0, end.0.saturating_sub(start.0))
    }
}

/// Extents asked for at once.
const BATCH: usize = 256;

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

const _: () = {
    assert!(size_of::<Extent>() == 56);
    assert!(std::mem::offset_of!(Request, extents) == 32);
};

// SAFETY: FS_IOC_FIEMAP reads the first 32 bytes of the request and fills `mapped` and up to
// `count` extents, for which there is room.
unsafe impl Ioctl for &mut Request {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        0xC020_660B
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<Request>(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// All extents of a file, written back first.
fn raw_extents(file: &File) -> rustix::io::Result<Vec<Extent>> {
    const FLAG_SYNC: u32 = 1;
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Request {
            start,
            length: u64::MAX - start,
            flags: FLAG_SYNC,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: See the implementation of `Ioctl` above.
        unsafe { ioctl::ioctl(file.as_fd(), &mut request)? };
        let got = &request.extents[..BATCH.min(request.mapped as usize)];
        found.extend_from_slice(got);
        match got.last() {
            Some(last) if last.flags & LAST == 0 => {
                start = last.logical.saturating_add(last.length);
            }
            _ => return Ok(found),
        }
    }
}

/// Whether a file lies on the realtime device of xfs, which its `st_dev` does not tell.
fn is_realtime(file: &File) -> bool {
    /// `struct fsxattr`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        xflags: u32,
        _rest: [u32; 6],
    }
    const FSGETXATTR: Opcode = ioctl::opcode::read::<Attributes>(b'X', 31);
    // SAFETY: FS_IOC_FSGETXATTR fills a structure of 28 bytes.
    let attributes = unsafe { ioctl::ioctl(file, ioctl::Getter::<FSGETXATTR, Attributes>::new()) };
    attributes.is_ok_and(|attributes| attributes.xflags & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(physical: u64, length: u64, flags: u32) -> Extent {
        Extent {
            physical,
            length,
            flags,
            ..Extent::default()
        }
    }

    #[test]
    fn only_plain_extents_are_used() {
        for (flags, fine) in [
            (0, true),
            (LAST, true),
            (0x800 | LAST, true),
            (0x1000, true),
            (0x2, false),
            (0x4 | 0x2, false),
            (0x8, false),
            (0x80 | 0x8, false),
            (0x100, false),
            (0x200 | 0x100, false),
            (0x400, false),
            (0x2000, false),
        ] {
            assert_eq!(
                extent(8192, 4096, flags).unusable().is_none(),
                fine,
                "{flags:#x}"
            );
        }
        // As f2fs says of a block that was only reserved.
        assert!(extent(0, 4096, 0x800 | LAST).unusable().is_some());
    }

    #[test]
    fn only_some_file_systems_keep_places() {
        let (ext4, xfs, f2fs, btrfs) = (0xEF53, 0x5846_5342, 0xF2F5_2010, 0x9123_683E);
        assert!(keeps_places(ext4) && keeps_places(xfs));
        assert!(!keeps_places(f2fs) && !keeps_places(btrfs));
    }

    #[test]
    fn ranges_are_whole_sectors_and_joined() {
        assert_eq!(extent(1024, 2048, 0).range(), SectorRange::new(2, 4));
        assert_eq!(extent(1000, 600, 0).range(), SectorRange::new(2, 1));
        assert_eq!(extent(1000, 100, 0).range().count, Sectors(0));
        let mut ranges = Vec::new();
        for range in [(8, 8), (16, 8), (40, 8), (24, 8)] {
            push(&mut ranges, SectorRange::new(range.0, range.1));
        }
        let expected = [(8, 16), (40, 8), (24, 8)];
        assert_eq!(
            ranges,
            expected.map(|range| SectorRange::new(range.0, range.1))
        );
    }

    #[test]
    fn what_has_no_block_device_is_refused() {
        let path = Path::new("/proc/self/status");
        let error = extents_of(&File::open(path).unwrap(), path).unwrap_err();
        assert!(
            error.to_string().contains("not on one block device"),
            "{error}"
        );
        let path = Path::new("/dev");
        let error = extents_of(&File::open(path).unwrap(), path).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
