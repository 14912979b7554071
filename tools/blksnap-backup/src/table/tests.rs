// SPDX-License-Identifier: GPL-2.0-or-later

//! Tables as sfdisk makes them, and what it says of those that were moved; and damaged ones.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Three partitions, the last of which does not end at the end, and not in the order of their numbers.
const SCRIPT: &str = "label: gpt\n\
    2: start=2048, size=8192, type=linux, name=a\n\
    1: start=10240, size=4096, type=swap\n\
    5: start=16384, size=40960, type=linux, attrs=LegacyBIOSBootable\n";

/// A file as a disk.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    sector: u32,
}

impl Image {
    /// Of `SIZE` bytes, with a table made by sfdisk.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let image = Self {
            _dir: dir,
            path,
            sector: 512,
        };
        image.sfdisk(&["--quiet"], script);
        image
    }

    fn sfdisk(&self, args: &[&str], script: &str) -> String {
        let mut sfdisk = Command::new("sfdisk");
        sfdisk.args(args).arg(&self.path).env("LC_ALL", "C");
        sfdisk.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = sfdisk.stderr(Stdio::piped()).spawn().expect("sfdisk");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    fn size(&self) -> u64 {
        self.path.metadata().unwrap().len()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn resize(&self, size: u64) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.set_len(size).unwrap();
    }

    /// As a disk of `size` bytes.
    fn read(&self, size: u64) -> Result<Option<Table>> {
        read(&self.bytes(), size, self.sector)
    }

    fn gpt(&self) -> Gpt {
        match self.read(SIZE).unwrap() {
            Some(Table::Gpt(gpt)) => gpt,
            other => panic!("{other:?}"),
        }
    }

    /// Makes it larger, with the table that belongs to that.
    fn move_to(&self, size: u64, grow: bool) -> Moved {
        let moved = self.gpt().moved(size, grow).unwrap();
        self.resize(size);
        for (at, bytes) in &moved.writes {
            self.write(*at, bytes);
        }
        moved
    }
}

fn read(bytes: &[u8], size: u64, sector: u32) -> Result<Option<Table>> {
    Table::read(size, sector, &|at, into| {
        let from = bytes.get(at as usize..at as usize + into.len());
        into.copy_from_slice(from.expect("only what is there is read"));
        Ok(())
    })
}

/// Numbers, and places in MiB.
fn places(partitions: &[Partition]) -> Vec<(u32, Range<u64>)> {
    let place = |one: &Partition| (one.number, one.range.start / MIB..one.range.end / MIB);
    partitions.iter().map(place).collect()
}

#[test]
fn what_sfdisk_makes_is_read() {
    let gpt = Image::new(SCRIPT);
    let table = gpt.read(SIZE).unwrap().unwrap();
    let wanted = [(1, 5..7), (2, 1..5), (5, 8..28)];
    assert_eq!(places(table.partitions()), wanted);
    assert!(gpt.gpt().fits(SIZE) && !gpt.gpt().fits(SIZE + 512));
    let mbr = Image::new(
        "label: dos\n1: start=2048, size=8192, type=83, bootable\n2: start=12288, size=100000, type=5\n\
         5: start=14336, size=2048\n6: start=20480, size=4096, type=82\n",
    );
    let table = mbr.read(SIZE).unwrap().unwrap();
    assert!(matches!(table, Table::Mbr(_)), "{table:?}");
    assert_eq!(
        places(table.partitions()),
        [(1, 1..5), (5, 7..8), (6, 10..12)]
    );
}

#[test]
fn what_is_no_table_is_told() {
    let mut bytes = vec![0; SIZE as usize];
    assert_eq!(read(&bytes, SIZE, 512).unwrap(), None);
    assert_eq!(read(&bytes, 100, 512).unwrap(), None);
    // A mark without a partition; and what can be no entry.
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(read(&bytes, SIZE, 512).unwrap(), None);
    bytes[446] = 7;
    assert_eq!(read(&bytes, SIZE, 512).unwrap(), None);
    assert!(read(&bytes, SIZE, 500).is_err());
}

