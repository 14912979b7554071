// SPDX-License-Identifier: GPL-2.0-or-later

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
    let mut recorder = Recorder::create(dir.path(), "id", entry, None, false).unwrap();
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
    for extent in layer.extents.iter().map(Result::unwrap) {
        if extent.hash.is_none() {
            continue;
        }
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
        let mut recorder = Recorder::create(dir.path(), "id", entry, None, false).unwrap();
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
            let stored = layer.extents.overlapping(place..place + 1).next();
            let stored = stored.unwrap().unwrap();
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
        // What was copied again is not left out any more.
        let listed: ByteSet = entry
            .unused
            .iter()
            .map(|&[at, size]| at..at + size)
            .collect();
        let copied = zeros.len() - listed.len();
        assert!(without(&listed, &zeros).is_empty(), "{format}");
        assert!(
            listed.inside(2 * mib..2 * mib + 4096).next().is_none(),
            "{format}"
        );
        assert!((4096..=65536).contains(&copied), "{format}: {copied}");
    }
}

#[test]
fn a_list_of_what_is_left_out_stays_short() {
    let set: ByteSet = [0..1, 5..9, 10..11, 13..20].into_iter().collect();
    let list = |most| coarse(set.clone(), most).iter().collect::<Vec<_>>();
    assert_eq!(list(4), [0..1, 5..9, 10..11, 13..20]);
    assert_eq!(list(3), [0..1, 5..11, 13..20]);
    assert_eq!(list(2), [0..1, 5..20]);
    assert!(coarse(ByteSet::default(), 1).is_empty());
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
        let (start, source) = (Instant::now(), Source::open(&image).unwrap());
        let mut buffer = Buffer::new();
        for at in (0..size).step_by(MIB) {
            source.read(at, &mut buffer.bytes_mut()[..MIB]).unwrap();
        }
        println!(
            "{round}: reading, one thread, as dd: {:.0} MiB/s",
            rate(start)
        );
        for (format, compress) in [
            (Format::Raw, false),
            (Format::Qcow2, false),
            (Format::Qcow2, true),
            (Format::RbdDiff, false),
        ] {
            let entry = Device {
                size,
                ..device("vda").stored_as(format)
            };
            let start = Instant::now();
            let recorder = Recorder::create(dir.path(), "id", entry, None, compress);
            let mut recorder = recorder.unwrap();
            let all = std::iter::once(0..size).collect();
            recorder.copy(&image, all, &Nobody, || Ok(())).unwrap();
            let small = if compress { ", compressed" } else { "" };
            println!("{round}: {format}{small}: {:.0} MiB/s", rate(start));
            std::fs::remove_file(dir.path().join(&recorder.entry().file)).unwrap();
        }
        let start = Instant::now();
        let work = || {
            let source = Source::open(&image)?;
            Ok(move |buffer: &mut Buffer, piece: &Range<u64>| {
                let bytes = &mut buffer.bytes_mut()[..(piece.end - piece.start) as usize];
                source.read(piece.start, bytes)?;
                Ok(cut(bytes, piece.start))
            })
        };
        let all = pieces(std::iter::once(0..size)).map(Ok);
        pipeline::run(all, work, &Nobody, |_, _, _| Ok(())).unwrap();
        println!("{round}: reading and checksums: {:.0} MiB/s", rate(start));
    }
}
