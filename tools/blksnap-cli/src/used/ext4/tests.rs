// SPDX-License-Identifier: GPL-2.0-or-later

//! What `dumpe2fs` says is free is free, and the journal but for its superblock, and nothing else, but for what no
//! bitmap tells; and what was changed behind the checksums is refused.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::superblock::SUPER;
use super::*;

const SIZE: u64 = 300 << 20;

/// Free bytes as dumpe2fs prints them, in lines `  Free blocks: 1-2, 5`, which count blocks, and the ends of tables of
/// inodes that were never used.
fn told(path: &Path, block: u64, unit: u64) -> ByteSet {
    let output = Command::new("dumpe2fs").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |word: &str| word.trim().parse::<u64>().unwrap();
    let head = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        number(line.unwrap())
    };
    let (inodes, size) = (head("Inodes per group:"), head("Inode size:"));
    let mut told = ByteSet::default();
    let mut table = 0;
    for line in text.lines() {
        if let Some(ranges) = line.strip_prefix("  Free blocks: ") {
            for range in ranges.split(", ").filter(|word| !word.is_empty()) {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                // Of a cluster that is the last of a range, it only prints the first block.
                let end = (number(last) + 1) * block;
                told.insert(number(first) * block..end.next_multiple_of(unit));
            }
        } else if let Some((place, _)) = line
            .strip_prefix("  Inode table at ")
            .and_then(|rest| rest.split_once('-'))
        {
            table = number(place) * block;
        } else if let Some(count) = line.strip_suffix(" unused inodes") {
            let unused = number(count.rsplit(' ').next().unwrap());
            let used = ((inodes - unused) * size).next_multiple_of(block);
            told.insert(table + used..table + (inodes * size).next_multiple_of(block));
        }
    }
    told
}

/// Where debugfs says the journal is, in bytes (`-l`), or what of its extent tree is outside of the inode (`-n`).
fn extents(path: &Path, block: u64, option: &str) -> Vec<Range<u64>> {
    let mut debugfs = Command::new("debugfs");
    let request = format!("dump_extents {option} <8>");
    let output = debugfs.args(["-R", &request]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Level of depth, entry of entries, logical first and last, physical first (and last), length.
    let lines = text.lines().skip(1).map(|line| {
        let words = line.split(|letter: char| !letter.is_ascii_digit());
        let words = words.filter(|word| !word.is_empty());
        words.map(|word| word.parse().unwrap()).collect()
    });
    let range = |words: Vec<u64>| match option {
        "-l" => words[6] * block..(words[7] + 1) * block,
        _ => words[6] * block..(words[6] + 1) * block,
    };
    lines.map(range).collect()
}

fn found(file: &File, size: u64) -> Result<ByteSet> {
    let start = 0;
    unused(&Place { file, start, size })
}

fn flip(file: &File, at: u64, bit: u8) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ bit], at).unwrap();
}

/// With one bit changed, all is refused, and the reason has these words.
fn refused(file: &File, at: u64, bit: u8, words: &str) {
    flip(file, at, bit);
    let why = format!("{:#}", found(file, SIZE).unwrap_err());
    assert!(why.contains(words), "{why}; wanted: {words}");
    flip(file, at, bit);
}

/// Makes a file system, if there is mke2fs.
fn make(path: &Path, options: &[&str], content: &Path) -> Option<File> {
    let _ = std::fs::remove_file(path);
    let mut open = OpenOptions::new();
    let file = open.read(true).write(true).create_new(true).open(path);
    let file = file.unwrap();
    file.set_len(SIZE).unwrap();
    let mut mkfs = Command::new("mke2fs");
    mkfs.args(["-q", "-F"]).args(options);
    mkfs.arg("-d").arg(content).arg(path);
    let Ok(status) = mkfs.stderr(Stdio::null()).status() else {
        eprintln!("skipped: there is no mke2fs");
        return None;
    };
    assert!(status.success(), "{options:?}");
    Some(file)
}

