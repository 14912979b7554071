// SPDX-License-Identifier: GPL-2.0-or-later

//! Files and devices that are read and written past the page cache, where that can be done: what
//! is copied once need not push out what others work with, nor be copied twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::device::logical_block;

/// A file or device that is opened twice.
pub struct Direct {
    path: PathBuf,
    cached: File,
    /// `None` where everything goes through the page cache.
    direct: Option<File>,
    /// What places, lengths and addresses must be multiples of.
    block: u64,
}

impl Direct {
    /// Opens it for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Self::of(file, path, OpenOptions::new().read(true))
    }

    /// Of a file that is opened already, in the way of `options`.
    pub fn of(cached: File, path: &Path, options: &mut OpenOptions) -> Result<Self> {
        // The flag fits: it is one of the kernel's.
        options.custom_flags(OFlags::DIRECT.bits() as i32);
        let direct = match options.open(path) {
            Err(error) if is_invalid(&error) => None,
            file => Some(file.with_context(|| format!("cannot open {}", path.display()))?),
        };
        if let Some(direct) = &direct {
            let id = |file: &File| -> io::Result<_> {
                let meta = file.metadata()?;
                Ok((meta.dev(), meta.ino(), meta.rdev()))
            };
            let same = id(direct).and_then(|new| Ok(new == id(&cached)?));
            ensure!(
                same.with_context(|| format!("cannot look at {}", path.display()))?,
                "{} was replaced while it was opened",
                path.display()
            );
        }
        // Files on 4 KiB devices want that much; for a device its own block is enough.
        let block = match logical_block(&cached) {
            1 => 4096,
            block => block,
        };
        Ok(Self {
            path: path.to_owned(),
            cached,
            direct,
            block,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For all but reading and writing.
    pub fn file(&self) -> &File {
        &self.cached
    }

    /// Reads all of `data`.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let length = data.len();
        let read = match self.direct_for(offset, data) {
            Some(direct) => match direct.read_exact_at(data, offset) {
                Err(error) if is_invalid(&error) => self.cached.read_exact_at(data, offset),
                read => read,
            },
            None => self.cached.read_exact_at(data, offset),
        };
        read.with_context(|| {
            let path = self.path.display();
            format!("cannot read {length} bytes at byte {offset} of {path}")
        })
    }

    /// Writes all of `data`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let written = match self.direct_for(offset, data) {
            Some(direct) => match direct.write_all_at(data, offset) {
                Err(error) if is_invalid(&error) => self.cached.write_all_at(data, offset),
                written => written,
            },
            None => self.cached.write_all_at(data, offset),
        };
        written.with_context(|| format!("cannot write to {} at byte {offset}", self.path.display()))
    }

    /// Waits until all is on disk.
    pub fn sync(&self) -> Result<()> {
        self.cached
            .sync_all()
            .with_context(|| format!("cannot write back {}", self.path.display()))
    }

    /// The file that goes past the page cache, if this can.
    fn direct_for(&self, offset: u64, data: &[u8]) -> Option<&File> {
        let fits = |number: u64| number % self.block == 0;
        let direct = self.direct.as_ref()?;
        let all = [offset, data.len() as u64, data.as_ptr().addr() as u64];
        all.into_iter().all(fits).then_some(direct)
    }
}

/// What a file system says that cannot do it, when the file is opened or later.
fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;

    #[test]
    fn all_places_of_a_file_can_be_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = Direct::of(options.open(&path).unwrap(), &path, &mut options).unwrap();
        let mut buffer = Buffer::new();
        for (at, range) in [
            (0, 0..8192),
            (0, 98_304..100_000),
            (0, 5..6),
            (512, 4096..8192),
            (1, 8192..12_288),
        ] {
            let part = &mut buffer.bytes_mut()[at..at + range.len()];
            file.read(range.start as u64, part).unwrap();
            assert!(part == &bytes[range.clone()], "{range:?}");
            part.fill(at as u8 | 0x80);
            file.write(range.start as u64, part).unwrap();
            bytes[range].fill(at as u8 | 0x80);
        }
        assert!(std::fs::read(&path).unwrap() == bytes);
        let error = file.read(99_999, &mut [0; 2]).unwrap_err();
        assert!(error.to_string().contains("at byte 99999"), "{error}");
    }

    #[test]
    fn another_file_of_that_name_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let file = File::create_new(&path).unwrap();
        std::fs::rename(&path, dir.path().join("y")).unwrap();
        File::create_new(&path).unwrap();
        let error = Direct::of(file, &path, OpenOptions::new().read(true));
        assert!(error.err().unwrap().to_string().contains("replaced"));
    }
}
