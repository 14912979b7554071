// SPDX-License-Identifier: GPL-2.0-or-later

//! A list of extents that is being written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use blake3::Hasher;

use super::index::Index;
use super::{Extent, Extents, write_line};
use crate::private;

/// Writes a list to a new file. Neighbouring zeros are joined.
pub struct ExtentsWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Hasher,
    index: Index,
    /// The last one, which may become longer.
    last: Option<Extent>,
    line: Vec<u8>,
}

impl ExtentsWriter {
    /// Makes the file, in the place of one that is there.
    pub fn create(path: &Path) -> Result<Self> {
        let file = private::replace(path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 16, file),
            hasher: Hasher::new(),
            index: Index::new(),
            last: None,
            line: Vec::new(),
        })
    }

    /// The end of the last extent.
    pub fn end(&self) -> u64 {
        let last = self.last.as_ref();
        last.map_or(self.index.end, |last| last.range().end)
    }

    /// Adds an extent, which follows all before.
    pub fn push(&mut self, extent: Extent) -> Result<()> {
        ensure!(
            extent.start >= self.end(),
            "the extent at byte {} does not follow the one that ends at byte {}",
            extent.start,
            self.end()
        );
        let joined = self.last.as_mut().is_some_and(|last| last.join(&extent));
        if !joined {
            self.write_last()?;
            self.last = Some(extent);
        }
        Ok(())
    }

    fn write_last(&mut self) -> Result<()> {
        let Some(extent) = self.last.take() else {
            return Ok(());
        };
        self.line.clear();
        let written = write_line(&mut self.line, &extent);
        written
            .and_then(|()| self.file.write_all(&self.line))
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hasher.update(&self.line);
        self.index.add(&extent, &self.line);
        Ok(())
    }

    /// Ends the list, which can be read then. It is not durable yet.
    pub fn finish(mut self) -> Result<Extents> {
        self.write_last()?;
        self.file
            .flush()
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        let index = self.index.into();
        Ok(Extents::of(&self.path, self.hasher.finalize(), index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_joined_and_nothing_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ExtentsWriter::create(&dir.path().join("x")).unwrap();
        let data = Extent::of(12, b"data");
        let zeros = |start, end| Extent::of_zeros(start..end);
        for extent in [
            zeros(0, 8),
            zeros(8, 12),
            data,
            zeros(16, 20),
            zeros(24, 28),
            zeros(28, 40),
        ] {
            writer.push(extent).unwrap();
        }
        assert_eq!(writer.end(), 40);
        assert!(writer.push(zeros(39, 41)).is_err());
        let list = writer.finish().unwrap();
        let read: Vec<_> = list.iter().map(Result::unwrap).collect();
        assert_eq!(read, [zeros(0, 12), data, zeros(16, 20), zeros(24, 40)]);
        assert_eq!(list.totals(), (4, 12 + 4 + 16));
    }
}
