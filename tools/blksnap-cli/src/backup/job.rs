// SPDX-License-Identifier: GPL-2.0-or-later

//! The backup of one device: copied, brought up to date with what changed in its image meanwhile,
//! compared.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use blksnap::{ByteSet, CbtInfo, Session};
use blksnap_backup::{
    Chain, Checked, Copied, Recorder, Source, Watch, compare, differences, without,
};

use super::again::{Known, is_inside};
use super::phases::{Phase, Phases, Piece};
use super::plan::Plan;
use super::report::DeviceReport;
use crate::output;
use crate::used;

/// How often is looked for the reason of a difference, and how long between.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(50);

/// How much of a device is compared with the last backup, and what differs copied, at a time: a multiple
/// of all blocks. What differs is told in grains of 64 KiB, so it takes 20 MB at the most.
const COMPARED: u64 = 64 << 30;
/// How much is verified at a time: that tells sectors, and takes 80 MB.
const VERIFIED: u64 = 2 << 30;

/// What is in each window of `step` bytes of a device of `size`, if anything is.
fn windows(size: u64, step: u64, places: &ByteSet) -> impl Iterator<Item = ByteSet> {
    let windows = (0..size.div_ceil(step)).map(move |number| number * step..(number + 1) * step);
    windows
        .map(|window| places.inside(window).collect::<ByteSet>())
        .filter(|here| !here.is_empty())
}

/// How many blocks some ranges are in, which ascend.
#[derive(Default)]
struct Blocks {
    count: u64,
    next: u64,
}

impl Blocks {
    fn count(&mut self, places: &ByteSet, size: u64) {
        for range in places.iter() {
            let end = range.end.div_ceil(size);
            self.count += end.saturating_sub(self.next.max(range.start / size));
            self.next = self.next.max(end);
        }
    }
}

/// The backup of one device.
pub struct Job<'a> {
    session: &'a Session,
    phases: &'a Phases<'a>,
    image: &'a Path,
    info: CbtInfo,
    plan: Plan,
    recorder: Recorder,
    /// What was known before the last copying began.
    known: Known,
    /// Tracking blocks that a comparison has found to differ.
    differing: u64,
    /// What no file system uses, in whole blocks of the file.
    unused: ByteSet,
    checked: Checked,
    report: DeviceReport,
}

impl<'a> Job<'a> {
    /// Prepares the backup of the device number `index`.
    pub fn new(
        session: &'a Session,
        phases: &'a Phases<'a>,
        index: usize,
        info: CbtInfo,
        plan: Plan,
        recorder: Recorder,
    ) -> Result<Self> {
        let image = session.images()[index].path.as_path();
        let entry = recorder.entry();
        let size = Source::open(image)?.size();
        if size != info.capacity {
            bail!(
                "{} has {} bytes, its image {} has {size}",
                entry.path.display(),
                info.capacity,
                image.display(),
            );
        }
        let report = DeviceReport {
            device: entry.path.clone(),
            image: image.to_owned(),
            file: entry.file.clone().into(),
            kind: entry.kind,
            reason: entry.reason.clone(),
            since: plan.since(),
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
            bytes_unused: 0,
            unused_unknown: None,
            lost: Vec::new(),
        };
        Ok(Self {
            known: Known::now(session, &info)?,
            differing: 0,
            unused: ByteSet::default(),
            checked: Checked::default(),
            session,
            phases,
            image,
            info,
            plan,
            recorder,
            report,
        })
    }

    /// Looks for what no file system uses, which is not read then. Nor does the module copy it, if that
    /// is written: what is to be compared with older backups is not in it.
    pub fn leave_out_unused(&mut self) {
        let found = used::unused(self.image, self.info.device, self.info.capacity);
        self.unused = self.recorder.can_leave_out(&found.bytes);
        self.report.unused_unknown = Some(found.unknown.join("; ")).filter(|why| !why.is_empty());
        let told = self.session.give_unused(self.info.device, &self.unused);
        if let Err(error) = told {
            output::remark(format!("what is written there is copied: {error}"));
        }
    }

