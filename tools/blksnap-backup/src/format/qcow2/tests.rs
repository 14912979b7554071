// SPDX-License-Identifier: GPL-2.0-or-later

//! Chains of images against plain files, by the reader here and by QEMU's.

pub mod crash;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::format::{Reader as _, Writer as _};
use crate::testing::{noise, test_dir};

/// A device of three L2 tables whose last cluster is not whole.
const SIZE: u64 = 2 * PER_L2 + 3 * CLUSTER + 1536;
/// Where things are done: clusters around the ends of L2 tables, and of the device.
const PLACES: [u64; 18] = [
    0, 1, 2, 3, 4, 5, 8189, 8190, 8191, 8192, 8193, 8194, 16382, 16383, 16384, 16385, 16386, 16387,
];

/// Something stored.
#[derive(Clone, Debug)]
struct Step {
    /// An index in [`PLACES`].
    place: usize,
    /// Clusters.
    count: u64,
    /// What the data is made of; zeros, if `None`.
    data: Option<u8>,
}

impl Step {
    fn range(&self) -> Range<u64> {
        let start = PLACES[self.place] * CLUSTER;
        start..(start + self.count * CLUSTER).min(SIZE)
    }

    /// Data that is not the same in any two blocks; of each fourth kind, such as does not get smaller.
    fn bytes(&self) -> Vec<u8> {
        let Range { start, end } = self.range();
        if let Some(kind) = self.data.filter(|kind| kind % 4 == 0) {
            return noise(start + u64::from(kind), (end - start) as usize);
        }
        let block = |at: u64| {
            let mut block = [self.data.unwrap_or(0); 512];
            block[..8].copy_from_slice(&(at * u64::from(self.data.is_some())).to_le_bytes());
            block
        };
        (start..end).step_by(512).flat_map(block).collect()
    }

