// SPDX-License-Identifier: GPL-2.0-or-later

//! Streams against plain bytes, by the reader here and by another one.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::record::Record;
use super::*;
use crate::format::{Reader as _, Writer as _};
use crate::testing::test_dir;

/// The device is not a whole number of blocks.
const SIZE: u64 = 300 * BLOCK + 100;

/// Something stored: blocks, and what they are made of; zeros, if `None`.
type Step = (u64, u64, Option<u8>);

fn step() -> impl Strategy<Value = Step> {
    (0..301u64, 1..40u64, prop::option::weighted(0.6, 1u8..))
}

fn range(step: &Step) -> Range<u64> {
    let (first, count, _) = step;
    first * BLOCK..((first + count) * BLOCK).min(SIZE)
}

/// Stores in a stream and in the plain device; the stream ends in between.
fn store(stream: &mut Stream, device: &mut [u8], steps: &[Step]) {
    for (number, step) in steps.iter().enumerate() {
        if number == steps.len() / 2 {
            stream.finish().unwrap();
        }
        let Range { start, end } = range(step);
        let part = &mut device[start as usize..end as usize];
        part.fill(step.2.unwrap_or(0));
        match step.2 {
            Some(_) => stream.write(start, part).unwrap(),
            None => stream.zero(start..end).unwrap(),
        }
    }
    stream.finish().unwrap();
}

