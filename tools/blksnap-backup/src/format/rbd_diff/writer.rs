// SPDX-License-Identifier: GPL-2.0-or-later

//! Writing a stream.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::record::{MAX_NAME, Record};
use super::{BLOCK, MAGIC};
use crate::format::Writer;
use crate::private;

/// A stream being written.
pub struct Stream {
    /// For messages.
    name: String,
    out: BufWriter<Box<dyn Write + Send>>,
    /// What must be made durable, if it is a file.
    file: Option<File>,
    /// Whether it is for an empty image.
    full: bool,
    size: u64,
    /// The end of what was stored.
    end: u64,
    /// Zeros not written yet, as more may follow.
    zeros: Range<u64>,
    /// Whether the record of the end is written.
    ended: bool,
}

impl Stream {
    /// Makes a file, which must not exist, for a device of `size` bytes: from the snapshot `from`
    /// (none for a full backup) to the snapshot `to`.
    pub fn create(path: &Path, size: u64, from: Option<&str>, to: &str) -> Result<Self> {
        let failed = || format!("cannot create {}", path.display());
        let file = private::create_new(path).with_context(failed)?;
        let out = Box::new(file.try_clone().with_context(failed)?);
        let mut stream = Self::new(out, &path.display().to_string(), size, from, to)?;
        stream.file = Some(file);
        Ok(stream)
    }

    /// Writes to something else, such as a pipe, which is called `name` in messages.
    pub fn new(
        out: Box<dyn Write + Send>,
        name: &str,
        size: u64,
        from: Option<&str>,
        to: &str,
    ) -> Result<Self> {
        let mut stream = Self {
            name: name.to_owned(),
            out: BufWriter::new(out),
            file: None,
            full: from.is_none(),
            size,
            end: 0,
            zeros: 0..0,
            ended: false,
        };
        stream.put(MAGIC)?;
        if let Some(from) = from {
            check_name(from)?;
            stream.put(&Record::From(from.len()).to_bytes())?;
            stream.put(from.as_bytes())?;
        }
        check_name(to)?;
        stream.put(&Record::To(to.len()).to_bytes())?;
        stream.put(to.as_bytes())?;
        stream.put(&Record::Size(size).to_bytes())?;
        Ok(stream)
    }

    /// Takes the end back, which only a file can do.
    fn reopen(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.ended) {
            return Ok(());
        }
        let failed = || format!("cannot add to {}", self.name);
        let mut file = self
            .file
            .as_ref()
            .context("it has ended")
            .with_context(failed)?;
        let end = -(Record::End.to_bytes().len() as i64);
        file.seek(SeekFrom::End(end))
            .and_then(|length| file.set_len(length))
            .with_context(failed)
    }

    /// Writes the zeros that were kept back.
    fn put_zeros(&mut self) -> Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros.is_empty() {
            return Ok(());
        }
        self.end = self.end.max(zeros.end);
        self.put(&Record::Zeros(zeros).to_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .with_context(|| format!("cannot write to {}", self.name))
    }

    /// Checks that a range is inside the device, and made of whole blocks.
    fn check(&self, range: &Range<u64>) -> Result<()> {
        let whole = |at: u64| at % BLOCK == 0 || at == self.size;
        ensure!(
            range.start <= range.end
                && range.end <= self.size
                && whole(range.start)
                && whole(range.end),
            "bytes {range:?} of a device of {} are no whole blocks of it",
            self.size
        );
        Ok(())
    }
}

/// Checks the name of a snapshot.
fn check_name(name: &str) -> Result<()> {
    ensure!(
        !name.is_empty() && name.len() <= MAX_NAME && !name.contains(['@', '/', '\0']),
        "`{name}` can't be the name of a snapshot of rbd"
    );
    Ok(())
}

impl Writer for Stream {
    fn granularity(&self) -> u64 {
        BLOCK
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let range = offset..offset.saturating_add(data.len() as u64);
        self.check(&range)?;
        self.reopen()?;
        self.put_zeros()?;
        if data.is_empty() {
            return Ok(());
        }
        self.end = self.end.max(range.end);
        self.put(&Record::Data(range).to_bytes())?;
        self.put(data)
    }

    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        self.reopen()?;
        // A new image is empty where nothing was stored.
        if self.full && range.start >= self.end.max(self.zeros.end) {
            return Ok(());
        }
        if range.start == self.zeros.end && !self.zeros.is_empty() {
            self.zeros.end = range.end;
            return Ok(());
        }
        self.put_zeros()?;
        self.zeros = range;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if !self.ended {
            self.put_zeros()?;
            self.put(&Record::End.to_bytes())?;
            self.ended = true;
        }
        let flushed = self.out.flush();
        flushed
            .and_then(|()| self.file.as_ref().map_or(Ok(()), File::sync_all))
            .with_context(|| format!("cannot write to {}", self.name))
    }
}
