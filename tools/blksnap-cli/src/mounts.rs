// SPDX-License-Identifier: GPL-2.0-or-later

//! Who uses a block device: mounts, swap, and devices built on top of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use blksnap::DevId;

/// A line of the table of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The number that the file system gives for its device: of no device if the major is 0.
    pub device: DevId,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: String,
    /// What was mounted, usually a path in `/dev`.
    pub source: String,
    /// The options of the file system, separated by commas.
    pub options: String,
}

impl Mount {
    /// From a line of mountinfo: `ID PARENT MAJ:MIN ROOT POINT OPTIONS [FIELD…] - TYPE SOURCE OPTIONS`.
    pub fn parse(line: &str) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let mut what = what.split(' ');
        Some(Self {
            device: place.next()?.parse().ok()?,
            point: unescape(place.nth(1)?).into(),
            kind: what.next()?.to_owned(),
            source: unescape(what.next()?),
            options: what.next().map(unescape).unwrap_or_default(),
        })
    }

    /// Whether the file system can be written to, here or by another mount of it.
    pub fn is_writable(&self) -> bool {
        self.options.split(',').any(|option| option == "rw")
    }
}

/// The table of mounts.
pub fn table() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    // The names of mount points need not be UTF-8, and must not hide the others.
    let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(Mount::parse).collect())
}

/// A reason not to write to a device or its partitions, in words; `None` if there is none that can
/// be seen from here.
pub fn user_of(device: DevId) -> Option<String> {
    let mounts = table().unwrap_or_default();
    let parts = partitions(device);
    std::iter::once(device).chain(parts).find_map(|id| {
        let name = id.path();
        if let Some(mount) = mounts.iter().find(|mount| mount.device == id) {
            let point = mount.point.display();
            return Some(format!("{} is mounted on {point}", name.display()));
        }
        if let Some(holder) = holder(id) {
            return Some(format!("{} is used by {holder}", name.display()));
        }
        is_swap(id).then(|| format!("{} is used as swap", name.display()))
    })
}

/// Whether a device is an active swap area.
pub fn is_swap(id: DevId) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut paths = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    paths.any(|path| DevId::resolve(path).is_ok_and(|swap| swap == id))
}

/// The partitions of a disk.
pub fn partitions(device: DevId) -> Vec<DevId> {
    let entries = fs::read_dir(device.sysfs()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("partition").exists())
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("dev")).ok()?;
            text.trim().parse().ok()
        })
        .collect()
}

/// A device built on this one, such as a volume of LVM.
fn holder(device: DevId) -> Option<String> {
    let mut entries = fs::read_dir(device.sysfs().join("holders")).ok()?;
    entries.next()?.ok()?.file_name().into_string().ok()
}

/// Undoes the octal escapes of the table.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line = "30 22 254:16 /sub /mnt/my\\040data rw,noatime shared:1 master:2 - xfs /dev/vdb rw,attr2";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.device.to_string(), "254:16");
        assert_eq!(mount.point, PathBuf::from("/mnt/my data"));
        assert_eq!((&*mount.kind, &*mount.source), ("xfs", "/dev/vdb"));
        assert_eq!(mount.options, "rw,attr2");
        for line in [
            "",
            "30 22 254:16 / /mnt rw",
            "30 22 x / /mnt rw - xfs /dev/vdb rw",
        ] {
            assert_eq!(Mount::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_table_of_this_machine_is_understood() {
        let table = table().unwrap();
        assert!(table.iter().any(|mount| mount.kind == "proc"));
    }
}
