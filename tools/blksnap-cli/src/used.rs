// SPDX-License-Identifier: GPL-2.0-or-later

//! Which blocks of a captured device its file systems do not use at the instant: they need be neither
//! read nor copied by the module, and are zeros in the backup.
//!
//! The image is only read: a mount, even a read-only one, would write to it (ext4 deletes what was
//! unlinked while open). What is not known for sure counts as used:
//!
//! - Only what is in use is looked into: a file system that this machine has mounted, for writing, right on
//!   the device or on a partition of it, and an active swap area. The kernel has agreed then that they are
//!   what they seem to be, and has frozen them for the take. What is not mounted may be damaged, may be kept as
//!   somebody wants files back that were deleted, or may be no file system any more: a database, say, that
//!   has left the superblock alone.
//! - Of that, what blkid names and nothing beside it: ext2, ext3, ext4, xfs and swap. What other file
//!   systems, LVM, LUKS and RAIDs use is not known here.
//! - The image has to say by itself that nothing is to be replayed, and all checksums have to be right.
//! - The first and the last [`EDGE`] are read, and all behind the end of the file system: boot loaders
//!   are there, and the superblocks of RAIDs. What is in no partition is read.
//!
//! A later incremental backup reads what was written since, and what was left out before and is used now: that
//! may have contents without having been written, as fsck and programs that get deleted files back only
//! change what says so. The manifest has what was left out.

mod ext4;
mod largest;
mod place;
mod xfs;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use blksnap::{ByteSet, DevId};
use blksnap_backup::without;

use crate::mounts::{self, Mount};
use place::{Bytes, Place};

/// So much of the beginning and of the end of a device or partition is always read.
const EDGE: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// What is known not to be used.
#[derive(Default)]
pub struct Unused {
    pub bytes: ByteSet,
    /// Why it is not known of all.
    pub unknown: Vec<String>,
}

/// Finds what is not used in the image of a device of `size` bytes.
pub fn unused(image: &Path, device: DevId, size: u64) -> Unused {
    let mut found = Unused::default();
    if let Err(why) = look(&mut found, image, device, size) {
        found.unknown.push(format!("{why:#}"));
        found.bytes = ByteSet::default();
    }
    found
}

fn look(found: &mut Unused, image: &Path, device: DevId, size: u64) -> Result<()> {
    let file = File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let mounts = mounts::table()?;
    let partitions = mounts::partitions(device);
    if partitions.is_empty() {
        let place = Place {
            file: &file,
            start: 0,
            size,
        };
        found.bytes = unused_in(image, &place, device, &mounts)?;
        return Ok(());
    }
    let mut before = ByteSet::default();
    for partition in partitions {
        let name = partition.path();
        let (start, size) =
            extent(partition, size).with_context(|| format!("{} is not known", name.display()))?;
        // That of an extended partition, which the others are in, is two sectors long.
        if size < 2 * EDGE {
            continue;
        }
        let range = start..start + size;
        ensure!(
            before.inside(range.clone()).next().is_none(),
            "{} is on another partition",
            name.display()
        );
        before.insert(range);
        let place = Place {
            file: &file,
            start,
            size,
        };
        match unused_in(image, &place, partition, &mounts) {
            Ok(bytes) => {
                let bytes = bytes.iter();
                bytes.for_each(|range| found.bytes.insert(range.start + start..range.end + start));
            }
            Err(why) => found.unknown.push(format!("{}: {why:#}", name.display())),
        }
    }
    Ok(())
}

/// Where a partition is on its disk, which has `disk` bytes.
fn extent(partition: DevId, disk: u64) -> Result<(u64, u64)> {
    let (_, start) = partition.partition_of().context("no partition any more")?;
    let path = partition.sysfs().join("size");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let size = text.trim().parse::<u64>()?.checked_mul(512);
    let size = size.filter(|size| start.checked_add(*size).is_some_and(|end| end <= disk));
    Ok((start, size.context("it is not on its disk")?))
}

