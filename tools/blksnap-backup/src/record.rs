// SPDX-License-Identifier: GPL-2.0-or-later

//! The files of one device in a backup being made: ranges of an image come in, the data goes to the
//! one file, the extents with their checksums to the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use blksnap::ByteSet;

use crate::buffer::Buffer;
use crate::chain::Layer;
use crate::copy::{Source, pieces, round_out};
use crate::extents::{Extent, Extents, cut};
use crate::format::{Base, Reader, Writer};
use crate::manifest::Device;
use crate::pipeline;
use crate::unreadable;
use crate::watch::Watch;

/// The data of an extent, in a buffer that has that of a piece.
fn data_of<'a>(extent: &Extent, piece: &Range<u64>, bytes: &'a [u8]) -> &'a [u8] {
    let at = (extent.start - piece.start) as usize;
    &bytes[at..at + extent.length as usize]
}

/// What is in a set and not in another.
pub fn without(set: &ByteSet, other: &ByteSet) -> ByteSet {
    set.iter().flat_map(|range| other.outside(range)).collect()
}

/// Direct I/O wants no smaller pieces.
const BLOCK: u64 = 4096;

/// Unused places that are smaller are read: that is faster than to go around them.
const LEAST_UNUSED: u64 = 64 << 10;

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
    extents: Extents,
    /// Whether what cannot be read is zeros, and no error.
    pub skip_unreadable: bool,
    /// What could not be read: at first what the base lacks.
    pub lost: ByteSet,
}

impl Recorder {
    /// Makes the file that `entry` names, in the directory of the backup `id`.
    pub fn create(dir: &Path, id: &str, entry: Device, base: Option<&Base>) -> Result<Self> {
        let path = dir.join(&entry.file);
        let writer = entry.file_format.create(&path, entry.size, id, base)?;
        Ok(Self::with(dir.to_owned(), entry, writer))
    }

    /// Stores what is recorded by a writer.
    pub fn with(dir: PathBuf, entry: Device, writer: Box<dyn Writer>) -> Self {
        Self {
            dir,
            entry,
            writer,
            extents: Extents::default(),
            skip_unreadable: false,
            lost: ByteSet::default(),
        }
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
        ensure!(
            self.extents.iter().next().is_none(),
            "something was copied before it was known what to leave out"
        );
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
        self.extents
            .add(Extents::new(zeros.iter().map(Extent::of_zeros).collect()));
        // Nobody misses what was not used.
        self.lost = without(&self.lost, &zeros);
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
        let places = self.extents.take_out(places);
        let started = Instant::now();
        watch.expect(places.len());
        let (mut copied, mut stored) = (Copied::default(), Extents::default());
        let ranges: Vec<_> = places.iter().collect();
        // What is read now is known again, or lost again.
        self.lost = without(&self.lost, &places);
        let shared = self.writer.shared();
        let skip = self.skip_unreadable;
        let start = || {
            let mut source = Source::open(image)?;
            let shared = shared.as_deref();
            Ok(move |buffer: &mut Buffer, piece: &Range<u64>| {
                let bytes = &mut buffer.bytes_mut()[..(piece.end - piece.start) as usize];
                let lost = match skip {
                    true => unreadable::read(&mut source, piece.start, bytes)?,
                    false => source.read(piece.start, bytes).map(|()| Vec::new())?,
                };
                let extents = cut(bytes, piece.start);
                for extent in extents.iter().filter(|extent| extent.hash.is_some()) {
                    if let Some(file) = shared {
                        file.write(extent.start, data_of(extent, piece, bytes))?;
                    }
                }
                Ok((extents, lost))
            })
        };
        let pieces = pieces(ranges.iter().cloned());
        pipeline::run(pieces, start, watch, |buffer, piece, (extents, lost)| {
            if !lost.is_empty() {
                after_loss()?;
            }
            lost.into_iter().for_each(|range| self.lost.insert(range));
            for extent in &extents {
                match extent.hash {
                    Some(_) if shared.is_some() => self.writer.stored(extent.range()),
                    Some(_) => {
                        let bytes = data_of(extent, &piece, buffer.bytes());
                        self.writer.write(extent.start, bytes)?;
                    }
                    None => self.writer.zero(extent.range())?,
                }
                copied.written += extent.hash.map_or(0, |_| extent.length);
            }
            stored.append(extents);
            copied.read += piece.end - piece.start;
            watch.advance(piece.end - piece.start);
            Ok(())
        })?;
        self.extents.add(stored);
        copied.seconds = started.elapsed().as_secs_f64();
        Ok(copied)
    }

