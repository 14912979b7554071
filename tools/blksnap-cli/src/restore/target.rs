// SPDX-License-Identifier: GPL-2.0-or-later

//! Where a device is restored to: a block device that nobody uses, or a file that does not exist.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blksnap::DevId;
use blksnap_backup::format::raw::clear;
use blksnap_backup::{
    Buffer, Device, Direct, is_block_device, is_zero, logical_block, private, size_of,
};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, NoArg, Opcode};

use super::signature;
use crate::mounts::user_of;
use crate::names;
use crate::size::Size;

const BLKRRPART: Opcode = ioctl::opcode::none(0x12, 95);

/// What is read at a time to see whether it is zero: if it is not, the rest need not be read.
const PEEK: u64 = 256 << 10;

/// Where somebody wants a device to be restored to.
pub struct Place {
    path: PathBuf,
    device: Option<DevId>,
}

impl Place {
    /// What a name stands for: a device, or else a file.
    pub fn named(name: &str) -> Result<Self> {
        let device = names::device_or_file(name.as_ref())
            .with_context(|| format!("cannot restore to {name}"))?;
        Ok(Self {
            path: match device {
                Some(id) if !is_block_device(name.as_ref()) => id.path(),
                _ => name.into(),
            },
            device,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a device.
    pub fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// Whether both are the same.
    pub fn is(&self, other: &Self) -> bool {
        self.path == other.path || self.device.is_some() && self.device == other.device
    }
}

/// A target, after everything that can be seen without opening it for writing was checked.
pub struct Target(Place);

impl Target {
    /// Checks whether a device can be restored to a place. With `force`, what is on a device does not
    /// matter, but that it is not in use.
    pub fn check(place: Place, device: &Device, force: bool) -> Result<Self> {
        let path = place.path();
        let failed = format!("cannot restore to {}", path.display());
        if let Some(id) = place.device {
            if let Some(user) = user_of(id) {
                bail!("{failed}: {user}");
            }
            let file = File::open(path).with_context(|| failed.clone())?;
            let size = size_of(&file, path)?;
            if size < device.size {
                bail!(
                    "{failed}: it has {} ({size} bytes), {} needs {} ({} bytes)",
                    Size(size),
                    device.name,
                    Size(device.size),
                    device.size
                );
            }
            let found = match force {
                true => None,
                false => signature::found(path).with_context(|| failed.clone())?,
            };
            if let Some(found) = found {
                bail!("{failed}: it has {found}; with --force, that is overwritten");
            }
        } else if path.symlink_metadata().is_ok() {
            bail!(
                "{failed}: it exists and is not a block device; name a device, or a file that does not exist"
            );
        } else if is_among_devices(path) {
            bail!("{failed}: there is no such device");
        }
        Ok(Self(place))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Opens it. Nothing is written to a device by this, and the kernel keeps others from using it.
    pub fn open(self, size: u64) -> Result<OpenTarget> {
        let Place { path, device } = self.0;
        let failed = || format!("cannot restore to {}", path.display());
        let mut options = File::options();
        options.read(true).write(true);
        let file = match device {
            // For a block device this means: not while it is mounted or otherwise claimed.
            Some(_) => options.custom_flags(OFlags::EXCL.bits() as i32).open(&path),
            None => private::create_new(&path),
        };
        let file = file.map_err(|error| {
            let busy = error.raw_os_error() == Some(Errno::BUSY.raw_os_error());
            let why = if busy { " (it is in use)" } else { "" };
            anyhow!(error).context(failed() + why)
        })?;
        if let Some(id) = device {
            let meta = file.metadata().with_context(failed)?;
            ensure!(
                DevId::from_raw(meta.rdev()) == id,
                "{}: it was another device when it was checked",
                failed()
            );
        }
        // From here on, a new file is removed if this fails.
        let created = device.is_none().then(|| Created(path.clone()));
        if created.is_some() {
            file.set_len(size)
                .with_context(|| format!("cannot make {} so large", path.display()))?;
        }
        let mut options = File::options();
        Ok(OpenTarget {
            file: Direct::of(file, &path, options.read(true).write(true))?,
            written: AtomicBool::new(false),
            created,
        })
    }
}

/// Whether a path that does not exist would be where the kernel shows devices: a slip of the pen.
fn is_among_devices(path: &Path) -> bool {
    let on = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    path.starts_with("/dev")
        && path
            .parent()
            .is_some_and(|parent| on(parent) == on("/dev".as_ref()))
}

/// A target that is written to. A file that was made for it is removed if it does not become whole.
pub struct OpenTarget {
    file: Direct,
    /// Whether anything was written, or begun to be.
    written: AtomicBool,
    created: Option<Created>,
}

impl OpenTarget {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes data to its place.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.written.store(true, Ordering::Relaxed);
        self.file.write(offset, bytes)
    }

    /// Reads what is at a place.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read(offset, bytes)
    }

    /// Bytes of it.
    pub fn size(&self) -> Result<u64> {
        size_of(self.file.file(), self.path())
    }

    /// Bytes of a logical sector: of a file, those of most disks.
    pub fn sector(&self) -> u32 {
        match logical_block(self.file.file()) {
            1 => 512,
            block => u32::try_from(block).unwrap_or(512),
        }
    }

    /// Lets the kernel see the partitions that are there now. That fails while somebody uses one.
    pub fn reread_partitions(&self) -> rustix::io::Result<()> {
        // SAFETY: BLKRRPART has no argument.
        unsafe { ioctl::ioctl(self.file.file(), NoArg::<BLKRRPART>::new()) }
    }

    /// Makes a range, no larger than a [`Buffer`], read as zeros, and takes no space of a thin volume
    /// for that. A new file does so already.
    ///
    /// Best is to deallocate, where the device makes zeros of that. Elsewhere, what reads as zeros is
    /// left alone: so a thin volume stays thin, though it can only write zeros like any other data.
    pub fn zero(&self, range: Range<u64>) -> Result<()> {
        if self.created.is_some() {
            return Ok(());
        }
        let failed = format!(
            "cannot clear {} at byte {}",
            self.path().display(),
            range.start
        );
        let length = range.end - range.start;
        self.written.store(true, Ordering::Relaxed);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file.file(), punch, range.start, length) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
            done => return done.context(failed),
        }
        if self.is_zero(range.clone())? {
            return Ok(());
        }
        let how = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        clear(self.file.file(), how, range).context(failed)
    }

