// SPDX-License-Identifier: GPL-2.0-or-later

//! All disks of a machine, laid out on others: what is more than writing each of them back.
//!
//! A disk of the same size is the same, bit for bit. On a larger one, a GPT is made that of the larger disk;
//! a master boot record needs nothing. With `--grow`, the last partition of a GPT takes what comes after it,
//! unless what is in it has to be at its end. That is not done without being asked for, as not all that is
//! at the end of a partition is known here.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blksnap_backup::table::{Partition, Table as Partitions};
use blksnap_backup::{Buffer, Device, Manifest, is_block_device, logical_block};
use serde::Serialize;

use super::signature;
use super::target::{OpenTarget, Place};
use crate::output;
use crate::size::Size;

/// So much at the end of a larger disk is cleared, where tools look for what was there before.
const TAIL: u64 = 1 << 20;

/// What was done with the table of partitions of a disk that is larger now.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// `gpt` or `mbr`.
    kind: &'static str,
    /// Whether the second header was moved to the end.
    moved: bool,
    /// The partition that takes what comes after it now.
    grown: Option<Grown>,
    /// Why none was, if one should be.
    not_grown: Option<String>,
}

/// A partition that is larger than it was.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Grown {
    partition: u32,
    /// Bytes.
    size_before: u64,
    size: u64,
    /// What is in it, as blkid says.
    holds: Option<String>,
}

/// Fails if it is seen without writing that the disks of a backup cannot be laid out there.
pub fn check(manifest: &Manifest, pairs: &[(&Device, Place)]) -> Result<()> {
    let missing = manifest.devices.iter();
    let missing = missing.filter(|one| !pairs.iter().any(|(device, _)| device.name == one.name));
    let missing: Vec<_> = missing.map(|one| one.name.as_str()).collect();
    ensure!(
        missing.is_empty(),
        "no disk is named for {}: a machine is laid out as a whole (the backup has {}); to restore some of its disks, \
         use --to",
        missing.join(", "),
        manifest.names()
    );
    let Some(machine) = &manifest.machine else {
        output::remark(
            "the backup was not made with --all: it is not known whether it has all disks, and how large their sectors were",
        );
        return Ok(());
    };
    for (device, place) in pairs {
        let path = place.path();
        let old = machine.disk(&device.name).and_then(|disk| disk.sector_size);
        let (Some(old), true) = (old, place.is_device()) else {
            continue;
        };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let new = logical_block(&file);
        if old != new {
            bail!(
                "cannot restore to {}: it has sectors of {new} bytes, {} had {old}, and partitions are counted in them: \
                 take another disk",
                path.display(),
                device.name
            );
        }
    }
    Ok(())
}

/// Makes the table of partitions of a target, to which a smaller disk of `size` bytes was written, that of the
/// target. What is damaged there was so when it was backed up, or is said to be lost: it stays.
pub fn lay_out(target: &OpenTarget, size: u64, grow: bool) -> Result<Option<Table>> {
    let new = target.size()?;
    if new == size {
        return Ok(None);
    }
    clear_tail(target, size, new)?;
    let sector = target.sector();
    let table = match Partitions::read(size, sector, &|at, bytes| read(target, at, bytes)) {
        Ok(table) => table,
        Err(error) => {
            output::remark(format!(
                "{}: its table of partitions stays as it is: {error:#}",
                target.path().display()
            ));
            return Ok(None);
        }
    };
    let Some(table) = table else {
        return Ok(None);
    };
    let mut report = Table {
        kind: "mbr",
        moved: false,
        grown: None,
        not_grown: None,
    };
    let Partitions::Gpt(gpt) = &table else {
        report.not_grown = grow.then(|| "that is done with a GPT only".into());
        return Ok(Some(report));
    };
    report.kind = "gpt";
    let last = gpt.partitions().iter().max_by_key(|one| one.range.end);
    let mut holds = None;
    if let (true, Some(last)) = (grow, last) {
        let found = signature::kind_at(target.path(), &last.range);
        report.not_grown = match &found {
            Ok(Some(kind)) if kind.is_bound_to_end() => {
                Some(format!("{} is found by what is at its end", kind.name))
            }
            Err(error) => Some(format!("it is not known what is in it: {error:#}")),
            _ => None,
        };
        holds = found.ok().flatten().map(|kind| kind.name);
    }
    let moved = gpt
        .moved(new, grow && report.not_grown.is_none())
        .with_context(|| format!("{}: cannot move its GPT", target.path().display()))?;
    for (at, bytes) in &moved.writes {
        write(target, *at, bytes)?;
    }
    report.moved = true;
    report.grown = moved.grown.map(|(partition, size_before)| Grown {
        partition: partition.number,
        size_before,
        size: length(&partition),
        holds,
    });
    Ok(Some(report))
}

