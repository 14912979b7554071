// SPDX-License-Identifier: GPL-2.0-or-later

//! The list of extents of a device while it is copied, in files of the directory of the backup.
//!
//! What is copied mostly ascends, and is one list. What is copied again later is another, which hides
//! something of those before; in the end all are merged.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blksnap::ByteSet;

use crate::extents::{Extent, Extents, ExtentsWriter};
use crate::seen::seen;

/// What was recorded.
pub struct Recorded {
    path: PathBuf,
    size: u64,
    /// The oldest first.
    lists: Vec<Extents>,
    /// The newest.
    growing: Option<ExtentsWriter>,
    /// Zeros that belong between what will be copied first, the last one first.
    left_out: Vec<Range<u64>>,
    /// The number of the next list.
    next: u32,
}

impl Recorded {
    /// Nothing yet, of a device of `size` bytes; the list will have a name in a directory.
    pub fn new(dir: &Path, name: &str, size: u64) -> Self {
        Self {
            path: dir.join(name),
            size,
            lists: Vec::new(),
            growing: None,
            left_out: Vec::new(),
            next: 0,
        }
    }

    /// Has zeros in some places, of which nothing will be copied first.
    pub fn leave_out(&mut self, zeros: &ByteSet) -> Result<()> {
        ensure!(
            self.growing.is_none() && self.lists.is_empty(),
            "something was copied before it was known what to leave out"
        );
        self.left_out = zeros.iter().collect();
        self.left_out.reverse();
        Ok(())
    }

    /// Gives what is to be copied if some places are to: these, and the rest of the extents whose checksums
    /// would not be right any more. What is [pushed](Self::push) then is all of that.
    pub fn replace(&mut self, places: ByteSet) -> Result<ByteSet> {
        let Some(first) = places.iter().next() else {
            return Ok(places);
        };
        let follows = |growing: &ExtentsWriter| first.start >= growing.end();
        if !self.growing.as_ref().is_some_and(follows) {
            self.close()?;
        }
        let mut all = places;
        let mut cut = Vec::new();
        for one in seen(&self.lists, &all) {
            let one = one?;
            // Zeros can be cut anywhere.
            if !one.is_zeros() && !one.is_whole() {
                cut.push(one.extent.range());
            }
        }
        cut.into_iter().for_each(|range| all.insert(range));
        if self.growing.is_none() {
            self.growing = Some(ExtentsWriter::create(&self.next_path())?);
        }
        Ok(all)
    }

    /// Adds an extent that was copied.
    pub fn push(&mut self, extent: Extent) -> Result<()> {
        let Some(growing) = &mut self.growing else {
            bail!("nothing was to be replaced");
        };
        let before = |zeros: &Range<u64>| zeros.start < extent.start;
        while self.left_out.last().is_some_and(before) {
            let zeros = self.left_out.pop().unwrap_or_default();
            growing.push(Extent::of_zeros(zeros))?;
        }
        growing.push(extent)
    }

    /// All that was recorded so far, as one list. It is good until something else is copied.
    pub fn list(&mut self) -> Result<&Extents> {
        self.close()?;
        if self.lists.len() != 1 {
            let mut merged = ExtentsWriter::create(&self.next_path())?;
            let all = ByteSet::from_iter([0..self.size]);
            for one in seen(&self.lists, &all) {
                let one = one?;
                ensure!(one.is_whole(), "an extent was copied again in part");
                merged.push(one.extent)?;
            }
            let merged = merged.finish()?;
            for list in std::mem::replace(&mut self.lists, vec![merged]) {
                let path = list.path();
                fs::remove_file(path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        self.lists.first().context("no list")
    }

    /// Gives the list its name, and makes it durable.
    pub fn finish(&mut self) -> Result<Extents> {
        self.list()?;
        let list = self.lists.pop().context("no list")?.renamed(&self.path)?;
        File::open(&self.path)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write back {}", self.path.display()))?;
        Ok(list)
    }

    /// Ends the newest list.
    fn close(&mut self) -> Result<()> {
        if self.growing.is_none() && !self.left_out.is_empty() {
            self.growing = Some(ExtentsWriter::create(&self.next_path())?);
        }
        let Some(mut growing) = self.growing.take() else {
            return Ok(());
        };
        while let Some(zeros) = self.left_out.pop() {
            growing.push(Extent::of_zeros(zeros))?;
        }
        self.lists.push(growing.finish()?);
        Ok(())
    }

    fn next_path(&mut self) -> PathBuf {
        let number = self.next;
        self.next += 1;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 65536;

    fn set(ranges: &[Range<u64>]) -> ByteSet {
        let scaled = ranges
            .iter()
            .map(|range| range.start * UNIT..range.end * UNIT);
        scaled.collect()
    }

    fn data(range: Range<u64>) -> Extent {
        Extent {
            length: (range.end - range.start) * UNIT,
            ..Extent::of(range.start * UNIT, b"x")
        }
    }

    fn zeros(range: Range<u64>) -> Extent {
        Extent::of_zeros(range.start * UNIT..range.end * UNIT)
    }

    #[test]
    fn whole_extents_of_data_are_copied_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorded = Recorded::new(dir.path(), "x.jsonl", 40 * UNIT);
        recorded.leave_out(&set(&[10..12, 38..40])).unwrap();
        assert!(recorded.push(data(0..1)).is_err(), "nobody asked");
        let first = set(&[0..10, 12..20]);
        assert_eq!(recorded.replace(first.clone()).unwrap(), first);
        for extent in [zeros(0..4), data(4..10), data(12..20)] {
            recorded.push(extent).unwrap();
        }
        // What follows is in the same list.
        let next = set(&[20..38]);
        assert_eq!(recorded.replace(next.clone()).unwrap(), next);
        recorded.push(data(20..30)).unwrap();
        recorded.push(zeros(30..38)).unwrap();
        let list = |recorded: &mut Recorded| {
            let list = recorded.list().unwrap().iter();
            list.map(Result::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(
            list(&mut recorded),
            [
                zeros(0..4),
                data(4..10),
                zeros(10..12),
                data(12..20),
                data(20..30),
                zeros(30..40)
            ]
        );
        // Of zeros a part, of data all.
        let again = recorded.replace(set(&[1..2, 13..14, 39..40])).unwrap();
        assert_eq!(again, set(&[1..2, 12..20, 39..40]));
        for extent in [data(1..2), data(12..20), data(39..40)] {
            recorded.push(extent).unwrap();
        }
        let again = recorded.replace(set(&[19..21])).unwrap();
        assert_eq!(again, set(&[12..30]));
        recorded.push(zeros(12..29)).unwrap();
        recorded.push(data(29..30)).unwrap();
        assert!(recorded.replace(ByteSet::default()).unwrap().is_empty());
        let expected = [
            zeros(0..1),
            data(1..2),
            zeros(2..4),
            data(4..10),
            zeros(10..29),
            data(29..30),
            zeros(30..39),
            data(39..40),
        ];
        assert_eq!(list(&mut recorded), expected);
        let done = recorded.finish().unwrap();
        let found: Vec<_> = done.iter().map(Result::unwrap).collect();
        assert_eq!(found, expected);
        assert!(done.is_all(40 * UNIT));
        let left = fs::read_dir(dir.path())
            .unwrap()
            .map(|one| one.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["x.jsonl"]);
    }

    #[test]
    fn nothing_is_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let list = Recorded::new(dir.path(), "x", 7).finish().unwrap();
        assert_eq!(list.count(), 0);
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"");
    }
}