    /// Whether a range reads as zeros now.
    fn is_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut buffer = Buffer::new();
        let mut at = range.start;
        while at < range.end {
            // No more than is in the buffer.
            let length = (range.end - at).min(PEEK) as usize;
            let bytes = &mut buffer.bytes_mut()[..length];
            self.file.read(at, bytes)?;
            if !is_zero(bytes) {
                return Ok(false);
            }
            at += length as u64;
        }
        Ok(true)
    }

    /// Says of an error what it means for the target.
    pub fn in_part(&self, error: anyhow::Error) -> anyhow::Error {
        match self.created {
            None if self.written.load(Ordering::Relaxed) => error.context(format!(
                "{} may have been written in part, and has to be restored again, with --force",
                self.path().display()
            )),
            _ => error,
        }
    }

    /// What to do if the target is a device that is larger than what was restored to it, and has a GPT:
    /// the second header is not at the end then.
    pub fn misplaced_header(&self, size: u64) -> Option<String> {
        let larger = size_of(self.file.file(), self.path()).ok()? > size;
        if !larger || self.created.is_some() {
            return None;
        }
        let mut bytes = Buffer::new();
        let bytes = &mut bytes.bytes_mut()[..8192];
        self.file.read(0, bytes).ok()?;
        // In the second block, of whichever size.
        let has_gpt = [512, 4096]
            .iter()
            .any(|&at| bytes[at..].starts_with(b"EFI PART"));
        has_gpt.then(|| {
            let path = self.path().display();
            format!(
                "{path} is larger than the disk that was backed up, and has a GPT: its second header is not at the \
                 end; `sgdisk -e {path}` moves it there"
            )
        })
    }

    /// Waits until all is on disk. A file is kept from now on.
    pub fn finish(&mut self) -> Result<()> {
        self.file.sync()?;
        if let Some(created) = self.created.take() {
            created.keep();
        }
        Ok(())
    }
}

/// A new file, removed when this is dropped.
struct Created(PathBuf);

impl Created {
    /// Keeps it.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}