fn length(partition: &Partition) -> u64 {
    partition.range.end - partition.range.start
}

/// Clears the end of a disk, behind what was restored.
fn clear_tail(target: &OpenTarget, size: u64, new: u64) -> Result<()> {
    target.zero(new.saturating_sub(TAIL).max(size)..new)
}

/// Reads in memory that direct I/O accepts: what was written went past the page cache.
fn read(target: &OpenTarget, at: u64, bytes: &mut [u8]) -> Result<()> {
    let mut buffer = Buffer::with_room(bytes.len());
    let own = &mut buffer.bytes_mut()[..bytes.len()];
    target.read(at, own)?;
    bytes.copy_from_slice(own);
    Ok(())
}

fn write(target: &OpenTarget, at: u64, bytes: &[u8]) -> Result<()> {
    let mut buffer = Buffer::with_room(bytes.len());
    let own = &mut buffer.bytes_mut()[..bytes.len()];
    own.copy_from_slice(bytes);
    target.write(at, own)
}

/// Lets the kernel see the partitions of a disk that was laid out.
pub fn show_partitions(target: &OpenTarget) {
    if !is_block_device(target.path()) {
        return;
    }
    if let Err(errno) = target.reread_partitions() {
        let path = target.path().display();
        output::remark(format!(
            "the kernel does not see the partitions of {path} yet: {errno}; `blockdev --rereadpt {path}` tries again"
        ));
    }
}

/// What no disk has, and the new machine may need.
pub fn remark_boot(manifest: &Manifest) {
    let firmware = manifest
        .machine
        .as_ref()
        .and_then(|machine| machine.firmware.as_deref());
    if firmware == Some("uefi") {
        output::remark(
            "the machine was booted by UEFI, whose firmware names boot loaders in memory of its own: if the new one does \
             not find it, `efibootmgr --create` names it there",
        );
    }
}

impl Table {
    /// Says what was done, for people.
    pub fn print(&self, target: &Path) -> Result<()> {
        let path = target.display();
        if self.moved {
            output::print(format!(
                "{path}: the second header of its GPT is at the end now"
            ))?;
        }
        if let Some(why) = &self.not_grown {
            output::print(format!("{path}: no partition was grown: {why}"))?;
        }
        let Some(grown) = &self.grown else {
            return Ok(());
        };
        let part = partition_path(target, grown.partition);
        output::print(format!(
            "{}: grown from {} to {}; {}",
            part.display(),
            Size(grown.size_before),
            Size(grown.size),
            growing(grown.holds.as_deref(), &part)
        ))
    }
}

/// The path of a partition, as the kernel and udev name them.
fn partition_path(disk: &Path, number: u32) -> PathBuf {
    let disk = disk.display().to_string();
    let by_udev = disk.starts_with("/dev/disk/") || disk.starts_with("/dev/mapper/");
    let between = match disk.ends_with(|c: char| c.is_ascii_digit()) {
        _ if by_udev => "-part",
        true => "p",
        false => "",
    };
    format!("{disk}{between}{number}").into()
}

/// What to do to use all of a partition that was grown.
fn growing(holds: Option<&str>, part: &Path) -> String {
    let part = part.display();
    let how = match holds {
        Some("ext2" | "ext3" | "ext4") => format!("resize2fs {part}"),
        Some("xfs") => "xfs_growfs MOUNTPOINT".into(),
        Some("btrfs") => "btrfs filesystem resize max MOUNTPOINT".into(),
        Some("f2fs") => format!("resize.f2fs {part}"),
        Some("LVM2_member") => format!("pvresize {part}"),
        Some("crypto_LUKS") => "cryptsetup resize NAME".into(),
        Some(other) => return format!("the {other} in it is as large as before"),
        None => return "what is in it is not known".into(),
    };
    format!("what is in it grows by `{how}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_the_names_that_the_kernel_gives() {
        for (disk, part) in [
            ("/dev/vda", "/dev/vda3"),
            ("/dev/nvme0n1", "/dev/nvme0n1p3"),
            ("/dev/disk/by-id/ata-1", "/dev/disk/by-id/ata-1-part3"),
        ] {
            assert_eq!(partition_path(Path::new(disk), 3), Path::new(part));
        }
    }

    #[test]
    fn how_to_go_on_is_said() {
        let how = |holds| growing(holds, Path::new("/dev/vda3"));
        assert!(how(Some("ext4")).ends_with("`resize2fs /dev/vda3`"));
        assert!(how(Some("swap")).contains("the swap in it is as large as before"));
        assert!(how(None).contains("not known"));
    }
}