#[test]
fn a_moved_table_is_that_of_the_larger_disk() {
    for size in [SIZE + 512, SIZE + 33 * 512, SIZE + MIB, 3 * SIZE + 1536] {
        let image = Image::new(SCRIPT);
        image.write(0, b"boot code");
        let before = image.bytes();
        let moved = image.move_to(size, false);
        assert_eq!(moved.grown, None);
        let verified = image.sfdisk(&["--verify"], "");
        assert!(verified.contains("No errors detected"), "{verified}");
        let after = image.bytes();
        let (Some(Table::Gpt(gpt)), true) = (image.read(size).unwrap(), image.size() == size)
        else {
            panic!("no table at {size}");
        };
        assert!(gpt.fits(size));
        assert_eq!(gpt.partitions(), read_gpt(&before).partitions());
        // The boot code, the identities, and all that partitions have, are as before.
        assert_eq!(after[..446], before[..446]);
        assert_eq!(after[1024..28 << 20], before[1024..28 << 20]);
        // Only in the last sector is a second header.
        let headers = after.chunks(512).enumerate();
        let headers = headers.filter(|(_, sector)| sector.starts_with(b"EFI PART"));
        let found: Vec<_> = headers.map(|(at, _)| at as u64).collect();
        assert_eq!(found, [1, size / 512 - 1]);
        let claimed = u32::from_le_bytes(after[458..462].try_into().unwrap());
        assert_eq!(u64::from(claimed), size / 512 - 1, "protected");
    }
}

