// SPDX-License-Identifier: GPL-2.0-or-later

//! Comparing a backup with the image it was made from, byte for byte.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use blksnap::ByteSet;
use rustix::fs::{Advice, fadvise};

use crate::copy::{Source, stream};
use crate::progress::Progress;
use crate::signals::Signals;

/// Compares all of `source` with the file, but for what `excluded` gives at the time. Gives how
/// many bytes were left out.
///
/// `excluded` is asked again for each piece: it may grow meanwhile.
pub fn compare(
    source: &Source<'_>,
    path: &Path,
    excluded: impl Fn() -> ByteSet,
    signals: &Signals,
    progress: &mut Progress,
) -> Result<u64> {
    let failed = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(failed)?;
    // What is compared is what is on disk: the pages are clean by now, and are dropped.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let _ = fadvise(&file, 0, None, Advice::Sequential);
    let mut ours = vec![0; crate::buffer::SIZE];
    let mut skipped = 0;
    let mut wrong = ByteSet::default();
    stream(
        source,
        std::iter::once(0..source.size()),
        signals,
        |bytes, offset| {
            let ours = &mut ours[..bytes.len()];
            file.read_exact_at(ours, offset).with_context(failed)?;
            let end = offset + bytes.len() as u64;
            if ours != bytes {
                // Only here is it of interest what is left out.
                let excluded = excluded();
                for part in excluded.outside(offset..end) {
                    let place = (part.start - offset) as usize..(part.end - offset) as usize;
                    for at in differing(&ours[place.clone()], &bytes[place]) {
                        wrong.insert(part.start + at..part.start + at + 1);
                    }
                }
                skipped += excluded
                    .inside(offset..end)
                    .map(|part| part.end - part.start)
                    .sum::<u64>();
            }
            progress.advance(bytes.len() as u64);
            Ok(())
        },
    )?;
    let Some(first) = wrong.iter().next() else {
        return Ok(skipped);
    };
    bail!(
        "the backup {} differs from the image: {} bytes, in {} places, the first at byte {} ({} bytes)",
        path.display(),
        wrong.len(),
        wrong.iter().count(),
        first.start,
        first.end - first.start
    )
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
    fn differences_are_found_outside_of_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut data = vec![3u8; 3 << 20];
        std::fs::write(&a, &data).unwrap();
        data[5000] = 4;
        data[(2 << 20) + 7] = 4;
        std::fs::write(&b, &data).unwrap();
        let source = Source::open(&a).unwrap();
        let signals = Signals::catch().unwrap();
        let with = |ranges: &[std::ops::Range<u64>]| {
            let set: ByteSet = ranges.iter().cloned().collect();
            let mut progress = Progress::start("test", 0);
            compare(&source, &b, || set.clone(), &signals, &mut progress)
        };
        let text = with(&[]).unwrap_err().to_string();
        assert!(
            text.contains("2 bytes, in 2 places, the first at byte 5000"),
            "{text}"
        );
        let text = with(&[4096..8192]).unwrap_err().to_string();
        assert!(text.contains("first at byte 2097159"), "{text}");
        assert_eq!(
            with(&[4096..8192, 2 << 20..3 << 20]).unwrap(),
            4096 + (1 << 20)
        );
    }
}
