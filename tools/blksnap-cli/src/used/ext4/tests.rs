// SPDX-License-Identifier: GPL-2.0-or-later

//! What `dumpe2fs` says is free is free, and nothing else, but for what no bitmap tells.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use blksnap_backup::without;

use super::*;

/// Free bytes as dumpe2fs prints them, in lines `  Free blocks: 1-2, 5`, which count blocks.
fn told(path: &std::path::Path, block: u64) -> ByteSet {
    let output = Command::new("dumpe2fs").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("  Free blocks: "));
    let ranges = lines
        .flat_map(|line| line.split(", "))
        .filter(|word| !word.is_empty());
    ranges
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |word: &str| word.trim().parse::<u64>().unwrap();
            number(first) * block..(number(last) + 1) * block
        })
        .collect()
}

#[test]
fn free_is_what_dumpe2fs_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs");
    let content = dir.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), vec![1; 9 << 20]).unwrap();
    let size: u64 = 300 << 20;
    for (options, block) in [
        (&["-t", "ext4", "-b", "4096"][..], 4096),
        (&["-t", "ext4", "-b", "1024"], 1024),
        (&["-t", "ext4", "-b", "4096", "-O", "bigalloc"], 4096),
        (
            &["-t", "ext4", "-b", "4096", "-O", "^64bit,quota,inline_data"],
            4096,
        ),
        (
            &[
                "-t",
                "ext4",
                "-b",
                "1024",
                "-O",
                "sparse_super2,^resize_inode",
            ],
            1024,
        ),
        (&["-t", "ext3", "-b", "4096"], 4096),
        (&["-t", "ext2", "-b", "1024"], 1024),
    ] {
        let _ = std::fs::remove_file(&path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        file.set_len(size).unwrap();
        let mut mkfs = Command::new("mke2fs");
        mkfs.args(["-q", "-F"])
            .args(options)
            .arg("-d")
            .arg(&content)
            .arg(&path);
        let Ok(status) = mkfs.stderr(Stdio::null()).status() else {
            eprintln!("skipped: there is no mke2fs");
            return;
        };
        assert!(status.success(), "{options:?}");
        let free = unused(&file, size).unwrap();
        // Of a cluster that is the last of a range, it only prints the first block.
        let unit = if options.contains(&"bigalloc") {
            16 * block
        } else {
            block
        };
        let told = told(&path, block);
        let told: ByteSet = told
            .iter()
            .map(|range| range.start..range.end.next_multiple_of(unit))
            .collect();
        assert!(told.len() > 100 << 20, "{options:?}");
        // Nothing that is used is left out, and little else is read.
        let wrong = without(&free, &told);
        assert!(wrong.is_empty(), "{options:?}: {:?}", wrong.iter().next());
        assert!(
            told.len() - free.len() < 8 << 20,
            "{options:?}: {} {}",
            told.len(),
            free.len()
        );

        // A journal to be replayed; errors; a bitmap that was changed.
        let flip = |at: u64, bit: u8| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ bit], at).unwrap();
        };
        flip(SUPER + 0x60, 4);
        assert!(
            unused(&file, size)
                .unwrap_err()
                .to_string()
                .contains("replayed")
        );
        flip(SUPER + 0x60, 4);
        flip(SUPER + 0x3a, 2);
        assert!(unused(&file, size).is_err());
        flip(SUPER + 0x3a, 2);
        let table = (SUPER / block + 1) * block;
        let mut place = [0; 4];
        file.read_exact_at(&mut place, table).unwrap();
        flip(u64::from(u32::from_le_bytes(place)) * block, 1);
        assert!(
            unused(&file, size)
                .unwrap_err()
                .to_string()
                .contains("bitmap of group 0")
        );
        assert!(unused(&file, size - 1).is_err());
    }
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
