// SPDX-License-Identifier: GPL-2.0-or-later

//! Comparing a backup with the image it was made from, byte for byte.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use blksnap::ByteSet;
use rustix::fs::{Advice, fadvise};

use crate::copy::{Source, stream};
use crate::progress::Progress;
use crate::signals::Signals;

/// Compares ranges of `source` with the same ones of a file. Gives the bytes that differ.
pub fn compare(
    source: &Source<'_>,
    path: &Path,
    ranges: impl Iterator<Item = Range<u64>> + Send,
    signals: &Signals,
    progress: &mut Progress,
) -> Result<ByteSet> {
    let failed = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(failed)?;
    // What is compared is what is on disk: the pages are clean by now, and are dropped.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let _ = fadvise(&file, 0, None, Advice::Sequential);
    let mut ours = vec![0; crate::buffer::SIZE];
    let mut wrong = ByteSet::default();
    stream(source, ranges, signals, |bytes, offset| {
        let ours = &mut ours[..bytes.len()];
        file.read_exact_at(ours, offset).with_context(failed)?;
        if ours != bytes {
            for at in differing(ours, bytes) {
                wrong.insert(offset + at..offset + at + 1);
            }
        }
        progress.advance(bytes.len() as u64);
        Ok(())
    })?;
    Ok(wrong)
}

/// Where two pieces of the same length differ.
fn differing<'a>(a: &'a [u8], b: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
    let both = a.iter().zip(b).enumerate();
    both.filter(|(_, (a, b))| a != b).map(|(at, _)| at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_in_the_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut data = vec![3u8; 3 << 20];
        std::fs::write(&a, &data).unwrap();
        data[5000..5002].fill(4);
        data[(2 << 20) + 7] = 4;
        std::fs::write(&b, &data).unwrap();
        let source = Source::open(&a).unwrap();
        let signals = Signals::catch().unwrap();
        let with = |range: Range<u64>| {
            let mut progress = Progress::start("test", 0);
            let ranges = std::iter::once(range);
            let wrong = compare(&source, &b, ranges, &signals, &mut progress);
            wrong.unwrap().iter().collect::<Vec<_>>()
        };
        let place = (2 << 20) + 7;
        assert_eq!(with(0..source.size()), [5000..5002, place..place + 1]);
        assert_eq!(with(8192..3 << 20), [place..place + 1]);
        assert_eq!(with(8192..1 << 20), []);
    }
}
