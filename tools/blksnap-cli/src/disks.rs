// SPDX-License-Identifier: GPL-2.0-or-later

//! The whole disks that what is in use is on: below file systems and swap there are partitions, LVM, LUKS,
//! arrays, loop devices, and at last disks, or memory.
//!
//! A stack is followed down as far as what is there is made of writes that come through it. It ends above
//! the disks where these do not have all that is seen above: paths to one disk that the kernel writes to
//! by requests (multipath), and a cache whose disk is not named below (bcache).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use blksnap::DevId;
use blksnap_backup::text_in;

use crate::mounts::{self, Mount};
use crate::names;

/// The number of drives for CDs and the like.
const DISC_MAJOR: u32 = 11;

/// A file system or a swap area, and what it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// For people: `ext4 on /home`.
    pub what: String,
    /// The devices that it is on itself.
    pub devices: Vec<DevId>,
}

/// All that is mounted from devices, and all swap areas that are devices. Each once.
pub fn in_use() -> Result<Vec<Use>> {
    let mut uses: Vec<Use> = Vec::new();
    for mount in &mounts::table()? {
        // These have disks of their own, and do not show which.
        if ["zfs", "bcachefs"].contains(&&*mount.kind) {
            bail!(
                "which disks the {} on {} is on cannot be seen: name all disks, in place of --all",
                mount.kind,
                mount.point.display()
            );
        }
        let devices = all_devices_of(mount);
        if devices.is_empty() || uses.iter().any(|known| known.devices == devices) {
            continue;
        }
        uses.push(Use {
            what: format!("{} on {}", mount.kind, mount.point.display()),
            devices,
        });
    }
    for device in swaps()? {
        uses.push(Use {
            what: format!("swap on {}", device.path().display()),
            devices: vec![device],
        });
    }
    for device in journals() {
        uses.push(Use {
            what: format!("a journal on {}", device.path().display()),
            devices: vec![device],
        });
    }
    Ok(uses)
}

/// The devices of a file system, and those of its log and its files that are elsewhere.
fn all_devices_of(mount: &Mount) -> Vec<DevId> {
    let mut devices = names::devices_of(mount);
    let others = mount.options.split(',').filter_map(|option| {
        let (name, path) = option.split_once('=')?;
        ["logdev", "rtdev"].contains(&name).then_some(path)
    });
    devices.extend(others.filter_map(|path| names::device(path).ok()));
    devices
}

/// Devices that are swap.
fn swaps() -> Result<Vec<DevId>> {
    let path = "/proc/swaps";
    // A kernel without swap has no such file.
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {path}"))?,
    };
    let lines = text.lines().skip(1);
    let paths = lines.filter_map(|line| line.split_whitespace().next());
    // A file is on a file system that is mounted.
    Ok(paths.filter_map(|path| DevId::resolve(path).ok()).collect())
}

/// Devices that ext4 has its journal on, apart from the file system: the kernel names a journal by its
/// device, and one inside by the number of its inode as well.
fn journals() -> Vec<DevId> {
    let entries = fs::read_dir("/proc/fs/jbd2")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let number = |name: String| {
        let text = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev"));
        text.ok()?.trim().parse().ok()
    };
    names.filter_map(number).collect()
}

/// What is at the bottom of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bottom {
    /// A disk.
    Disk,
    /// What is not to be backed up, and why.
    Other(&'static str),
}

/// The bottoms of stacks, and the volume groups of LVM and the LUKS that were met.
#[derive(Default)]
pub struct Stacks {
    /// What was found at the bottom.
    pub bottoms: BTreeMap<DevId, Bottom>,
    /// The identities of volume groups, without dashes.
    pub groups: Vec<String>,
    /// The devices with data of LUKS, which is opened.
    pub encrypted: Vec<DevId>,
    /// The major number of images of snapshots.
    images: Option<u32>,
}

impl Stacks {
    /// Nothing, yet.
    pub fn new() -> Self {
        Self {
            images: major_of("blksnap-image"),
            ..Self::default()
        }
    }

    /// Finds what is below a device, adds it, and gives it.
    pub fn follow(&mut self, device: DevId) -> Vec<DevId> {
        let mut seen = vec![device];
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(&device) = seen.get(at) {
            at += 1;
            let disk = device.partition_of().map_or(device, |(disk, _)| disk);
            let (below, bottom) = self.look(disk);
            if let Some(bottom) = bottom {
                self.bottoms.insert(disk, bottom);
                found.push(disk);
            }
            for lower in below {
                if !seen.contains(&lower) {
                    seen.push(lower);
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// What a disk is built on, or else what it is.
    fn look(&mut self, disk: DevId) -> (Vec<DevId>, Option<Bottom>) {
        let is = |bottom| (Vec::new(), Some(bottom));
        let name = disk.kernel_name().unwrap_or_default();
        if self.images == Some(disk.major) {
            return is(Bottom::Other("it is an image of a snapshot"));
        }
        if ["ram", "zram"].contains(&name.trim_end_matches(|c: char| c.is_ascii_digit())) {
            return is(Bottom::Other("it is in memory"));
        }
        if disk.major == DISC_MAJOR {
            return is(Bottom::Other("it is a drive for discs"));
        }
        if let Some(file) = text_in(disk.sysfs().join("loop/backing_file")) {
            let file = PathBuf::from(file);
            let below = match DevId::resolve(&file) {
                Ok(device) => vec![device],
                Err(_) => names::devices_under(&file),
            };
            return match below.is_empty() {
                true => is(Bottom::Other("its file is on no disk of this machine")),
                false => (below, None),
            };
        }
        let uuid = text_in(disk.sysfs().join("dm/uuid")).unwrap_or_default();
        if let Some(group) = uuid.strip_prefix("LVM-").and_then(|rest| rest.get(..32)) {
            if !self.groups.iter().any(|known| known == group) {
                self.groups.push(group.to_owned());
            }
        }
        let whole = uuid.starts_with("mpath-") || name.starts_with("bcache");
        let below = if whole { Vec::new() } else { disk.below() };
        if uuid.starts_with("CRYPT-LUKS") {
            self.encrypted.extend(&below);
        }
        match below.is_empty() {
            true => is(Bottom::Disk),
            false => (below, None),
        }
    }
}

/// The number of a driver for block devices, if it is there.
fn major_of(driver: &str) -> Option<u32> {
    let text = fs::read_to_string("/proc/devices").ok()?;
    let (_, blocks) = text.split_once("Block devices:")?;
    blocks.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (name == driver).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_uses_is_on_something() {
        let mut stacks = Stacks::new();
        for one in in_use().unwrap() {
            assert!(!one.devices.is_empty(), "{one:?}");
            for device in one.devices {
                let found = stacks.follow(device);
                assert!(!found.is_empty(), "{}: {device}", one.what);
                assert!(found.iter().all(|disk| disk.partition_of().is_none()));
            }
        }
    }

    #[test]
    fn logs_of_xfs_elsewhere_are_devices_of_it() {
        let line = "27 22 4095:3 / /mnt rw - xfs /dev/x rw,attr2,logdev=4095:4,noquota";
        let devices = all_devices_of(&Mount::parse(line).unwrap());
        let minors: Vec<_> = devices.iter().map(|one| one.minor).collect();
        assert_eq!(minors, [3, 4]);
        assert_eq!(major_of("blksnap-no-such-driver"), None);
    }
}
