// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files lie where their extents say. Needs root and a file system on a block device, whose
//! directory is in `BLKSNAP_TEST_DIR`; the tests in the virtual machine run it with `--ignored`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use blksnap::storage::{StorageFile, extents_of};
use blksnap::{Control, Sectors};
use rustix::fs::OFlags;

fn directory() -> PathBuf {
    std::env::var_os("BLKSNAP_TEST_DIR")
        .expect("BLKSNAP_TEST_DIR names a directory")
        .into()
}

#[test]
#[ignore = "needs root and a file system on a block device"]
fn data_is_found_on_the_device() {
    let path = directory().join("extents-data");
    let data: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    // Two pieces with a hole between them.
    let mut file = File::create_new(&path).unwrap();
    file.write_all(&data[..1_000_000]).unwrap();
    let later = 4 << 20;
    file.write_all_at(&data[later..], later as u64).unwrap();
    let file = File::open(&path).unwrap();
    let extents = extents_of(&file, &path).unwrap();

    let device = File::options()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(extents.device.path());
    let device = device.unwrap_or_else(|_| File::open(extents.device.path()).unwrap());
    let mut found = Vec::new();
    for range in &extents.ranges {
        let range = range.bytes();
        // Direct I/O wants alignment: a page more, and from its first aligned byte.
        let length = (range.end - range.start) as usize;
        let mut buffer = vec![0; length + 4096];
        let shift = buffer.as_ptr().align_offset(4096);
        let buffer = &mut buffer[shift..shift + length];
        device.read_exact_at(buffer, range.start).unwrap();
        found.extend_from_slice(buffer);
    }
    assert!(found[..1_000_000] == data[..1_000_000]);
    let rest = found
        .windows(data.len() - later)
        .rposition(|window| window == &data[later..]);
    assert!(rest.is_some(), "the second piece is not there");
    fs::remove_file(&path).unwrap();
}

#[test]
#[ignore = "needs root and a file system on a block device"]
fn a_storage_file_has_all_its_space() {
    let path = directory().join("extents-storage");
    let file = StorageFile::create(&path, 24 << 20).unwrap();
    assert!(file.extents().sectors() >= Sectors::floor(24 << 20));
    assert!(StorageFile::create(&path, 1 << 20).is_err(), "overwritten");
    file.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn without_the_module_the_error_says_what_to_do() {
    let error = Control::open_at("/nonexistent/blksnap").unwrap_err();
    assert!(error.to_string().contains("modprobe blksnap"), "{error}");
}