fn read_gpt(bytes: &[u8]) -> Gpt {
    match read(bytes, bytes.len() as u64, 512).unwrap() {
        Some(Table::Gpt(gpt)) => gpt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_partition_takes_what_comes_after_it() {
    let image = Image::new(SCRIPT);
    let moved = image.move_to(2 * SIZE, true);
    let (grown, before) = moved.grown.unwrap();
    assert_eq!((grown.number, before), (5, 20 * MIB));
    assert_eq!(grown.range, 8 * MIB..2 * SIZE - MIB);
    let verified = image.sfdisk(&["--verify"], "");
    assert!(verified.contains("No errors detected"), "{verified}");
    let dump = image.sfdisk(&["--dump"], "");
    let line = dump.lines().find(|line| line.contains("disk5")).unwrap();
    assert!(
        line.contains("start=       16384, size=      243712")
            && line.contains("LegacyBIOSBootable"),
        "{dump}"
    );
    assert!(dump.contains(r#"name="a""#), "{dump}");
    // There is nothing to take.
    let full = Image::new("label: gpt\nstart=2048, size=128991\n");
    let moved = full.gpt().moved(SIZE + 1024, true).unwrap();
    assert_eq!(moved.grown, None);
}

#[test]
fn sectors_of_4_kib_are_known() {
    // sfdisk takes the size of sectors from the device only: what it has made for as many sectors, laid
    // out anew, without the second header.
    let image = Image::new("label: gpt\n");
    image.resize(SIZE / 8);
    image.sfdisk(&["--quiet"], "label: gpt\n3: start=2048, size=4096\n");
    let small = image.bytes();
    let mut bytes = vec![0; SIZE as usize];
    for (from, to) in [(0..512, 0), (512..1024, 4096), (1024..17408, 8192)] {
        bytes[to..to + from.len()].copy_from_slice(&small[from]);
    }
    let Some(Table::Gpt(gpt)) = read(&bytes, SIZE, 4096).unwrap() else {
        panic!("no table");
    };
    assert_eq!(places(gpt.partitions()), [(3, 8..24)]);
    assert!(!gpt.fits(SIZE));
    for (at, data) in gpt.moved(SIZE, false).unwrap().writes {
        assert!(at % 4096 == 0 && data.len() % 4096 == 0);
        let at = at as usize;
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    assert_eq!(&bytes[4096..4104], b"EFI PART");
    let Some(Table::Gpt(gpt)) = read(&bytes, SIZE, 4096).unwrap() else {
        panic!("no table");
    };
    assert!(gpt.fits(SIZE));
    assert_eq!(places(gpt.partitions()), [(3, 8..24)]);
}

#[test]
fn a_damaged_header_is_made_anew_from_the_other_one() {
    for at in [520, 1024] {
        let image = Image::new(SCRIPT);
        let whole = image.bytes();
        let flip = |at: u64| image.write(at, &[whole[at as usize] ^ 1]);
        flip(at);
        assert_eq!(image.gpt().partitions(), read_gpt(&whole).partitions());
        image.move_to(2 * SIZE, false);
        let verified = image.sfdisk(&["--verify"], "");
        assert!(verified.contains("No errors detected"), "{verified}");
        assert_eq!(image.bytes()[1024..2048], whole[1024..2048], "the entries");
        // Both.
        image.resize(SIZE);
        image.write(0, &whole);
        flip(at);
        flip(SIZE - 512 + 16);
        let error = format!("{:#}", image.read(SIZE).unwrap_err());
        assert!(
            error.contains("first header of the GPT is damaged"),
            "{error}"
        );
    }
    // The second one alone: that is for who checks the disk.
    let image = Image::new(SCRIPT);
    image.write(SIZE - 512, b"x");
    assert!(!image.gpt().fits(SIZE));
    image.move_to(2 * SIZE, false);
    image.sfdisk(&["--verify"], "");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let image = Image::new(
        "label: dos
1: start=2048, size=8192
2: start=12288, size=4096
",
    );
    let whole = image.bytes();
    let with = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        format!("{:#}", read(&bytes, SIZE, 512).unwrap_err())
    };
    // The first begins where the second is, ends behind the disk; both are extended ones.
    assert!(with(446 + 9, 0x30).contains("overlap"));
    assert!(with(446 + 15, 1).contains("not on the disk"));
    let mut bytes = whole.clone();
    for at in [450, 466] {
        bytes[at] = 5;
    }
    let error = read(&bytes, SIZE, 512).unwrap_err().to_string();
    assert!(error.contains("two extended"), "{error}");
    // A chain that comes back to itself.
    let image = Image::new(
        "label: dos
1: start=2048, size=100000, type=5
5: start=4096, size=2048
6: start=8192, size=2048
",
    );
    let mut bytes = image.bytes();
    let second = (6144..8192)
        .find(|at| bytes[at * 512 + 510] == 0x55)
        .unwrap()
        * 512;
    bytes[second + 466] = 5;
    bytes[second + 470] = 1;
    bytes[second + 474] = 1;
    let error = read(&bytes, SIZE, 512).unwrap_err().to_string();
    assert!(error.contains("goes backwards"), "{error}");
    // A disk that is smaller than its table.
    let error = Image::new(SCRIPT).gpt().moved(28 * MIB, false).unwrap_err();
    assert!(error.to_string().contains("too small"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is there, nothing outside is read, and nothing panics.
    #[test]
    fn any_bytes_can_be_read(
        changes in prop::collection::vec((0..2048usize, any::<u8>()), 1..24),
        gpt: bool,
        sector in prop::sample::select(vec![512u32, 4096]),
    ) {
        static IMAGES: std::sync::OnceLock<[Vec<u8>; 2]> = std::sync::OnceLock::new();
        let images = IMAGES.get_or_init(|| {
            let mbr = "label: dos\n1: start=2048, size=100000, type=5\n5: start=4096, size=2048\n";
            [Image::new(mbr).bytes(), Image::new(SCRIPT).bytes()]
        });
        let mut bytes = images[usize::from(gpt)].clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        // So that more than the checksum is looked at.
        bytes[528..532].fill(0);
        let sum = crc32fast::hash(&bytes[512..604]);
        bytes[528..532].copy_from_slice(&sum.to_le_bytes());
        if let Ok(Some(table)) = read(&bytes, SIZE, sector) {
            for one in table.partitions() {
                prop_assert!(one.range.start < one.range.end && one.range.end <= SIZE);
            }
            if let Table::Gpt(gpt) = table {
                let _ = gpt.moved(2 * SIZE, true);
            }
        }
    }
}
