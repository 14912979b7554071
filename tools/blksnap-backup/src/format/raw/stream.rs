// SPDX-License-Identifier: GPL-2.0-or-later

//! A device as a raw stream, for a pipe: every byte of it, in order, zeros as well.
//!
//! Nothing in such a stream tells that it is whole, but its length. So the last bytes are kept back until
//! [`finish`](Writer::finish): one that failed is shorter than the device.

use std::io::Write;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use blksnap::ByteSet;

use crate::format::Writer;

/// Zeros, to write.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
/// Bytes that are kept back.
const LAST: u64 = 512;

/// A stream being written.
pub struct RawStream {
    /// For messages.
    name: String,
    out: Box<dyn Write + Send>,
    size: u64,
    /// The next byte of the device.
    at: u64,
    /// What is known to be zeros.
    zeros: ByteSet,
    /// What was kept back of the end.
    last: Vec<u8>,
}

impl RawStream {
    /// Writes a device of `size` bytes to something that is called `name` in messages.
    pub fn new(out: Box<dyn Write + Send>, name: &str, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            out,
            size,
            at: 0,
            zeros: ByteSet::default(),
            last: Vec::new(),
        }
    }

    /// Writes what comes next, but for the last bytes of all.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.size.saturating_sub(LAST).saturating_sub(self.at);
        // No more than there are bytes.
        let (now, later) = bytes.split_at(before.min(bytes.len() as u64) as usize);
        self.last.extend_from_slice(later);
        self.at += bytes.len() as u64;
        let written = self.out.write_all(now);
        written.with_context(|| format!("cannot write to {}", self.name))
    }

    /// Writes the zeros up to a place.
    fn put_zeros(&mut self, end: u64) -> Result<()> {
        let unknown = self.zeros.outside(self.at..end).next();
        ensure!(
            unknown.is_none(),
            "bytes {unknown:?} were not given to {}",
            self.name
        );
        self.fill(end)
    }

    /// Writes zeros up to a place.
    fn fill(&mut self, end: u64) -> Result<()> {
        while self.at < end {
            let length = (end - self.at).min(ZEROS.len() as u64);
            self.put(&ZEROS[..length as usize])?;
        }
        Ok(())
    }

    /// Fails if something of a place was written.
    fn check(&self, place: Range<u64>) -> Result<()> {
        ensure!(
            place.start >= self.at,
            "what was at byte {} has changed after it was written to {}, which cannot be undone: somebody has \
             written to the image; a backup in a directory, or as rbd-diff, can take that",
            place.start,
            self.name
        );
        ensure!(
            place.start <= place.end && place.end <= self.size,
            "bytes {place:?} of a device of {}",
            self.size
        );
        Ok(())
    }
}

impl Writer for RawStream {
    fn granularity(&self) -> u64 {
        1
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.check(offset..offset.saturating_add(data.len() as u64))?;
        self.put_zeros(offset)?;
        self.put(data)
    }

    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.check(range.clone())?;
        // At once, if all before is known: a list of all zeros would grow with the device.
        let known = self.zeros.outside(self.at..range.start).next().is_none();
        if known {
            self.fill(range.end)?;
        } else {
            self.zeros.insert(range);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.put_zeros(self.size)?;
        let last = std::mem::take(&mut self.last);
        let written = self.out.write_all(&last).and_then(|()| self.out.flush());
        written.with_context(|| format!("cannot write to {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Got;

    fn stream(size: u64) -> (Got, RawStream) {
        let got = Got::default();
        let stream = RawStream::new(Box::new(got.clone()), "a pipe", size);
        (got, stream)
    }

    #[test]
    fn all_bytes_come_in_order_and_the_last_ones_at_the_end() {
        let (got, mut stream) = stream(300_000);
        // What is not used is known before.
        stream.zero(100_000..250_000).unwrap();
        stream.write(0, &[1; 5000]).unwrap();
        stream.zero(5000..100_000).unwrap();
        stream.write(250_000, &[2; 50_000]).unwrap();
        let mut wanted = vec![1; 5000];
        wanted.resize(250_000, 0);
        wanted.resize(300_000, 2);
        assert!(*got.0.lock().unwrap() == wanted[..300_000 - 512]);
        stream.finish().unwrap();
        assert!(*got.0.lock().unwrap() == wanted);
    }

    #[test]
    fn holes_are_not_listed() {
        let (got, mut stream) = stream(100 * 1024);
        for at in (0..100 * 1024).step_by(1024) {
            stream.write(at, &[1; 512]).unwrap();
            stream.zero(at + 512..at + 1024).unwrap();
            assert!(stream.zeros.is_empty());
        }
        stream.finish().unwrap();
        assert_eq!(got.0.lock().unwrap().len(), 100 * 1024);
    }

    #[test]
    fn a_device_of_zeros_and_a_small_one() {
        for size in [0, 1, 512, 513, 200_000] {
            let (got, mut stream) = stream(size);
            stream.zero(0..size).unwrap();
            stream.finish().unwrap();
            assert!(*got.0.lock().unwrap() == vec![0; size as usize], "{size}");
        }
    }

    #[test]
    fn what_is_missing_or_comes_too_late_is_an_error() {
        let (got, mut stream) = stream(10_000);
        stream.write(0, &[1; 5000]).unwrap();
        let error = stream.write(4096, &[1; 512]).unwrap_err().to_string();
        assert!(error.contains("byte 4096 has changed"), "{error}");
        assert!(stream.zero(0..10).is_err());
        assert!(stream.write(5001, &[1]).is_err());
        assert!(stream.write(9999, &[1; 2]).is_err());
        assert!(stream.write(u64::MAX, &[1; 2]).is_err());
        assert!(stream.finish().is_err());
        assert_eq!(got.0.lock().unwrap().len(), 5000);
    }
}
