// SPDX-License-Identifier: GPL-2.0-or-later

//! What `xfs_db` says is free is free, and nothing else; and what was changed is refused. Logs of file
//! systems that were frozen, or were not, need a kernel: tests/vm.d/86-used-blocks.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use blksnap_backup::without;

use super::*;

const SIZE: u64 = 600 << 20;

/// The lines `AG BLOCK COUNT` of xfs_db, which counts blocks of an AGFL as free.
fn told(path: &Path, group: u64, block: u64) -> ByteSet {
    let mut db = Command::new("xfs_db");
    let output = db.args(["-r", "-c", "freesp -d"]).arg(path).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let rows = text.lines().map(|line| {
        let words = line.split_whitespace().map(|word| word.parse::<u64>().ok());
        words.collect::<Option<Vec<_>>>()
    });
    rows.flatten()
        .filter(|row| row.len() == 3)
        .map(|row| {
            let start = row[0] * group + row[1];
            start * block..(start + row[2]) * block
        })
        .collect()
}

fn found(file: &File, size: u64) -> Result<ByteSet> {
    let start = 0;
    unused(&Place { file, start, size })
}

fn flip(file: &File, at: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn refused(file: &File, at: u64, words: &str) {
    flip(file, at);
    let why = format!("{:#}", found(file, SIZE).unwrap_err());
    assert!(why.contains(words), "{why}; wanted: {words}");
    flip(file, at);
}

#[test]
fn free_is_what_xfs_db_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs");
    let content = dir.path().join("content");
    std::fs::write(&content, vec![1; 9 << 20]).unwrap();
    let mut proto = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        proto,
        "/\n0 0\nd--755 0 0\nfile ---644 0 0 {}\n$",
        content.display()
    )
    .unwrap();
    for options in [
        "",
        "-b size=1024 -d agcount=7",
        "-s size=4096 -m reflink=0,rmapbt=1",
        "-d agcount=2 -l su=64k",
        "-b size=65536",
    ] {
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.arg("-qf").arg("-p").arg(proto.path());
        mkfs.args(options.split(' ').filter(|word| !word.is_empty()));
        mkfs.arg("-d")
            .arg(format!("size={SIZE},name={},file", path.display()));
        let Ok(status) = mkfs.stdout(Stdio::null()).status() else {
            eprintln!("skipped: there is no mkfs.xfs");
            return;
        };
        assert!(status.success(), "{options}");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let start = 0;
        let size = SIZE;
        let file = &file;
        let sb = Super::read(&Place { file, start, size }).unwrap();
        let free = found(file, SIZE).with_context(|| options).unwrap();
        let told = told(&path, sb.group, sb.block);
        assert!(told.len() > 100 << 20, "{options}");
        assert!(without(&free, &told).is_empty(), "{options}");
        let more = told.len() - free.len();
        assert!(more <= sb.groups * 16 * sb.block, "{options}: {more}");

        assert!(found(file, SIZE - 1).is_err());
        refused(file, 200, "checksum of its superblock");
        // agf_freeblks.
        refused(
            file,
            sb.sector + 55,
            "header of free space of allocation group 0",
        );
        let mut root = [0; 4];
        let second = sb.group * sb.block;
        file.read_exact_at(&mut root, second + sb.sector + 16)
            .unwrap();
        let root = second + u64::from(u32::from_be_bytes(root)) * sb.block;
        refused(file, root + NODE_HEAD as u64 + 7, "no block of its tree");
        refused(file, root + 51, "no block of its tree");
        // The record of mkfs.xfs, the only one: h_len, h_num_logops, h_fs_uuid, oh_flags.
        let log = sb.log_start * sb.block;
        refused(file, log + 14, "log");
        refused(file, log + 43, "log");
        refused(file, log + 304, "log");
        let mut size = [0; 4];
        file.read_exact_at(&mut size, log + 320).unwrap();
        let heads = u64::from(u32::from_be_bytes(size))
            .div_ceil(32 << 10)
            .max(1);
        refused(file, log + heads * 512 + 9, "log");
    }
}