    /// All that is used.
    fn all(&self) -> ByteSet {
        self.unused.outside(0..self.info.capacity).collect()
    }

    /// Bytes that a comparison reads.
    pub fn size(&self) -> u64 {
        self.info.capacity - self.unused.len()
    }

    /// What has changed, used or not, and what was left out before and is used now. That may be without a
    /// change of it: fsck and programs that get deleted files back only change what says so.
    fn places(&self) -> ByteSet {
        let Some(since) = self.plan.since() else {
            return std::iter::once(0..self.info.capacity).collect();
        };
        let mut places: ByteSet = self.known.map().changed_since(since).collect();
        let used = without(&self.recorder.unused, &self.unused);
        used.iter().for_each(|range| places.insert(range));
        places
    }

    /// Bytes that will be read, as far as that is known before.
    pub fn expected(&self) -> u64 {
        without(&self.places(), &self.unused).len()
    }

    /// Copies what the plan says.
    pub fn copy(&mut self) -> Result<()> {
        let places = self.places();
        let zeros = self.recorder.leave_out(&places, &self.unused)?;
        self.report.bytes_unused = zeros.len();
        let places = without(&places, &zeros);
        if let Plan::Compared { chain, .. } = &mut self.plan {
            if let Some(chain) = chain.take() {
                return self.copy_differences(&chain, &places);
            }
        }
        let path = self.report.device.display();
        let what = match self.plan.since() {
            None => format!("{path}: copying everything"),
            Some(since) => format!("{path}: copying what changed since snapshot {since}"),
        };
        self.copy_places(what, places)?;
        Ok(())
    }