    fn store(&self, image: &mut Image) {
        match self.data {
            Some(_) => image.write(self.range().start, &self.bytes()).unwrap(),
            None => image.zero(self.range()).unwrap(),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let data = prop::option::weighted(0.7, 1u8..);
    (0..PLACES.len(), 1u64..5, data).prop_map(|(place, count, data)| Step { place, count, data })
}

/// A directory with what the device was at each backup, and the images of it.
struct Chain {
    dir: TempDir,
    layers: usize,
}

impl Chain {
    fn new() -> Self {
        Self {
            dir: test_dir(),
            layers: 0,
        }
    }

    fn image(&self, layer: usize) -> PathBuf {
        self.dir.path().join(format!("{layer}.qcow2"))
    }

    fn plain(&self, layer: usize) -> PathBuf {
        self.dir.path().join(format!("{layer}.raw"))
    }

    /// Makes the next layer.
    fn add(&mut self, steps: &[Step]) {
        self.add_so(steps, false);
    }

    /// The same, which is compressed or not.
    fn add_so(&mut self, steps: &[Step], compress: bool) {
        let layer = self.layers;
        let plain = self.plain(layer);
        if layer == 0 {
            File::create(&plain).unwrap().set_len(SIZE).unwrap();
        } else {
            // A copy with its holes.
            let copied = Command::new("cp")
                .arg("--sparse=always")
                .args([self.plain(layer - 1), plain.clone()])
                .status();
            assert!(copied.unwrap().success());
        }
        let plain = File::options().write(true).open(plain).unwrap();
        let backing = (layer > 0).then(|| format!("{}.qcow2", layer - 1));
        let image = Image::create(&self.image(layer), SIZE, backing.as_deref(), compress);
        let mut image = image.unwrap();
        for step in steps {
            step.store(&mut image);
            plain
                .write_all_at(&step.bytes(), step.range().start)
                .unwrap();
        }
        image.finish().unwrap();
        self.layers += 1;
    }

    /// Compares what an image has itself with the device at the time of a layer.
    fn reads_as(&self, image: usize, ranges: &[Range<u64>], layer: usize) {
        let reader = Layer::open(&self.image(image)).unwrap();
        assert_eq!(reader.size(), SIZE);
        let plain = File::open(self.plain(layer)).unwrap();
        for range in ranges {
            let mut wanted = vec![1; (range.end - range.start) as usize];
            let mut got = vec![2; wanted.len()];
            plain.read_exact_at(&mut wanted, range.start).unwrap();
            reader.read(range.start, &mut got).unwrap();
            assert!(got == wanted, "{range:?} of layer {layer}");
        }
    }
}

/// Runs QEMU's tool. It must find the image sound, apart from leaks where those may be.
fn qemu_img(args: &[&str], files: &[&Path]) -> i32 {
    let output = Command::new("qemu-img")
        .args(args)
        .args(files)
        .output()
        .expect("qemu-img is needed: scripts/deps installs it");
    let code = output.status.code().unwrap();
    assert!(
        code == 0 || (args[0] == "check" && code == 3),
        "qemu-img {args:?} {files:?}: {output:?}"
    );
    code
}

/// Whether QEMU finds no error and no leak.
fn is_sound(image: &Path) -> bool {
    qemu_img(&["check", "-q", "-f", "qcow2"], &[image]) == 0
}

/// Whether QEMU reads the chain that ends in an image as the plain file.
fn is_same(plain: &Path, image: &Path) {
    qemu_img(
        &["compare", "-q", "-f", "raw", "-F", "qcow2"],
        &[plain, image],
    );
}

/// Stores what `from` has itself of the ranges in `to`.
fn merge(from: &Path, ranges: &[Range<u64>], to: &mut Image) {
    let reader = Layer::open(from).unwrap();
    for range in ranges {
        for start in range.clone().step_by(CLUSTER as usize) {
            let end = (start + CLUSTER).min(range.end);
            let mut data = vec![1; (end - start) as usize];
            reader.read(start, &mut data).unwrap();
            if data.iter().all(|byte| *byte == 0) {
                to.zero(start..end).unwrap();
            } else {
                to.write(start, &data).unwrap();
            }
        }
    }
}

fn ranges(steps: &[Step]) -> Vec<Range<u64>> {
    steps.iter().map(Step::range).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn chains_are_the_device_for_us_and_for_qemu(
        layers in prop::collection::vec((prop::collection::vec(step(), 0..12), any::<bool>()), 1..4)
    ) {
        let mut chain = Chain::new();
        for (steps, compress) in &layers {
            chain.add_so(steps, *compress);
            let layer = chain.layers - 1;
            assert!(is_sound(&chain.image(layer)));
            is_same(&chain.plain(layer), &chain.image(layer));
            chain.reads_as(layer, &ranges(steps), layer);
        }
        // From the top, each is merged into the one before, which then is the later state.
        let top = chain.layers - 1;
        let mut merged = Vec::new();
        for layer in (0..top).rev() {
            merged.extend(ranges(&layers[layer + 1].0));
            let mut base = Image::open_for_update(&chain.image(layer)).unwrap();
            merge(&chain.image(layer + 1), &merged, &mut base);
            base.finish().unwrap();
            assert!(is_sound(&chain.image(layer)));
            is_same(&chain.plain(top), &chain.image(layer));
            chain.reads_as(layer, &merged, top);
        }
    }
}

#[test]
fn qemu_knows_the_chain_and_converts_it() {
    let mut chain = Chain::new();
    let step = |place, data| Step {
        place,
        count: 3,
        data,
    };
    chain.add(&[step(0, Some(1)), step(7, Some(2))]);
    chain.add(&[step(1, None), step(8, Some(3))]);
    let top = chain.image(1);
    let output = Command::new("qemu-img")
        .args(["info", "--backing-chain", "--output=json"])
        .arg(&top)
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info[0]["backing-filename"], "0.qcow2");
    assert_eq!(info[0]["backing-filename-format"], "qcow2");
    assert_eq!(info[1]["virtual-size"], SIZE);
    assert_eq!(info.as_array().unwrap().len(), 2);
    let out = chain.dir.path().join("out.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&top, &out]);
    let same = Command::new("cmp").args([out, chain.plain(1)]).status();
    assert!(same.unwrap().success());
    assert_eq!(Layer::open(&top).unwrap().backing(), Some("0.qcow2"));
}

#[test]
fn zeros_of_a_full_image_take_no_place() {
    let dir = test_dir();
    let path = dir.path().join("full");
    let mut image = Image::create(&path, 8 << 40, None, false).unwrap();
    image.zero(0..8 << 40).unwrap();
    image.finish().unwrap();
    assert_eq!(path.metadata().unwrap().len(), 6 * CLUSTER);
    assert!(is_sound(&path));
}

#[test]
fn a_large_sparse_device_costs_little() {
    let dir = test_dir();
    let path = dir.path().join("large");
    let size = 64 << 40;
    let mut image = Image::create(&path, size, None, false).unwrap();
    let places: Vec<u64> = (0..400)
        .map(|i| i * (size / 400) / CLUSTER * CLUSTER)
        .collect();
    for at in &places {
        image.write(*at, &[7; CLUSTER as usize]).unwrap();
        assert!(image.l2.len() <= CACHED);
    }
    image.finish().unwrap();
    assert!(path.metadata().unwrap().len() < 64 << 20);
    assert!(is_sound(&path));
    let reader = Layer::open(&path).unwrap();
    for at in places {
        let mut data = vec![1; 2 * CLUSTER as usize];
        reader.read(at, &mut data).unwrap();
        assert!(data[..CLUSTER as usize].iter().all(|byte| *byte == 7));
        assert!(data[CLUSTER as usize..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn more_than_one_refcount_block_is_made() {
    let dir = test_dir();
    let path = dir.path().join("image");
    let size = 3 * REFCOUNTS * CLUSTER;
    // All but the last are holes of the file system; to the format they are data.
    let fill = |mut image: Image, range: Range<u64>| {
        for at in range.clone().step_by(CLUSTER as usize) {
            image.place(at).unwrap();
        }
        let last = range.end - CLUSTER;
        image.write(last, &[7; CLUSTER as usize]).unwrap();
        image.finish().unwrap();
        assert!(is_sound(&path));
    };
    fill(
        Image::create(&path, size, None, false).unwrap(),
        0..size / 2,
    );
    for at in 1..4 {
        let middle = size / 2 + at * size / 8;
        fill(
            Image::open_for_update(&path).unwrap(),
            middle - size / 8..middle,
        );
    }
}

#[test]
fn wrong_use_is_an_error() {
    let dir = test_dir();
    let path = dir.path().join("image");
    let mut image = Image::create(&path, SIZE, Some("base"), false).unwrap();
    assert!(Image::create(&path, SIZE, None, false).is_err());
    assert_eq!(image.granularity(), CLUSTER);
    assert!(image.write(512, &[0; 512]).is_err());
    assert!(image.write(0, &[0; 512]).is_err());
    assert!(image.write(SIZE, &[0; 1]).is_err());
    assert!(image.zero(0..SIZE + 1).is_err());
    assert!(image.zero(u64::MAX - 1..u64::MAX).is_err());
    image.zero(0..CLUSTER).unwrap();
    image.finish().unwrap();
    let reader = Layer::open(&path).unwrap();
    let mut data = [1; 512];
    reader.read(512, &mut data).unwrap();
    assert_eq!(data, [0; 512]);
    // What is not stored here is not taken for zeros.
    let error = reader.read(CLUSTER, &mut data).unwrap_err();
    assert!(
        error.to_string().contains("no data for byte 65536"),
        "{error:#}"
    );
    assert!(reader.read(SIZE, &mut data).is_err());
    assert!(reader.read(u64::MAX, &mut data).is_err());
}

proptest! {
    /// Nothing that a file can contain does more than fail.
    #[test]
    fn damaged_files_are_errors_or_other_data(
        changes in prop::collection::vec((0usize..9, 0u64..512, any::<u8>()), 1..6),
        length in prop::option::of(0u64..600_000),
        compress in any::<bool>(),
    ) {
        let mut chain = Chain::new();
        let steps = [Step { place: 0, count: 4, data: Some(9) }, Step { place: 8, count: 4, data: Some(8) }];
        chain.add_so(&steps, compress);
        let path = chain.image(0);
        let file = File::options().write(true).open(&path).unwrap();
        for (cluster, at, value) in changes {
            file.write_all_at(&[value], cluster as u64 * CLUSTER + at).unwrap();
        }
        if let Some(length) = length {
            file.set_len(length).unwrap();
        }
        if let Ok(reader) = Layer::open(&path) {
            let mut data = vec![0; CLUSTER as usize];
            for place in PLACES {
                let _ = reader.read((place * CLUSTER).min(SIZE - CLUSTER), &mut data);
            }
        }
        if let Ok(mut image) = Image::open_for_update(&path) {
            for place in PLACES {
                let _ = image.write(place * CLUSTER, &data_at(place));
                let _ = image.zero(place * CLUSTER..(place + 1) * CLUSTER);
            }
            let _ = image.finish();
        }
    }
}

/// Places of a file that is compressed are not used again, but given back.
#[test]
fn a_compressed_image_that_is_updated_stays_small() {
    let mut chain = Chain::new();
    let step = |place, data| Step {
        place,
        count: 4,
        data: Some(data),
    };
    chain.add_so(&[step(0, 1), step(8, 2), step(13, 3)], true);
    let path = chain.image(0);
    let blocks = || path.metadata().unwrap().blocks();
    let (length, before) = (path.metadata().unwrap().len(), blocks());
    // Header, tables, and one cluster in place of twelve.
    assert!(length <= 12 * CLUSTER, "{length}");
    for round in 0..40u8 {
        let mut image = Image::open_for_update(&path).unwrap();
        for place in [0, 8, 13] {
            let data = round.wrapping_mul(2) + 1;
            step(place, data).store(&mut image);
        }
        image.zero(5 * CLUSTER..8 * CLUSTER).unwrap();
        image.finish().unwrap();
        assert!(is_sound(&path), "{round}");
    }
    assert!(blocks() <= 2 * before, "{} after {before}", blocks());
    let read = Layer::open(&path).unwrap();
    let mut data = vec![0; 4 * CLUSTER as usize];
    read.read(0, &mut data).unwrap();
    assert!(data == step(0, 79).bytes());
}

/// At some length, clusters are stored over, whole.
#[test]
fn a_compressed_image_does_not_become_longer_without_an_end() {
    let dir = test_dir();
    let path = dir.path().join("image");
    let size = 8 * CLUSTER;
    let data = vec![7; size as usize];
    let image = Image::create(&path, size, None, true);
    image.and_then(|mut image| image.finish()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    // As after very many updates: what is counted and not used is leaked.
    file.set_len(size + MORE - CLUSTER).unwrap();
    for round in 0..4 {
        let mut image = Image::open_for_update(&path).unwrap();
        image.write(0, &data).unwrap();
        image.finish().unwrap();
        let end = path.metadata().unwrap().len();
        assert!(end < 2 * size + MORE + 4 * CLUSTER, "{round}: {end}");
        let mut found = vec![0; data.len()];
        Layer::open(&path).unwrap().read(0, &mut found).unwrap();
        assert!(found == data);
    }
}

fn data_at(place: u64) -> Vec<u8> {
    vec![5; CLUSTER.min(SIZE - place * CLUSTER) as usize]
}