    /// What was recorded so far, to be read.
    pub fn layer(&mut self) -> Result<Layer> {
        self.writer.finish()?;
        Ok(Layer {
            dir: self.dir.clone(),
            device: self.entry.clone(),
            extents: self.extents.clone(),
            hidden: ByteSet::default(),
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
        let (hash, _) = self.extents.write(&self.dir.join(&self.entry.extents))?;
        self.entry.file_size = meta.len();
        self.entry.extents_blake3 = hash.to_hex().to_string();
        (self.entry.data_bytes, self.entry.zero_bytes) = self.extents.totals();
        let lost = self.lost.iter();
        self.entry.lost = lost
            .map(|range| [range.start, range.end - range.start])
            .collect();
        Ok(self.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::testing::{device, test_dir};
    use crate::watch::Nobody;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_copied_again_replaces_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let mut data: Vec<u8> = (0..10 * MIB + 512)
            .map(|i| ((i * 7) >> 3) as u8 | 1)
            .collect();
        data[2 * MIB..5 * MIB].fill(0);
        std::fs::write(&image, &data).unwrap();
        let size = data.len() as u64;
        let entry = Device {
            size,
            ..device("vda")
        };
        let mut recorder = Recorder::create(dir.path(), "id", entry, None).unwrap();
        let all = std::iter::once(0..size).collect();
        let copied = recorder.copy(&image, all, &Nobody, || Ok(())).unwrap();
        assert_eq!((copied.read, copied.written), (size, size - 3 * MIB as u64));
        // One byte comes and one becomes a zero of many.
        data[3 * MIB + 5] = 1;
        data[6 * MIB..7 * MIB].fill(0);
        std::fs::write(&image, &data).unwrap();
        let mib = MIB as u64;
        let changed = [3 * mib + 5..3 * mib + 6, 6 * mib..7 * mib];
        let changed = changed.into_iter().collect();
        let copied = recorder.copy(&image, changed, &Nobody, || Ok(())).unwrap();
        assert_eq!(
            copied.read,
            BLOCK + mib,
            "a block of zeros, an extent of data"
        );
        let layer = recorder.layer().unwrap();
        let mut read = vec![0; data.len()];
        for extent in layer.extents.data() {
            let range = extent.start as usize..extent.range().end as usize;
            layer
                .reader()
                .unwrap()
                .read(extent.start, &mut read[range.clone()])
                .unwrap();
            assert!(extent.matches(&read[range]));
        }
        assert!(read == data);
        let entry = recorder.finish().unwrap();
        assert_eq!(entry.data_bytes + entry.zero_bytes, size);
        assert!(std::fs::read(dir.path().join("vda.raw")).unwrap() == data);
    }

    #[test]
    fn what_is_left_out_is_zeros_and_not_read() {
        for format in [Format::Raw, Format::Qcow2, Format::RbdDiff] {
            let dir = test_dir();
            let image = dir.path().join("image");
            let size = 10 * MIB as u64 + 512;
            std::fs::write(&image, vec![7; size as usize]).unwrap();
            let entry = Device {
                size,
                ..device("vda").stored_as(format)
            };
            let mut recorder = Recorder::create(dir.path(), "id", entry, None).unwrap();
            let all: ByteSet = std::iter::once(0..size).collect();
            let mib = MIB as u64;
            let unused = [mib + 1..3 * mib, 5 * mib..5 * mib + 8192, 9 * mib + 1..size];
            let unused: ByteSet = unused.into_iter().collect();
            let zeros = recorder.leave_out(&all, &unused).unwrap();
            assert!(without(&zeros, &unused).is_empty(), "{format}");
            assert_eq!(zeros.iter().count(), 2, "{format}: not the small one");
            let read = without(&all, &zeros);
            let copied = recorder
                .copy(&image, read.clone(), &Nobody, || Ok(()))
                .unwrap();
            assert_eq!(copied.read, read.len(), "{format}");
            // Zeros are read as such.
            let layer = recorder.layer().unwrap();
            let mut data = vec![1; 4096];
            for (place, byte) in [(2 * mib, 0), (mib, 7), (5 * mib, 7)] {
                let stored = layer.extents.overlapping(place..place + 1).next().unwrap();
                assert_eq!(stored.hash.is_none(), byte == 0, "{format}");
                if byte != 0 {
                    layer.reader().unwrap().read(place, &mut data).unwrap();
                    assert!(data.iter().all(|&found| found == byte), "{format}");
                }
            }
            // The image has changed there: it is copied now.
            let again = std::iter::once(2 * mib..2 * mib + 4096).collect();
            recorder.copy(&image, again, &Nobody, || Ok(())).unwrap();
            let layer = recorder.layer().unwrap();
            layer.reader().unwrap().read(2 * mib, &mut data).unwrap();
            assert!(data.iter().all(|&found| found == 7), "{format}");
            let entry = recorder.finish().unwrap();
            assert_eq!(entry.data_bytes + entry.zero_bytes, size, "{format}");
            assert_eq!(entry.unused_bytes, zeros.len(), "{format}");
        }
    }

    /// `cargo test --release -p blksnap-backup -- --ignored --nocapture speed`: what the processor can
    /// do, without a device that limits it.
    #[test]
    #[ignore = "a measurement, for people"]
    fn speed() {
        let dir = test_dir();
        let image = dir.path().join("image");
        let size: u64 = 1 << 30;
        let data: Vec<u8> = (0..MIB as u64 / 8)
            .flat_map(|i| (i | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        let file = std::fs::File::create_new(&image).unwrap();
        for at in (0..size).step_by(MIB) {
            std::os::unix::fs::FileExt::write_all_at(&file, &data, at).unwrap();
        }
        let rate = |start: Instant| (size >> 20) as f64 / start.elapsed().as_secs_f64();
        for round in 0..3 {
            let (start, mut source) = (Instant::now(), Source::open(&image).unwrap());
            let mut buffer = Buffer::new();
            for at in (0..size).step_by(MIB) {
                source.read(at, &mut buffer.bytes_mut()[..MIB]).unwrap();
            }
            println!(
                "{round}: reading, one thread, as dd: {:.0} MiB/s",
                rate(start)
            );
            for format in [Format::Raw, Format::Qcow2, Format::RbdDiff] {
                let entry = Device {
                    size,
                    ..device("vda").stored_as(format)
                };
                let start = Instant::now();
                let mut recorder = Recorder::create(dir.path(), "id", entry, None).unwrap();
                let all = std::iter::once(0..size).collect();
                recorder.copy(&image, all, &Nobody, || Ok(())).unwrap();
                println!("{round}: {format}: {:.0} MiB/s", rate(start));
                std::fs::remove_file(dir.path().join(&recorder.entry().file)).unwrap();
            }
            let start = Instant::now();
            let work = || {
                let mut source = Source::open(&image)?;
                Ok(move |buffer: &mut Buffer, piece: &Range<u64>| {
                    let bytes = &mut buffer.bytes_mut()[..(piece.end - piece.start) as usize];
                    source.read(piece.start, bytes)?;
                    Ok(cut(bytes, piece.start))
                })
            };
            let all = pieces(std::iter::once(0..size));
            pipeline::run(all, work, &Nobody, |_, _, _| Ok(())).unwrap();
            println!("{round}: reading and checksums: {:.0} MiB/s", rate(start));
        }
    }
}
