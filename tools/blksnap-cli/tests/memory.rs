// SPDX-License-Identifier: GPL-2.0-or-later

//! What restores, checks and prunes backups takes as much memory for many extents as for few.
//!
//! The most that any child has had is asked for, so there is one test here.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use blksnap_backup::testing::{device, test_dir};
use blksnap_backup::{Device, Draft, Extent, ExtentsWriter, Kind, Manifest, Repository};
use uuid::Uuid;

const SECTOR: usize = 512;

/// What is in a sector.
fn sector(number: u64) -> [u8; SECTOR] {
    [1 + (number % 255) as u8; SECTOR]
}

/// Makes a backup by hand, which has each of some sectors as an extent, and zeros before it if all are
/// wanted.
fn backup(
    repository: &Repository,
    base: Option<&str>,
    size: u64,
    sectors: impl Iterator<Item = u64>,
) -> String {
    let now = UNIX_EPOCH + Duration::from_secs(1 << 30);
    let id = repository.next_id(now, Uuid::nil()).unwrap();
    let draft = Draft::new(repository, id.clone()).unwrap();
    let entry = Device {
        size,
        file_size: size,
        number: repository.ids().unwrap().len() as u8,
        kind: base.map_or(Kind::Full, |_| Kind::Incremental),
        ..device("vda")
    };
    let mut entry = entry.stored_as(Default::default());
    let file = File::create_new(draft.path().join(&entry.file)).unwrap();
    file.set_len(size).unwrap();
    let mut list = ExtentsWriter::create(&draft.path().join(&entry.extents)).unwrap();
    let mut end = 0;
    for number in sectors {
        let start = number * SECTOR as u64;
        if base.is_none() && end < start {
            list.push(Extent::of_zeros(end..start)).unwrap();
        }
        let data = sector(number);
        file.write_all_at(&data, start).unwrap();
        list.push(Extent::of(start, &data)).unwrap();
        end = start + SECTOR as u64;
    }
    let list = list.finish().unwrap();
    entry.extents_blake3 = list.hash().to_string();
    (entry.data_bytes, entry.zero_bytes) = list.totals();
    let mut manifest = Manifest::new(id.clone(), Uuid::nil(), [0, 0], vec![entry]);
    manifest.base = base.map(str::to_owned);
    draft.commit(&manifest).unwrap();
    id
}

/// Of a device of so many sectors: every second one, and some of the others later.
fn backups(dir: &Path, sectors: u64) {
    let repository = Repository::create(dir).unwrap();
    let size = sectors * SECTOR as u64;
    let full = (0..sectors).filter(|number| number % 2 == 1);
    let full = backup(&repository, None, size, full);
    let next = (0..sectors).filter(|number| number % 4 == 2);
    let next = backup(&repository, Some(&full), size, next);
    backup(&repository, Some(&next), size, std::iter::once(1));
}

fn run(args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blksnap"));
    let status = command.args(args).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{args:?}");
}

/// The most memory that a child has had yet, in KiB.
fn most() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the place is one for it, and zeros are valid, too.
    let usage = unsafe {
        assert_eq!(
            libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()),
            0
        );
        usage.assume_init()
    };
    usage.ru_maxrss as u64
}

#[test]
fn memory_is_flat() {
    let few = 32 << 10;
    let all = |sectors: u64| {
        let dir = test_dir();
        let store = dir.path().join("backups");
        backups(&store, sectors);
        let (store, out) = (store.to_str().unwrap(), dir.path().join("out"));
        let restored = || {
            run(&["restore", store, "--to", out.to_str().unwrap()]);
            let file = File::open(&out).unwrap();
            let mut found = [0; SECTOR];
            for number in (0..sectors).step_by(251) {
                file.read_exact_at(&mut found, number * SECTOR as u64)
                    .unwrap();
                let zeros = number % 4 == 0;
                let expected = if zeros { [0; SECTOR] } else { sector(number) };
                assert!(found == expected, "{number}");
            }
            fs::remove_file(&out).unwrap();
        };
        restored();
        run(&["verify", store]);
        run(&["prune", store, "--keep", "1"]);
        restored();
        most()
    };
    let few = all(few);
    let many = all(256 << 10);
    println!("{few} KiB for few extents, {many} KiB for many");
    assert!(many < few + (6 << 10), "{few} KiB, then {many}");
}