    /// Reads all, and copies what differs from the last backup.
    fn copy_differences(&mut self, last: &Chain, places: &ByteSet) -> Result<()> {
        let what = format!(
            "{}: comparing with the last backup, and copying what differs",
            self.report.device.display()
        );
        let progress = self.phases.begin(Phase::Comparing, what);
        let session = self.session;
        let mut blocks = Blocks::default();
        // In windows: what differs may be more than there is memory for.
        for here in windows(self.info.capacity, COMPARED, places) {
            let found = differences(
                self.image,
                last,
                &here,
                self.recorder.skip_unreadable,
                &progress,
                || session.check_after_error().map_err(Into::into),
            )?;
            self.report.bytes_copied += found.read;
            blocks.count(&found.places, self.info.block_size.into());
            self.copy_watched(&progress, found.places)?;
        }
        self.report.seconds += progress.finish();
        self.differing = blocks.count;
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
            let read = self.copy_places(what, changed.clone())?;
            self.report.bytes_copied_again += read;
        }
        Ok(changed)
    }

    /// Copies places; gives how many bytes were read.
    fn copy_places(&mut self, what: String, places: ByteSet) -> Result<u64> {
        let progress = self.phases.begin(Phase::Reading, what);
        let copied = self.copy_watched(&progress, places)?;
        progress.finish();
        self.report.seconds += copied.seconds;
        Ok(copied.read)
    }

    fn copy_watched(&mut self, progress: &Piece<'_>, places: ByteSet) -> Result<Copied> {
        // A snapshot that is lost cannot be read either.
        let session = self.session;
        let after_loss = || session.check_after_error().map_err(Into::into);
        let copied = self
            .recorder
            .copy(self.image, places, progress, after_loss)?;
        self.report.bytes_copied += copied.read;
        self.report.bytes_written += copied.written;
        Ok(copied)
    }

    /// Compares all of the backup, the base too, with the image.
    pub fn verify(&mut self) -> Result<()> {
        self.verify_places(self.all())?;
        self.report.verified = true;
        Ok(())
    }

    /// Compares places. A difference is an error, unless the image is known to have changed there.
    pub fn verify_places(&mut self, places: ByteSet) -> Result<()> {
        let what = format!("{}: comparing", self.report.device.display());
        let progress = self.phases.begin(Phase::Comparing, what);
        for left in windows(self.info.capacity, VERIFIED, &places) {
            self.verify_window(&progress, left)?;
        }
        progress.finish();
        Ok(())
    }

    /// The same of so many that what differs has room in memory.
    fn verify_window(&mut self, progress: &Piece<'_>, mut left: ByteSet) -> Result<()> {
        loop {
            // What could not be read cannot be compared.
            left = without(&left, &self.recorder.lost);
            let chain = self.chain()?;
            progress.expect(left.len());
            let wrong = compare(self.image, &chain, &left, progress)?;
            if wrong.is_empty() {
                return Ok(());
            }
            left = self.copy_explained(&wrong)?;
        }
    }

    /// The backup as it is now.
    fn chain(&mut self) -> Result<Chain> {
        let parts = self.plan.parts().iter().rev();
        // The lists below stay as they are.
        let layers = parts.map(|(dir, device)| self.checked.layer(dir.clone(), device));
        let mut layers = layers.collect::<Result<Vec<_>>>()?;
        layers.push(self.recorder.layer()?);
        Ok(Chain::new(layers))
    }

    /// Copies again what has changed in the image, and gives that, if this explains the differences.
    fn copy_explained(&mut self, wrong: &ByteSet) -> Result<ByteSet> {
        let mut changed = ByteSet::default();
        for _ in 0..LOOKS {
            self.copy_again()?
                .iter()
                .for_each(|range| changed.insert(range));
            if is_inside(wrong, &changed) {
                return Ok(changed);
            }
            // Storage of somebody else reads as zeros just before it is marked.
            std::thread::sleep(LOOK);
        }
        let first = wrong.iter().next().unwrap_or_default();
        bail!(
            "the backup of {} differs from the image: sectors of {} bytes, in {} places, the first at byte {} ({} bytes)",
            self.report.device.display(),
            wrong.len(),
            wrong.iter().count(),
            first.start,
            first.end - first.start
        )
    }

    /// What was recorded, to be finished, and what was done.
    pub fn finish(mut self) -> (Recorder, DeviceReport) {
        self.report.blocks_changed = match self.plan {
            Plan::Full { .. } => self.info.block_count.into(),
            Plan::Incremental { since, .. } => self.known.map().count_since(since) as u64,
            Plan::Compared { .. } => self.differing,
        };
        let lost = self.recorder.lost.iter();
        self.report.lost = lost
            .map(|range| [range.start, range.end - range.start])
            .collect();
        (self.recorder, self.report)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn blocks_are_counted_once() {
        let count = |parts: &[&[Range<u64>]]| {
            let mut blocks = Blocks::default();
            for ranges in parts {
                blocks.count(&ranges.iter().cloned().collect(), 10);
            }
            blocks.count
        };
        assert_eq!(count(&[&[]]), 0);
        assert_eq!(count(&[&[0..1, 2..3, 9..10]]), 1);
        assert_eq!(count(&[&[9..11, 19..20, 45..70]]), 2 + 3);
        assert_eq!(count(&[&[9..11, 19..20], &[], &[45..70]]), 2 + 3);
    }

    #[test]
    fn windows_are_all_of_the_places() {
        const WINDOW: u64 = 4096;
        let size = 4 * WINDOW + 512;
        let places = [5..6, WINDOW - 1..WINDOW + 1, 3 * WINDOW..size];
        let places: ByteSet = places.into_iter().collect();
        let found: Vec<Vec<_>> = windows(size, WINDOW, &places)
            .map(|here| here.iter().collect())
            .collect();
        assert_eq!(
            found,
            [
                vec![5..6, WINDOW - 1..WINDOW],
                vec![WINDOW..WINDOW + 1],
                vec![3 * WINDOW..4 * WINDOW],
                vec![4 * WINDOW..size]
            ]
        );
    }
}