/// Applies streams by the script that knows nothing of the code here.
fn apply(target: &Path, streams: &[PathBuf]) -> Output {
    // Asked for now, as the program may have been built elsewhere.
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    Command::new("python3")
        .arg(here.join("../../tests/guest/rbd_diff.py"))
        .arg(target)
        .args(streams)
        .output()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn chains_are_the_device_for_us_and_for_others(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..20), 1..4)
    ) {
        let dir = test_dir();
        let mut device = vec![0; SIZE as usize];
        let mut streams = Vec::new();
        for (layer, steps) in layers.iter().enumerate() {
            let path = dir.path().join(layer.to_string());
            let from = layer.checked_sub(1).map(|before| format!("s{before}"));
            let to = format!("s{layer}");
            let mut stream = Stream::create(&path, SIZE, from.as_deref(), &to).unwrap();
            store(&mut stream, &mut device, steps);

            let diff = Diff::open(&path).unwrap();
            assert_eq!((diff.from(), diff.to(), diff.size()), (from.as_deref(), &*to, SIZE));
            for step in steps {
                let Range { start, end } = range(step);
                let mut data = vec![0xee; (end - start) as usize];
                diff.read(start, &mut data).unwrap();
                assert!(data == device[start as usize..end as usize]);
            }
            streams.push(path);
        }
        let target = dir.path().join("target");
        let output = apply(&target, &streams);
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(&target).unwrap() == device);
    }

    /// Nothing that a file can contain does more than fail.
    #[test]
    fn damaged_files_are_errors_or_other_data(
        changes in prop::collection::vec((0usize..300, any::<u8>()), 0..5),
        length in 0usize..3000,
    ) {
        let dir = test_dir();
        let path = dir.path().join("diff");
        let mut stream = Stream::create(&path, SIZE, Some("a"), "b").unwrap();
        let steps = [(0, 2, Some(1)), (4, 2, None), (1, 1, Some(3)), (8, 1, None)];
        store(&mut stream, &mut vec![0; SIZE as usize], &steps);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.len();
        for (at, value) in &changes {
            bytes[*at] = *value;
        }
        bytes.truncate(length);
        fs::write(&path, &bytes).unwrap();
        match Diff::open(&path) {
            Ok(diff) => {
                let mut data = [0; 4096];
                for at in 0..10 {
                    let _ = diff.read(at * BLOCK, &mut data);
                }
                assert!(!changes.is_empty() || length >= whole);
            }
            Err(_) => assert!(!changes.is_empty() || length < whole),
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_description() {
    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let pipe = Pipe::default();
    let mut stream = Stream::new(Box::new(pipe.clone()), "pipe", 2048, Some("one"), "two").unwrap();
    assert_eq!(stream.granularity(), BLOCK);
    stream.write(512, &[7; 512]).unwrap();
    stream.zero(1024..1536).unwrap();
    stream.zero(1536..2048).unwrap();
    stream.finish().unwrap();
    let mut wanted = b"rbd diff v1\n".to_vec();
    wanted.extend(b"f\x03\0\0\0one");
    wanted.extend(b"t\x03\0\0\0two");
    wanted.extend(b"s\0\x08\0\0\0\0\0\0");
    wanted.extend(b"w\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0");
    wanted.extend([7; 512]);
    wanted.extend(b"z\0\x04\0\0\0\0\0\0\0\x04\0\0\0\0\0\0");
    wanted.extend(b"e");
    assert_eq!(*pipe.0.lock().unwrap(), wanted);
}

#[test]
fn a_full_one_stores_no_zeros_and_reads_as_some() {
    let dir = test_dir();
    let path = dir.path().join("full");
    let size = 8 << 40;
    let mut stream = Stream::create(&path, size, None, "first").unwrap();
    stream.zero(0..size / 2).unwrap();
    stream.write(size / 2, &[1; 512]).unwrap();
    stream.zero(size / 2 + 512..size).unwrap();
    stream.finish().unwrap();
    assert_eq!(path.metadata().unwrap().len(), 12 + 10 + 9 + 17 + 512 + 1);
    let mut data = [2; 1024];
    let diff = Diff::open(&path).unwrap();
    diff.read(size / 2, &mut data).unwrap();
    assert_eq!((data[0], data[1023]), (1, 0));
    diff.read(0, &mut data).unwrap();
    assert_eq!(data, [0; 1024]);
}

#[test]
fn many_records_cost_little_memory() {
    let dir = test_dir();
    let path = dir.path().join("many");
    let count = 20_000;
    let mut stream = Stream::create(&path, count * 1024, Some("a"), "b").unwrap();
    for at in 0..count {
        stream.write(at * 1024, &[at as u8; 512]).unwrap();
        stream.zero(at * 1024 + 512..(at + 1) * 1024).unwrap();
    }
    stream.finish().unwrap();
    let diff = Diff::open(&path).unwrap();
    let marks: usize = diff.runs.iter().map(|run| run.marks.len()).sum();
    assert_eq!(marks, 40_000 / 64);
    for at in [0, 63, 64, 9_999, 19_998] {
        let mut data = [9; 2048];
        diff.read(at * 1024, &mut data).unwrap();
        assert_eq!(data[..512], [at as u8; 512]);
        assert_eq!(data[512..1024], [0; 512]);
        assert_eq!(data[1024..1536], [(at + 1) as u8; 512]);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let dir = test_dir();
    let path = dir.path().join("diff");
    for name in ["", "a@b", "a/b"] {
        assert!(Stream::new(Box::new(std::io::sink()), "sink", 512, None, name).is_err());
    }
    let mut stream = Stream::create(&path, 4096, Some("a"), "b").unwrap();
    assert!(Stream::create(&path, 4096, Some("a"), "b").is_err());
    assert!(stream.write(100, &[0; 412]).is_err());
    assert!(stream.write(0, &[0; 100]).is_err());
    assert!(stream.write(u64::MAX, &[0; 100]).is_err());
    assert!(stream.zero(0..8192).is_err());
    stream.write(512, &[1; 512]).unwrap();
    stream.finish().unwrap();
    let diff = Diff::open(&path).unwrap();
    let error = diff.read(0, &mut [0; 1024]).unwrap_err();
    assert!(
        error.to_string().contains("no data for byte 0 "),
        "{error:#}"
    );
    assert!(diff.read(4096, &mut [0; 1]).is_err());

    let [f, t, s] = [
        &b"f\x01\0\0\0a"[..],
        b"t\x01\0\0\0b",
        b"s\0\x10\0\0\0\0\0\0",
    ];
    let data = Record::Zeros(0..8192).to_bytes();
    let zeros = Record::Zeros(0..4096).to_bytes();
    let huge = [&b"w"[..], &[0xff; 16]].concat();
    let long = [&Record::Data(0..4096).to_bytes()[..], b"short"].concat();
    for (records, reason) in [
        (vec![t, s], "not whole"),
        (vec![t, b"e"], "size of the device"),
        (vec![s, b"e"], "leads to"),
        (vec![t, s, s, b"e"], "twice"),
        (vec![f, t, f, s, b"e"], "twice"),
        (vec![t, s, &zeros, f, b"e"], "too late"),
        (vec![t, s, b"e", b"e"], "follows its end"),
        (vec![t, s, &data, b"e"], "of a device of 4096"),
        (vec![t, s, &huge, b"e"], "damaged"),
        (vec![t, s, &long], "not whole"),
        (vec![t, s, b"q"], "no record"),
        (vec![b"t\xff\xff\xff\xff"], "a name of"),
    ] {
        fs::write(&path, [&MAGIC[..], &records.concat()].concat()).unwrap();
        let error = Diff::open(&path).err().unwrap();
        assert!(format!("{error:#}").contains(reason), "{reason}: {error:#}");
    }
    fs::write(&path, b"rbd diff v2\n").unwrap();
    let error = Diff::open(&path).err().unwrap();
    assert!(
        format!("{error:#}").contains("not an rbd-diff"),
        "{error:#}"
    );
}
