// SPDX-License-Identifier: GPL-2.0-or-later

//! The backup of one device: copied, brought up to date with what changed in its image meanwhile,
//! compared.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use blksnap::{ByteSet, CbtInfo, Session};

use super::again::{Known, is_inside, ranges};
use super::directory::Draft;
use super::plan::Plan;
use super::report::{DeviceReport, Kind};
use crate::compare::compare;
use crate::copy::{Source, Target, Zeros, copy};
use crate::progress::Progress;
use crate::signals::Signals;

/// How often is looked for the reason of a difference, and how long between.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(50);

/// The backup of one device.
pub struct Job<'a> {
    session: &'a Session,
    signals: &'a Signals,
    image: &'a Path,
    info: CbtInfo,
    plan: Plan,
    draft: Draft,
    /// What was known before the last copying began.
    known: Known,
    report: DeviceReport,
}

impl<'a> Job<'a> {
    /// Prepares the backup of the device number `index` to a draft.
    pub fn new(
        session: &'a Session,
        signals: &'a Signals,
        index: usize,
        info: CbtInfo,
        plan: Plan,
        draft: Draft,
    ) -> Result<Self> {
        let image = session.images()[index].path.as_path();
        let (kind, reason, since) = match &plan {
            Plan::Full { reason } => (Kind::Full, reason.clone(), None),
            Plan::Incremental { since } => (Kind::Incremental, String::new(), Some(*since)),
        };
        let report = DeviceReport {
            device: draft.entry.path.clone(),
            image: image.to_owned(),
            file: draft.entry.file.clone().into(),
            kind,
            reason,
            since,
            number: info.number,
            generation: info.generation.0,
            size: info.capacity,
            block_size: info.block_size,
            blocks: info.block_count.into(),
            blocks_changed: 0,
            bytes_copied: 0,
            bytes_copied_again: 0,
            bytes_written: 0,
            seconds: 0.0,
            verified: false,
        };
        Ok(Self {
            known: Known::now(session, &info)?,
            session,
            signals,
            image,
            info,
            plan,
            draft,
            report,
        })
    }

    /// Whether the earlier backup is changed in place.
    pub fn in_place(&self) -> bool {
        self.draft.in_place()
    }

    /// Copies what the plan says.
    pub fn copy(&mut self) -> Result<()> {
        let path = self.report.device.display();
        let (what, ranges) = match self.plan {
            Plan::Full { .. } => (
                format!("{path}: copying everything"),
                std::iter::once(0..self.info.capacity).collect(),
            ),
            Plan::Incremental { since } => (
                format!("{path}: copying what changed since snapshot {since}"),
                self.known.map().changed_since(since).collect(),
            ),
        };
        self.copy_ranges(what, ranges, self.draft.zeros())?;
        Ok(())
    }

    /// Copies again what has changed in the image since it was copied; gives what that was.
    pub fn copy_again(&mut self) -> Result<ByteSet> {
        let known = Known::now(self.session, &self.info)?;
        let changed = known.changed_since(&self.known, self.info.capacity);
        self.known = known;
        if !changed.is_empty() {
            let path = self.report.device.display();
            let what = format!("{path}: copying again what has changed in the image");
            // What is zero now was not when it was copied before.
            let copied = self.copy_ranges(what, ranges(&changed), Zeros::Punch)?;
            self.report.bytes_copied_again += copied;
        }
        Ok(changed)
    }

    /// Copies ranges; gives how many bytes were read.
    fn copy_ranges(&mut self, what: String, ranges: Vec<Range<u64>>, zeros: Zeros) -> Result<u64> {
        let source = self.source()?;
        let mut target = Target::new(self.draft.path(), self.draft.file(), zeros);
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        let mut progress = Progress::start(what, bytes);
        let ranges = ranges.into_iter();
        let copied = copy(&source, &mut target, ranges, self.signals, &mut progress)?;
        self.report.bytes_copied += copied.read;
        self.report.bytes_written += copied.written;
        self.report.seconds += progress.finish();
        Ok(copied.read)
    }

    /// Compares all of the backup with the image.
    pub fn verify(&mut self) -> Result<()> {
        self.verify_ranges(vec![0..self.info.capacity])?;
        self.report.verified = true;
        Ok(())
    }

    /// Compares ranges. A difference is an error, unless the image is known to have changed there.
    pub fn verify_ranges(&mut self, mut todo: Vec<Range<u64>>) -> Result<()> {
        loop {
            let what = format!("{}: comparing", self.report.device.display());
            let bytes = todo.iter().map(|range| range.end - range.start).sum();
            let mut progress = Progress::start(what, bytes);
            let source = self.source()?;
            let path = self.draft.path();
            let pieces = todo.into_iter();
            let wrong = compare(&source, path, pieces, self.signals, &mut progress)?;
            progress.finish();
            if wrong.is_empty() {
                return Ok(());
            }
            todo = self.copy_explained(&wrong)?;
        }
    }

    /// Copies again what has changed in the image, and gives that, if this explains the differences.
    fn copy_explained(&mut self, wrong: &ByteSet) -> Result<Vec<Range<u64>>> {
        let mut changed = ByteSet::default();
        for _ in 0..LOOKS {
            self.copy_again()?
                .iter()
                .for_each(|range| changed.insert(range));
            if is_inside(wrong, &changed) {
                return Ok(ranges(&changed));
            }
            // Storage of somebody else reads as zeros just before it is marked.
            std::thread::sleep(LOOK);
        }
        let first = wrong.iter().next().unwrap_or_default();
        bail!(
            "the backup {} differs from the image: {} bytes, in {} places, the first at byte {} ({} bytes)",
            self.draft.path().display(),
            wrong.len(),
            wrong.iter().count(),
            first.start,
            first.end - first.start
        )
    }

    /// Opens the image.
    fn source(&self) -> Result<Source<'a>> {
        let source = Source::open(self.image)?;
        if source.size() != self.info.capacity {
            bail!(
                "{} has {} bytes, its image {} has {}",
                self.report.device.display(),
                self.info.capacity,
                self.image.display(),
                source.size()
            );
        }
        Ok(source)
    }

    /// The result, and what was done.
    pub fn finish(mut self) -> (Draft, DeviceReport) {
        self.report.blocks_changed = match self.plan {
            Plan::Full { .. } => self.info.block_count.into(),
            Plan::Incremental { since } => self.known.map().count_since(since) as u64,
        };
        (self.draft, self.report)
    }
}
