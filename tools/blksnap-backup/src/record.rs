// SPDX-License-Identifier: GPL-2.0-or-later

//! The files of one device in a backup being made: ranges of an image come in, the data goes to the
//! one file, the extents with their checksums to the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use blake3::Hash;
use blksnap::ByteSet;

use crate::buffer::{Buffer, runs};
use crate::chain::Layer;
use crate::copy::{Source, pieces, round_out};
use crate::extents::{Extent, cut};
use crate::format::{Base, Compressor, Reader, Writer};
use crate::manifest::Device;
use crate::pipeline;
use crate::recorded::Recorded;
use crate::unreadable;
use crate::watch::Watch;

/// The data of an extent, in a buffer that has that of a piece.
fn data_of<'a>(extent: &Extent, piece: &Range<u64>, bytes: &'a [u8]) -> &'a [u8] {
    let at = (extent.start - piece.start) as usize;
    &bytes[at..at + extent.length as usize]
}

/// The same as [`cut`] for data whose checksums nobody will look at.
fn cut_unchecked(bytes: &[u8], offset: u64) -> Vec<Extent> {
    let runs = runs(bytes, offset).into_iter();
    runs.map(|(run, zero)| Extent {
        start: offset + run.start as u64,
        length: run.len() as u64,
        hash: (!zero).then(|| Hash::from_bytes([0; 32])),
    })
    .collect()
}

/// What is in a set and not in another.
pub fn without(set: &ByteSet, other: &ByteSet) -> ByteSet {
    set.iter().flat_map(|range| other.outside(range)).collect()
}

/// The set with its smallest gaps closed, as far as it has more than `most` ranges.
fn coarse(mut set: ByteSet, most: usize) -> ByteSet {
    let next = set.iter().skip(1);
    let mut gaps: Vec<_> = set
        .iter()
        .zip(next)
        .map(|(last, next)| last.end..next.start)
        .collect();
    let close = (gaps.len() + 1).saturating_sub(most);
    gaps.sort_unstable_by_key(|gap| gap.end - gap.start);
    gaps.into_iter().take(close).for_each(|gap| set.insert(gap));
    set
}

/// Direct I/O wants no smaller pieces.
const BLOCK: u64 = 4096;

/// Unused places that are smaller are read: that is faster than to go around them.
const LEAST_UNUSED: u64 = 64 << 10;

/// So many ranges of what was left out are listed. What is between them is read again by each incremental backup.
const MOST_UNUSED: usize = 1 << 16;

/// What a copy has moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copied {
    /// Bytes read from the image.
    pub read: u64,
    /// Bytes stored; zeros are not.
    pub written: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Records one device.
pub struct Recorder {
    dir: PathBuf,
    entry: Device,
    writer: Box<dyn Writer>,
    /// What was copied; `None` if nobody will ask.
    recorded: Option<Recorded>,
    /// Whether what cannot be read is zeros, and no error.
    pub skip_unreadable: bool,
    /// What could not be read: at first what the base lacks.
    pub lost: ByteSet,
    /// What was left out, here or in what this is based on, and not copied since.
    pub unused: ByteSet,
}

impl Recorder {
    /// Makes the file that `entry` names, in the directory of the backup `id`. With `compress`, the data
    /// in it is made smaller.
    pub fn create(
        dir: &Path,
        id: &str,
        entry: Device,
        base: Option<&Base>,
        compress: bool,
    ) -> Result<Self> {
        let (path, format) = (dir.join(&entry.file), entry.file_format);
        let writer = format.create(&path, entry.size, id, base, compress)?;
        Ok(Self::with(entry, writer).listed_in(dir))
    }

    /// Has a writer store what is copied, and makes no list of it.
    pub fn with(entry: Device, writer: Box<dyn Writer>) -> Self {
        Self {
            dir: PathBuf::new(),
            entry,
            writer,
            recorded: None,
            skip_unreadable: false,
            lost: ByteSet::default(),
            unused: ByteSet::default(),
        }
    }

    /// Makes a list of what is copied, in a directory.
    pub fn listed_in(mut self, dir: &Path) -> Self {
        self.recorded = Some(Recorded::new(dir, &self.entry.extents, self.entry.size));
        self.dir = dir.to_owned();
        self
    }

    /// What the manifest will say.
    pub fn entry(&self) -> &Device {
        &self.entry
    }

    /// What can be left out of the places of the image, where nothing of `unused` is: whole blocks of the
    /// file, none of them small.
    pub fn can_leave_out(&self, unused: &ByteSet) -> ByteSet {
        let (unit, size) = (self.writer.granularity().max(BLOCK), self.entry.size);
        let whole = unused.iter().filter_map(|range| {
            let start = range.start.checked_next_multiple_of(unit)?;
            let end = if range.end >= size {
                size
            } else {
                range.end / unit * unit
            };
            (start.saturating_add(LEAST_UNUSED) <= end).then_some(start..end)
        });
        whole.collect()
    }

