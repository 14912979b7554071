// SPDX-License-Identifier: GPL-2.0-or-later

//! Who uses a block device: mounts, swap, and devices built on top of it.

use std::fs;

use blksnap::DevId;

/// A reason not to write to a device or its partitions, in words; `None` if there is none that can
/// be seen from here.
pub fn user_of(device: DevId) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let parts = partitions(device);
    std::iter::once(device).chain(parts).find_map(|id| {
        let name = id.path();
        if let Some(point) = mount_point(&mounts, id) {
            return Some(format!("{} is mounted on {point}", name.display()));
        }
        if let Some(holder) = holder(id) {
            return Some(format!("{} is used by {holder}", name.display()));
        }
        let mut paths = swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next());
        paths
            .any(|path| DevId::resolve(path).is_ok_and(|swap| swap == id))
            .then(|| format!("{} is used as swap", name.display()))
    })
}

/// The partitions of a disk.
fn partitions(device: DevId) -> Vec<DevId> {
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

/// Where a device is mounted, by the table of mounts.
fn mount_point(mountinfo: &str, device: DevId) -> Option<String> {
    let device = device.to_string();
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == device).then(|| fields.nth(1).map(unescape))?
    })
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
    fn a_mount_is_found_by_number() {
        let table = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     30 22 254:16 / /mnt/my\\040data rw - xfs /dev/vdb rw\n";
        let id = |minor| DevId { major: 254, minor };
        assert_eq!(mount_point(table, id(16)).as_deref(), Some("/mnt/my data"));
        assert_eq!(mount_point(table, id(0)).as_deref(), Some("/"));
        assert_eq!(mount_point(table, id(1)), None);
    }
}
