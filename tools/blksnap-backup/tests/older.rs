// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories of backups that older versions have written are read.
//!
//! `data/version-1` was made by the tests of commit c9824e6, before there was this crate: in each
//! format a device of 200 KiB and a sector, a full backup of it and two incremental ones.
//!
//! `data/version-2` was made by the library of commit 642a4d5, of the same device, with all that had come
//! since: compressed images of QEMU, an incremental backup that leaves out what was not used, a compared one,
//! and the machine in the manifest.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use blksnap_backup::{Cache, Chain, Image, Kind, Manifest, Repository};

const SIZE: usize = 200 * 1024 + 512;

/// What was on the device at the first backup, and so on.
fn states() -> Vec<Vec<u8>> {
    let mut data: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 255) as u8 + 1).collect();
    data[65536..131_072].fill(0);
    let mut states = vec![data.clone()];
    data[4096..8192].fill(0xaa);
    data[131_072..196_608].fill(0);
    states.push(data.clone());
    data[70_000..70_100].fill(0x55);
    data[SIZE - 5..].fill(0x77);
    states.push(data);
    states
}

/// A device, as a backup has it.
fn read(repository: &Repository, manifest: &Manifest) -> Vec<u8> {
    let chain = Chain::open(repository, manifest, &manifest.devices[0]).unwrap();
    let image = Image::new(chain, Arc::new(Cache::new(64 << 20).unwrap()));
    let mut data = vec![0; SIZE];
    image.read(0, &mut data).unwrap();
    data
}

/// A directory of backups of an older version, of which files may be made.
fn copy(name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    for backup in fs::read_dir(from).unwrap() {
        let backup = backup.unwrap();
        let dir = to.join(backup.file_name());
        fs::create_dir(&dir).unwrap();
        for file in fs::read_dir(backup.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn version_1_is_read() {
    for format in ["raw", "qcow2", "rbd-diff"] {
        let dir = tempfile::tempdir().unwrap();
        copy(&format!("version-1/{format}"), dir.path());
        let (repository, _) = Repository::read(dir.path()).unwrap();
        let backups = repository.backups().unwrap();
        assert_eq!(backups.len(), 3, "{format}");
        for ((id, manifest), state) in backups.iter().zip(states()) {
            let manifest = manifest.as_ref().unwrap();
            assert_eq!(manifest.version, 1);
            assert!(read(&repository, manifest) == state, "{format} {id}");
        }
    }
}

#[test]
fn version_2_is_read() {
    let dir = tempfile::tempdir().unwrap();
    copy("version-2/qcow2-zstd", dir.path());
    let (repository, _) = Repository::read(dir.path()).unwrap();
    let backups = repository.backups().unwrap();
    let kinds = [Kind::Full, Kind::Incremental, Kind::Compared];
    assert_eq!(backups.len(), kinds.len());
    for (((id, manifest), state), kind) in backups.iter().zip(states()).zip(kinds) {
        let manifest = manifest.as_ref().unwrap();
        let device = &manifest.devices[0];
        assert_eq!(device.kind, kind, "{id}");
        let file = repository.dir(id).join(&device.file);
        assert!(device.file_format.is_compressed(&file).unwrap(), "{id}");
        assert!(read(&repository, manifest) == state, "{id}");
        let machine = manifest.machine.as_ref().unwrap();
        assert_eq!(machine.disk("vda").unwrap().sector_size, Some(512));
    }
    let [_, incremental, compared] = backups.as_slice() else {
        panic!();
    };
    let incremental = incremental.1.as_ref().unwrap();
    assert_eq!(incremental.devices[0].unused, [[131_072, 65536]]);
    assert_eq!(compared.1.as_ref().unwrap().version, 2);
}