    /// Records zeros, without reading the image, for what of the places [can be left
    /// out](Self::can_leave_out), before anything is copied; gives where they are.
    pub fn leave_out(&mut self, places: &ByteSet, unused: &ByteSet) -> Result<ByteSet> {
        let unit = self.writer.granularity().max(BLOCK);
        let places = round_out(places, unit, self.entry.size);
        let unused = self.can_leave_out(unused);
        let zeros: ByteSet = places
            .iter()
            .flat_map(|range| unused.inside(range))
            .collect();
        for range in zeros.iter() {
            self.writer.zero(range)?;
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.leave_out(&zeros)?;
        }
        // Nobody misses what was not used.
        self.lost = without(&self.lost, &zeros);
        zeros.iter().for_each(|range| self.unused.insert(range));
        self.entry.unused_bytes += zeros.len();
        Ok(zeros)
    }

    /// Copies places of the image. What was copied before is replaced. When something could not be
    /// read and is skipped, `after_loss` says whether to go on.
    pub fn copy(
        &mut self,
        image: &Path,
        places: ByteSet,
        watch: &dyn Watch,
        after_loss: impl Fn() -> Result<()>,
    ) -> Result<Copied> {
        let unit = self.writer.granularity().max(BLOCK);
        let places = round_out(&places, unit, self.entry.size);
        let places = match &mut self.recorded {
            Some(recorded) => recorded.replace(places)?,
            None => places,
        };
        let started = Instant::now();
        watch.expect(places.len());
        let mut copied = Copied::default();
        // What is read now is known again, or lost again.
        self.lost = without(&self.lost, &places);
        self.unused = without(&self.unused, &places);
        let shared = self.writer.shared();
        let skip = self.skip_unreadable;
        let is_recorded = self.recorded.is_some();
        let compresses = self.writer.compresses();
        let start = || {
            let source = Source::open(image)?;
            let shared = shared.as_deref();
            let mut compressor = compresses.then(Compressor::new).transpose()?;
            Ok(move |buffer: &mut Buffer, piece: &Range<u64>| {
                let bytes = &mut buffer.bytes_mut()[..(piece.end - piece.start) as usize];
                let lost = match skip {
                    true => unreadable::read(&source, piece.start, bytes)?,
                    false => source.read(piece.start, bytes).map(|()| Vec::new())?,
                };
                let extents = match is_recorded {
                    true => cut(bytes, piece.start),
                    false => cut_unchecked(bytes, piece.start),
                };
                let mut compressed = Vec::new();
                for extent in extents.iter().filter(|extent| extent.hash.is_some()) {
                    let data = data_of(extent, piece, bytes);
                    if let Some(file) = shared {
                        file.write(extent.start, data)?;
                    }
                    if let Some(compressor) = &mut compressor {
                        compressed.push(compressor.compress(data)?);
                    }
                }
                Ok((extents, compressed, lost))
            })
        };
        let pieces = pieces(places.iter()).map(Ok);
        pipeline::run(pieces, start, watch, |buffer, piece, read| {
            let (extents, compressed, lost) = read;
            let mut compressed = compressed.into_iter();
            if !lost.is_empty() {
                after_loss()?;
            }
            lost.into_iter().for_each(|range| self.lost.insert(range));
            for extent in &extents {
                match extent.hash {
                    Some(_) if shared.is_some() => self.writer.stored(extent.range()),
                    Some(_) => {
                        let bytes = data_of(extent, &piece, buffer.bytes());
                        match compressed.next() {
                            Some(small) => {
                                self.writer.write_compressed(extent.start, bytes, &small)?;
                            }
                            None => self.writer.write(extent.start, bytes)?,
                        }
                    }
                    None => self.writer.zero(extent.range())?,
                }
                copied.written += extent.hash.map_or(0, |_| extent.length);
            }
            if let Some(recorded) = &mut self.recorded {
                extents.into_iter().try_for_each(|one| recorded.push(one))?;
            }
            copied.read += piece.end - piece.start;
            watch.advance(piece.end - piece.start);
            Ok(())
        })?;
        copied.seconds = started.elapsed().as_secs_f64();
        Ok(copied)
    }

    fn recorded(&mut self) -> Result<&mut Recorded> {
        self.recorded.as_mut().context("there is no list of it")
    }

    /// What was recorded so far, to be read.
    pub fn layer(&mut self) -> Result<Layer> {
        self.writer.finish()?;
        Ok(Layer {
            dir: self.dir.clone(),
            device: self.entry.clone(),
            extents: self.recorded()?.list()?.clone(),
        })
    }

    /// Makes the data whole, where there is no list of extents.
    pub fn close(mut self) -> Result<()> {
        self.writer.finish()
    }

    /// Makes the files whole and durable, and gives what the manifest says of them.
    pub fn finish(mut self) -> Result<Device> {
        self.writer.finish()?;
        let path = self.dir.join(&self.entry.file);
        let meta = path.metadata();
        let meta = meta.with_context(|| format!("cannot look at {}", path.display()))?;
        let extents = self.recorded()?.finish()?;
        self.entry.file_size = meta.len();
        self.entry.extents_blake3 = extents.hash().to_hex().to_string();
        (self.entry.data_bytes, self.entry.zero_bytes) = extents.totals();
        let list = |set: &ByteSet| {
            let ranges = set.iter();
            ranges
                .map(|range| [range.start, range.end - range.start])
                .collect()
        };
        self.entry.lost = list(&self.lost);
        self.entry.unused = list(&coarse(self.unused, MOST_UNUSED));
        Ok(self.entry)
    }
}

#[cfg(test)]
mod tests;
