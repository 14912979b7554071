// SPDX-License-Identifier: GPL-2.0-or-later

//! Copying ranges of one device or file to the same places of another.
//!
//! One thread reads large aligned pieces past the page cache, while this one writes those that have
//! been read; a fixed number of buffers goes round between them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::buffer::{self, Buffer};
use crate::device::{logical_block, open_direct, size_of};
use crate::progress::Progress;
use crate::signals::Signals;

/// Buffers in use at once.
const BUFFERS: usize = 8;

/// What is read: a device or a file.
pub struct Source<'a> {
    path: &'a Path,
    file: File,
    size: u64,
    block: u64,
}

impl<'a> Source<'a> {
    /// Opens it, past the page cache where that can be done.
    pub fn open(path: &'a Path) -> Result<Self> {
        let file = open_direct(path)?;
        let size = size_of(&file, path)?;
        // Files on 4 KiB devices want that much; for a device its own block is enough.
        let block = match logical_block(&file) {
            1 => 4096,
            block => block,
        };
        Ok(Self {
            path,
            file,
            size,
            block,
        })
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `length` bytes from `offset` on into the beginning of a buffer.
    fn read(&self, buffer: &mut Buffer, length: usize, offset: u64) -> io::Result<()> {
        // Direct I/O wants whole blocks, at the end of a file too. A buffer holds whole blocks of
        // any size.
        let blocks = length.next_multiple_of(self.block as usize);
        let buffer = &mut buffer.bytes_mut()[..blocks];
        let mut filled = 0;
        while filled < length {
            match self
                .file
                .read_at(&mut buffer[filled..], offset + filled as u64)
            {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The reads that cover the ranges: aligned to the source's blocks, each within one buffer.
    fn reads(&self, ranges: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
        let (block, size) = (self.block, self.size);
        let mut done = 0;
        ranges.flat_map(move |range| {
            // What a neighbour's rounding has read already is not read again.
            let start = (range.start / block * block).max(done);
            let end = range.end.next_multiple_of(block).min(size).max(start);
            done = done.max(end);
            pieces(start..end)
        })
    }
}

/// Cuts a range at multiples of the size of a buffer.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    const SIZE: u64 = buffer::SIZE as u64;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = ((start / SIZE + 1) * SIZE).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

/// Reads ranges of a source, in order, and hands each piece to `sink` with its place. `sink` runs
/// on this thread.
pub fn stream(
    source: &Source<'_>,
    ranges: impl Iterator<Item = Range<u64>> + Send,
    signals: &Signals,
    mut sink: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let (full_in, full_out): (SyncSender<_>, Receiver<_>) = sync_channel(BUFFERS);
    let (free_in, free_out) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        free_in.send(Buffer::new())?;
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<()> {
            for range in source.reads(ranges) {
                // When the other side has gone, it knows why.
                let Ok(mut buffer) = free_out.recv() else {
                    break;
                };
                // A piece is no longer than a buffer.
                let length = (range.end - range.start) as usize;
                source
                    .read(&mut buffer, length, range.start)
                    .with_context(|| {
                        let (start, path) = (range.start, source.path.display());
                        format!("cannot read {length} bytes at byte {start} of {path}")
                    })?;
                if full_in.send((buffer, range.start, length)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut written = Ok(());
        for (buffer, offset, count) in full_out {
            written = signals
                .check()
                .map_err(Into::into)
                .and_then(|()| sink(&buffer.bytes()[..count], offset));
            if written.is_err() {
                break;
            }
            // The reader may be done already.
            let _ = free_in.send(buffer);
        }
        drop(free_in);
        let read = reader
            .join()
            .map_err(|_| anyhow!("the reading thread panicked"))?;
        written.and(read)
    })
}

/// What is done with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are in the target already.
    Skip,
    /// Holes are made in a file.
    Punch,
    /// A device is told to store zeros.
    ZeroRange,
}

/// What a copy has moved, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Read from the source.
    pub read: u64,
    /// Written to the target; zeros that became holes are not.
    pub written: u64,
}

/// Where a copy goes.
pub struct Target<'a> {
    path: &'a Path,
    file: &'a File,
    zeros: Zeros,
    written: u64,
}

impl<'a> Target<'a> {
    /// Writes go to `file`; `path` is for messages.
    pub fn new(path: &'a Path, file: &'a File, zeros: Zeros) -> Self {
        Self {
            path,
            file,
            zeros,
            written: 0,
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Stores data at its place, zeros as holes.
    pub fn store(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        for (run, zero) in buffer::runs(bytes, offset) {
            let at = offset + run.start as u64;
            if zero {
                self.clear(at..offset + run.end as u64)?;
            } else {
                self.write(&bytes[run], at)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros.
    pub fn clear(&mut self, range: Range<u64>) -> Result<()> {
        let flags = match self.zeros {
            Zeros::Skip => return Ok(()),
            Zeros::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Zeros::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        match rustix::fs::fallocate(self.file, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(()),
            // Not every file system and device can: zeros are written then.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
                let mut at = range.start;
                while at < range.end {
                    let length = (range.end - at).min(ZEROS.len() as u64);
                    self.write(&ZEROS[..length as usize], at)?;
                    at += length;
                }
                Ok(())
            }
            Err(errno) => Err(errno).with_context(|| self.failed("clear", range.start)),
        }
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, at)
            .with_context(|| self.failed("write to", at))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, what: &str, at: u64) -> String {
        format!("cannot {what} {} at byte {at}", self.path.display())
    }

    /// Waits until everything is on disk.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_all()
            .with_context(|| format!("cannot write back {}", self.path.display()))
    }
}

/// Copies ranges, in order, and waits until they are on disk.
pub fn copy(
    source: &Source<'_>,
    target: &mut Target<'_>,
    ranges: impl Iterator<Item = Range<u64>> + Send,
    signals: &Signals,
    progress: &mut Progress,
) -> Result<Copied> {
    let mut read = 0;
    stream(source, ranges, signals, |bytes, offset| {
        read += bytes.len() as u64;
        target.store(bytes, offset)?;
        progress.advance(bytes.len() as u64);
        Ok(())
    })?;
    target.sync()?;
    Ok(Copied {
        read,
        written: target.written(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn pieces_are_cut_at_buffers() {
        let cut = |range| pieces(range).collect::<Vec<_>>();
        assert_eq!(cut(0..0), []);
        assert_eq!(cut(5..6), [5..6]);
        assert_eq!(
            cut(MIB - 1..3 * MIB),
            [MIB - 1..MIB, MIB..2 * MIB, 2 * MIB..3 * MIB]
        );
    }

    #[test]
    fn copied_ranges_are_equal_and_zeros_are_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut data: Vec<u8> = (0..3 * MIB + 12345).map(|i| ((i * 7) >> 3) as u8).collect();
        data[MIB as usize..2 * MIB as usize].fill(0);
        std::fs::write(&from, &data).unwrap();
        let old = vec![0xAA; data.len()];
        std::fs::write(&to, &old).unwrap();

        let file = File::options().read(true).write(true).open(&to).unwrap();
        let source = Source::open(&from).unwrap();
        let mut target = Target::new(&to, &file, Zeros::Punch);
        let ranges = [
            4096..8192,
            MIB - 4096..3 * MIB,
            3 * MIB + 4096..source.size(),
        ];
        let mut progress = Progress::start("test", 0);
        let signals = Signals::catch().unwrap();
        let copied = copy(
            &source,
            &mut target,
            ranges.iter().cloned(),
            &signals,
            &mut progress,
        )
        .unwrap();

        let mut expected = old;
        for range in &ranges {
            let range = range.start as usize..range.end as usize;
            expected[range.clone()].copy_from_slice(&data[range]);
        }
        assert!(std::fs::read(&to).unwrap() == expected);
        assert_eq!(
            copied.read,
            ranges
                .iter()
                .map(|range| range.end - range.start)
                .sum::<u64>()
        );
        assert!(copied.written <= copied.read);
        assert!(file.metadata().unwrap().blocks() > 0);
    }

    #[test]
    fn reads_do_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        let source = Source::open(&path).unwrap();
        let ranges = [0..10, 20..30, 4000..4200, 99_000..100_000];
        let reads: Vec<_> = source.reads(ranges.into_iter()).collect();
        assert_eq!(reads, [0..4096, 4096..8192, 98_304..100_000]);
    }
}