/// Writes a record of two blocks to the log, at a block of it, and in the first cycle.
fn log(file: &File, sb: &Super, at: u64, tail: u64, operations: &[(u8, &[u8])]) {
    let mut data = Vec::new();
    for (flags, part) in operations {
        data.extend([0, 0, 0, 1]);
        data.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        data.extend([0x69, *flags, 0, 0]);
        data.extend(*part);
    }
    data.resize(512, 0);
    let mut head = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    let lsn = |block: u64| (1 << 32 | block).to_be_bytes();
    put(0, &0xfeed_babe_u32.to_be_bytes());
    put(4, &1_u32.to_be_bytes());
    put(8, &2_u32.to_be_bytes());
    put(12, &512_u32.to_be_bytes());
    put(16, &lsn(at));
    put(24, &lsn(tail));
    put(40, &u32::try_from(operations.len()).unwrap().to_be_bytes());
    put(44, &data[..4]);
    put(300, &1_u32.to_be_bytes());
    put(304, &sb.uuid);
    put(320, &(32_u32 << 10).to_be_bytes());
    data[..4].copy_from_slice(&1_u32.to_be_bytes());
    let sum = !crc32c(u32::MAX, &[&head[..328], &data]);
    head[32..36].copy_from_slice(&sum.to_le_bytes());
    let start = sb.log_start * sb.block + at * 512;
    file.write_all_at(&head, start).unwrap();
    file.write_all_at(&data, start + 512).unwrap();
}

#[test]
fn only_a_log_of_superblocks_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs");
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.args(["-qf", "-d"]);
    mkfs.arg(format!("size={SIZE},name={},file", path.display()));
    let Ok(status) = mkfs.stdout(Stdio::null()).status() else {
        eprintln!("skipped: there is no mkfs.xfs");
        return;
    };
    assert!(status.success());
    let file = &File::options().read(true).write(true).open(&path).unwrap();
    let (start, size) = (0, SIZE);
    let sb = Super::read(&Place { file, start, size }).unwrap();
    let transaction = [&b"NART"[..], &[40, 0, 0, 0], &[0; 8]].concat();
    // blf_type, blf_size, blf_flags, blf_len, blf_blkno, blf_map_size, blf_data_map.
    let item = |kind: u8, number: u8| {
        let head = [kind, 0x12, 2, 0, 0, 0, 1, 0, number, 0, 0, 0, 0, 0, 0, 0];
        [&head[..], &[1, 0, 0, 0, 3, 0, 0, 0]].concat()
    };
    let (superblock, other, inode) = (item(0x3c, 0), item(0x3c, 8), item(0x3b, 0));
    let commit = |item| -> Vec<(u8, &[u8])> {
        vec![
            (1, &[]),
            (0, &transaction),
            (0, item),
            (0, &[7; 128]),
            (2, &[]),
        ]
    };
    // What mkfs.xfs wrote is before it.
    log(file, &sb, 2, 2, &commit(&superblock));
    found(file, SIZE).unwrap();
    log(file, &sb, 4, 2, &commit(&superblock));
    found(file, SIZE).unwrap();
    let refused = |words: &str| {
        let why = format!("{:#}", found(file, SIZE).unwrap_err());
        assert!(why.contains(words), "{why}; wanted: {words}");
    };
    for item in [&other, &inode] {
        log(file, &sb, 4, 2, &commit(item));
        refused("replayed");
        // That is in place, as the tail is behind it.
        log(file, &sb, 6, 6, &commit(&superblock));
        found(file, SIZE).unwrap();
        log(file, &sb, 6, 4, &commit(&superblock));
        refused("replayed");
        log(file, &sb, 6, 2, &commit(&superblock));
        refused("replayed");
        file.write_all_at(&[0; 1024], sb.log_start * sb.block + 6 * 512)
            .unwrap();
    }
    log(file, &sb, 4, 2, &commit(&superblock)[..4]);
    refused("middle of a transaction");
    log(file, &sb, 4, 2, &commit(&superblock));
    flip(file, sb.log_start * sb.block + 5 * 512 + 100);
    refused("checksum of the record");
}
