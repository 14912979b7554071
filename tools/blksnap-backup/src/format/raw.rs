// SPDX-License-Identifier: GPL-2.0-or-later

//! Raw files: every byte of the device at its place, zeros as holes.
//!
//! The file of a full backup is an image that can be used as it is. In that of an incremental one
//! only what changed is there; what is a hole is told by the list of extents alone.

mod stream;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Reader, Writer};
use crate::direct::Direct;
use crate::private;
pub use stream::RawStream;

/// Writes a file.
pub struct RawWriter {
    file: Arc<Direct>,
    /// From here on, nothing was written yet.
    fresh: u64,
}

impl RawWriter {
    /// Makes a new file with only zeros.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        let make = || {
            let file = private::create_new(path)?;
            file.set_len(size)?;
            Ok::<_, io::Error>(file)
        };
        let file = make().map_err(|error| {
            let what = not_made(path, size, &error);
            anyhow!(error).context(what)
        })?;
        Ok(Self {
            file: Arc::new(Direct::of(file, path, &mut options)?),
            fresh: 0,
        })
    }

    /// Opens a file to change it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            file: Arc::new(Direct::of(file, path, &mut options)?),
            fresh: u64::MAX,
        })
    }
}

impl Writer for RawWriter {
    fn granularity(&self) -> u64 {
        1
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.write(offset, data)?;
        self.stored(offset..offset + data.len() as u64);
        Ok(())
    }

    fn shared(&self) -> Option<Arc<Direct>> {
        Some(self.file.clone())
    }

    fn stored(&mut self, range: Range<u64>) {
        self.fresh = self.fresh.max(range.end);
    }

    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        if range.start >= self.fresh {
            return Ok(());
        }
        let start = range.start;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        clear(self.file.file(), how, range).with_context(|| {
            let path = self.file.path().display();
            format!("cannot clear {path} at byte {start}")
        })
    }

    fn finish(&mut self) -> Result<()> {
        self.file.sync()
    }
}

/// What to say of a file that cannot be made.
fn not_made(path: &Path, size: u64, error: &io::Error) -> String {
    let path = path.display();
    if error.raw_os_error() == Some(Errno::FBIG.raw_os_error()) {
        return format!(
            "cannot create {path} of {size} bytes: the file system has no files so large (FAT: 4 GiB, ext4: 16 TiB); use \
             another one, or --format qcow2, which takes no more than the data"
        );
    }
    format!("cannot create {path}")
}

/// Makes a range of a file or device read as zeros: by a flag of fallocate, or by writing where
/// that can't be done.
pub fn clear(file: &File, how: FallocateFlags, range: Range<u64>) -> io::Result<()> {
    match rustix::fs::fallocate(file, how, range.start, range.end - range.start) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
            static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
            let mut at = range.start;
            while at < range.end {
                let length = (range.end - at).min(ZEROS.len() as u64);
                file.write_all_at(&ZEROS[..length as usize], at)?;
                at += length;
            }
            Ok(())
        }
        done => done.map_err(Into::into),
    }
}

/// Reads a file.
pub struct RawReader(Direct);

impl RawReader {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self> {
        Direct::open(path).map(Self)
    }
}

impl Reader for RawReader {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.0.read(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_stored_last_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.raw");
        let mut writer = RawWriter::create(&path, 1 << 20).unwrap();
        assert!(RawWriter::create(&path, 1 << 20).is_err());
        writer.zero(0..65536).unwrap();
        writer.write(65536, &[7; 200_000]).unwrap();
        writer.zero(131_072..196_608).unwrap();
        writer.write(140_000, b"again").unwrap();
        writer.finish().unwrap();

        let mut expected = vec![0; 1 << 20];
        expected[65536..265_536].fill(7);
        expected[131_072..196_608].fill(0);
        expected[140_000..140_005].copy_from_slice(b"again");
        assert!(std::fs::read(&path).unwrap() == expected);
        let mut data = [1; 10];
        let reader = RawReader::open(&path).unwrap();
        reader.read(139_998, &mut data).unwrap();
        assert_eq!(&data, b"\0\0again\0\0\0");
        assert!(reader.read((1 << 20) - 5, &mut data).is_err());

        let before = path.metadata().unwrap().blocks();
        let mut writer = RawWriter::open(&path).unwrap();
        writer.zero(0..1 << 20).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
        assert!(path.metadata().unwrap().blocks() <= before);
    }
}