#[test]
fn free_is_what_dumpe2fs_says() {
    let dir = tempfile::tempdir().unwrap();
    let (path, content) = (dir.path().join("fs"), dir.path().join("content"));
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), vec![1; 9 << 20]).unwrap();
    for (options, block) in [
        ("-t ext4 -b 4096", 4096),
        ("-t ext4 -b 1024", 1024),
        ("-t ext4 -b 4096 -O bigalloc", 4096),
        ("-t ext4 -b 1024 -O bigalloc", 1024),
        // Its journal is in more pieces than the inode has room for.
        ("-t ext4 -b 1024 -O ^flex_bg -J size=64", 1024),
        ("-t ext4 -b 4096 -O ^64bit,quota,inline_data", 4096),
        ("-t ext4 -b 4096 -O metadata_csum_seed,mmp", 4096),
        ("-t ext4 -b 1024 -O sparse_super2,^resize_inode", 1024),
        ("-t ext4 -b 1024 -O meta_bg,^resize_inode", 1024),
        (
            "-t ext4 -b 1024 -O meta_bg,^resize_inode,^sparse_super",
            1024,
        ),
        (
            "-t ext4 -b 2048 -O meta_bg,^resize_inode,^flex_bg,^64bit",
            2048,
        ),
        ("-t ext4 -b 4096 -O ^metadata_csum,uninit_bg", 4096),
        ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit", 1024),
        ("-t ext4 -b 4096 -O ^extents,^64bit", 4096),
        ("-t ext3 -b 4096", 4096),
        ("-t ext2 -b 1024", 1024),
    ] {
        let words: Vec<_> = options.split(' ').collect();
        let Some(file) = make(&path, &words, &content) else {
            return;
        };
        if options.contains("seed") {
            // The seed is no longer that of the UUID.
            let mut tune = Command::new("tune2fs");
            let status = tune.args(["-U", "random"]).arg(&path).stdout(Stdio::null());
            assert!(status.status().unwrap().success());
        }
        let free = found(&file, SIZE).with_context(|| options).unwrap();
        let bigalloc = options.contains("bigalloc");
        let unit = if bigalloc { 16 * block } else { block };
        let (crc32c, crc16) = (
            options.starts_with("-t ext4") && !options.contains("^metadata_csum"),
            options.contains("uninit_bg"),
        );
        let mut told = told(&path, block, unit);
        if crc32c && !options.contains("^extents") {
            let mut journal = extents(&path, block, "-l");
            journal[0].start += block;
            for range in journal {
                assert!(free.inside(range.clone()).eq([range.clone()]), "{options}");
                told.insert(range);
            }
        }
        assert!(told.len() > 100 << 20, "{options}");
        // Nothing that is used is left out, and little else is read.
        let wrong = without(&free, &told);
        assert!(wrong.is_empty(), "{options}: {:?}", wrong.iter().next());
        let more = told.len() - free.len();
        assert!(more < 8 << 20, "{options}: {more}");

        assert!(found(&file, SIZE - 1).is_err());
        refused(&file, SUPER + 0x60, 4, "replayed");
        refused(&file, SUPER + 0x3a, 2, "errors");
        refused(&file, SUPER + 0xe4, 1, "another device");
        let table = if block == 1024 { 2048 } else { block };
        let mut bitmap = [0; 4];
        file.read_exact_at(&mut bitmap, table).unwrap();
        let bitmap = u64::from(u32::from_le_bytes(bitmap)) * block;
        refused(&file, bitmap, 1, "bitmap of group 0");
        if crc32c {
            // The label.
            refused(&file, SUPER + 0x78, 1, "checksum of its superblock");
            // One bit more, one less: the count is right.
            flip(&file, bitmap + 1, 1);
            let last = bitmap + SIZE.div_ceil(block * 8).min(block) - 1;
            refused(&file, last, 1, "checksum of the bitmap of group 0");
            flip(&file, bitmap + 1, 1);
            // i_mtime of the journal's inode.
            let mut inodes = [0; 4];
            file.read_exact_at(&mut inodes, table + 8).unwrap();
            let journal = u64::from(u32::from_le_bytes(inodes)) * block + 7 * 256;
            refused(&file, journal + 0x10, 1, "checksum of the inode");
            if options.contains("-J") {
                let nodes = extents(&path, block, "-n");
                // The length of the first piece.
                refused(&file, nodes[0].start + 16, 1, "checksum of the extents");
            }
        }
        if crc32c || crc16 {
            // bg_used_dirs_count.
            refused(&file, table + 0x10, 1, "descriptor of group 0");
        }
        if !options.contains("ext2") {
            let mut bytes = [0; 8];
            let journal = (0..SIZE / block).map(|number| number * block).find(|&at| {
                file.read_exact_at(&mut bytes, at).unwrap();
                bytes == [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4]
            });
            refused(&file, journal.unwrap() + 0x1f, 1, "journal is not empty");
        }
    }
}

#[test]
fn an_external_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, content) = (dir.path().join("journal"), dir.path().join("content"));
    std::fs::create_dir(&content).unwrap();
    let Some(file) = make(&path, &["-O", "journal_dev"], &content) else {
        return;
    };
    let why = found(&file, SIZE).unwrap_err().to_string();
    assert!(why.contains("features that are not known"), "{why}");
}

#[test]
fn runs_of_bits_are_those_of_a_loop() {
    let bitmap: Vec<u8> = blksnap_backup::testing::noise(3, 64)
        .into_iter()
        .enumerate()
        .map(|(at, byte)| match at % 5 {
            0 | 1 => 0,
            2 => 0xff,
            _ => byte,
        })
        .collect();
    for count in [0, 1, 7, 8, 9, 63, 64, 100, 511, 512] {
        let is_zero = |at: u64| bitmap[at as usize / 8] >> (at % 8) & 1 == 0;
        let runs = zeros(&bitmap, count).unwrap();
        let found: Vec<u64> = runs.iter().cloned().flatten().collect();
        let expected: Vec<u64> = (0..count).filter(|&at| is_zero(at)).collect();
        assert_eq!(found, expected, "{count}");
        assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
    }
    assert!(zeros(&bitmap, 513).is_err());
}