/// What is not used in a place, which is the device `id` by itself.
fn unused_in(image: &Path, place: &Place, id: DevId, mounts: &[Mount]) -> Result<ByteSet> {
    let kind = kind(image, place)?;
    let unknown = || format!("what is free in {kind} is not known");
    let found = match kind.as_str() {
        "ext2" | "ext3" | "ext4" | "xfs" => {
            let family = &kind[..3];
            let is_mounted = mounts.iter().any(|mount| {
                mount.device == id && mount.kind.starts_with(family) && mount.is_writable()
            });
            ensure!(
                is_mounted,
                "{kind} is not mounted for writing, so that what was deleted may be wanted"
            );
            match family {
                "xfs" => xfs::unused(place),
                _ => ext4::unused(place),
            }
        }
        "swap" => {
            ensure!(
                mounts::is_swap(id),
                "the swap area is not in use, so that something else may be there"
            );
            swap(place)
        }
        _ => bail!(unknown()),
    };
    let found = found.with_context(unknown)?;
    let edges = [
        0..EDGE.min(place.size),
        place.size.saturating_sub(EDGE)..place.size,
    ];
    Ok(without(&found, &edges.into_iter().collect()))
}

/// What blkid finds, if it is one thing and no table of partitions.
fn kind(image: &Path, place: &Place) -> Result<String> {
    let mut blkid = Command::new("blkid");
    blkid.args(["-p", "-o", "export"]);
    blkid.args(["-O", &place.start.to_string()]);
    blkid.args(["-S", &place.size.to_string()]);
    blkid.arg("--").arg(image);
    let output = blkid.output().context("cannot run blkid")?;
    if !output.status.success() {
        bail!("blkid finds no file system, or several");
    }
    of_blkid(&String::from_utf8_lossy(&output.stdout))
}

/// The type of what `blkid -p -o export` prints.
fn of_blkid(text: &str) -> Result<String> {
    let value = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), None) => Ok(kind.to_owned()),
        (_, Some(_)) => bail!("it has partitions that the kernel does not show"),
        (None, None) => bail!("blkid finds no file system"),
    }
}

/// Of swap, only the header means something after a restore, unless a system sleeps in it.
fn swap(place: &Place) -> Result<ByteSet> {
    let head = place.read(0, PAGE)?;
    // A hibernated system has another mark there.
    ensure!(
        head.ends_with(b"SWAPSPACE2"),
        "its header is not that of plain swap with pages of 4 KiB"
    );
    // union swap_header: version and last_page.
    let (version, last) = (Bytes(&head).le32(1024)?, Bytes(&head).le32(1028)?);
    let end = (u64::from(last) + 1) * PAGE;
    ensure!(
        version == 1 && end <= place.size,
        "its header makes no sense"
    );
    Ok(std::iter::once(EDGE.min(end)..end).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn one_thing_is_looked_into() {
        assert_eq!(of_blkid("UUID=1\nTYPE=ext4\n").unwrap(), "ext4");
        assert!(of_blkid("TYPE=vfat\nPTTYPE=dos\n").is_err());
        assert!(of_blkid("PTTYPE=gpt\n").is_err());
        assert!(of_blkid("").is_err());
    }

    #[test]
    fn swap_is_its_header() {
        let file = &tempfile::tempfile().unwrap();
        let size = 1 << 20;
        file.set_len(size).unwrap();
        let (start, size) = (4096, size - 4096);
        let place = Place { file, start, size };
        assert!(swap(&place).is_err());
        let write = |bytes: &[u8], at| file.write_all_at(bytes, start + at).unwrap();
        write(b"SWAPSPACE2", 4086);
        assert!(swap(&place).is_err(), "no version");
        write(&[1, 0, 0, 0, 99, 0, 0, 0], 1024);
        let found: Vec<_> = swap(&place).unwrap().iter().collect();
        assert_eq!(found, [EDGE..100 * PAGE], "what is behind it is read");
        write(&[255], 1028);
        assert!(swap(&place).is_err(), "larger than the device");
        write(&[99], 1028);
        write(b"S1SUSPEND\0", 4086);
        assert!(swap(&place).is_err(), "a system sleeps there");
    }
}
