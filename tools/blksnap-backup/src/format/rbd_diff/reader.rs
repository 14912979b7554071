// SPDX-License-Identifier: GPL-2.0-or-later

//! Reading a file of records at any place.
//!
//! The records are looked at once, data left out. They mostly ascend: such a *run* is remembered by
//! every [`EVERY`]th record, from where the others are found again, so that a file of millions of
//! records costs little memory.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::MAGIC;
use super::record::{HEAD, Record};
use crate::format::Reader;

/// Of so many records of a run, the place of one is kept.
const EVERY: usize = 64;

/// A whole file of records.
pub struct Diff {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    length: u64,
    from: Option<String>,
    to: String,
    size: u64,
    pub(super) runs: Vec<Run>,
}

/// Consecutive records of which each begins where the one before ends, or behind.
pub(super) struct Run {
    /// From the first to the last byte of the device that it has something of.
    range: Range<u64>,
    /// Records in it.
    count: usize,
    /// Of some records, the first byte of the device and the place in the file.
    pub(super) marks: Vec<(u64, u64)>,
    /// The end of the last record in the file.
    end: u64,
}

impl Diff {
    /// Opens a file, and checks all of it but the data.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok::<_, std::io::Error>((file, length))
        };
        let (file, length) = open().with_context(|| format!("cannot open {}", path.display()))?;
        let mut diff = Self {
            path: path.to_owned(),
            file,
            length,
            from: None,
            to: String::new(),
            size: 0,
            runs: Vec::new(),
        };
        diff.load().with_context(|| path.display().to_string())?;
        Ok(diff)
    }

    /// The snapshot it starts from, if it is not that of a full backup.
    #[cfg(test)]
    pub fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }

    /// The snapshot it leads to.
    #[cfg(test)]
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Bytes in the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Looks at all records.
    fn load(&mut self) -> Result<()> {
        let mut magic = [0; MAGIC.len()];
        let is_diff = self.file.read_exact_at(&mut magic, 0).is_ok() && magic == *MAGIC;
        ensure!(is_diff, "not an rbd-diff of version 1");
        let mut place = MAGIC.len() as u64;
        let (mut to, mut size, mut data) = (None, None, false);
        loop {
            let start = place;
            let (record, next) = self.record(place)?;
            place = next;
            let again = match &record {
                Record::From(length) => self.from.replace(self.name(start, *length)?).is_some(),
                Record::To(length) => to.replace(self.name(start, *length)?).is_some(),
                Record::Size(bytes) => size.replace(*bytes).is_some(),
                Record::Data(range) | Record::Zeros(range) => {
                    let size = size.context("damaged: the size of the device is missing")?;
                    ensure!(
                        range.end <= size,
                        "damaged: bytes {range:?} of a device of {size}"
                    );
                    self.remember(range.clone(), start, next);
                    data = true;
                    continue;
                }
                Record::End => break,
            };
            ensure!(!again && !data, "damaged: {record:?} twice, or too late");
        }
        ensure!(
            place == self.length,
            "damaged: something follows its end at byte {place}"
        );
        self.to = to.context("damaged: the snapshot it leads to is missing")?;
        self.size = size.context("damaged: the size of the device is missing")?;
        Ok(())
    }

    /// Reads the record at a place of the file, and says where the next one is.
    fn record(&self, place: u64) -> Result<(Record, u64)> {
        let mut head = [0; HEAD];
        let length = (HEAD as u64).min(self.length - place) as usize;
        let head = &mut head[..length];
        self.file.read_exact_at(head, place)?;
        let (record, length) = Record::parse(head)?;
        let follows = match &record {
            Record::From(length) | Record::To(length) => *length as u64,
            Record::Data(range) => range.end - range.start,
            _ => 0,
        };
        let head_end = place + length as u64;
        if follows > self.length - head_end {
            bail!("it ends early; it is not whole");
        }
        Ok((record, head_end + follows))
    }

    /// Reads the name that belongs to a record.
    fn name(&self, place: u64, length: usize) -> Result<String> {
        let mut name = vec![0; length];
        self.file.read_exact_at(&mut name, place + 5)?;
        String::from_utf8(name).context("damaged: the name of a snapshot")
    }

    /// Notes a record.
    fn remember(&mut self, range: Range<u64>, place: u64, end: u64) {
        if range.is_empty() {
            return;
        }
        let mark = (range.start, place);
        match self.runs.last_mut() {
            Some(run) if run.range.end <= range.start => {
                if run.count % EVERY == 0 {
                    run.marks.push(mark);
                }
                run.count += 1;
                run.range.end = range.end;
                run.end = end;
            }
            _ => self.runs.push(Run {
                range,
                count: 1,
                marks: vec![mark],
                end,
            }),
        }
    }

    /// Reads those parts of `data`, which begins at `offset` of the device, that are in `gaps` and
    /// in the run. Gives what is left of the gaps.
    fn fill(
        &self,
        run: &Run,
        gaps: Vec<Range<u64>>,
        offset: u64,
        data: &mut [u8],
    ) -> Result<Vec<Range<u64>>> {
        let mut left = Vec::new();
        for gap in gaps {
            let mut at = gap.start;
            let mark = run.marks.partition_point(|(start, _)| *start <= at);
            let mut place = run.marks[mark.saturating_sub(1)].1;
            while at < gap.end && place < run.end {
                let (record, next) = self.record(place)?;
                if let Record::Data(range) | Record::Zeros(range) = &record {
                    if range.start >= gap.end {
                        break;
                    }
                    let both = at.max(range.start)..gap.end.min(range.end);
                    if !both.is_empty() {
                        left.push(at..both.start);
                        // Inside `data`, as the gap is.
                        let part = (both.start - offset) as usize..(both.end - offset) as usize;
                        let part = &mut data[part];
                        if matches!(record, Record::Data(_)) {
                            let from = place + HEAD as u64 + (both.start - range.start);
                            self.file.read_exact_at(part, from)?;
                        } else {
                            part.fill(0);
                        }
                        at = both.end;
                    }
                }
                place = next;
            }
            left.push(at..gap.end);
        }
        left.retain(|gap| !gap.is_empty());
        Ok(left)
    }
}

impl Reader for Diff {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let path = self.path.display();
        let length = data.len() as u64;
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let Some(end) = end else {
            bail!(
                "{path}: {length} bytes at byte {offset} of a device of {}",
                self.size
            );
        };
        let mut gaps = vec![offset..end];
        // The last record counts.
        for run in self.runs.iter().rev() {
            if gaps.is_empty() {
                break;
            }
            if run.range.start < end && offset < run.range.end {
                gaps = self
                    .fill(run, gaps, offset, data)
                    .with_context(|| format!("cannot read {path}"))?;
            }
        }
        for gap in gaps {
            ensure!(
                self.from.is_none(),
                "{path} is damaged: it has no data for byte {} of the device",
                gap.start
            );
            data[(gap.start - offset) as usize..(gap.end - offset) as usize].fill(0);
        }
        Ok(())
    }
}
