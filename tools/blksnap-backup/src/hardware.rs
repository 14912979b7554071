// SPDX-License-Identifier: GPL-2.0-or-later

//! Which machine and which disk a backup is of, for people who find it years later.

use std::fs;
use std::path::Path;

use blksnap::DevId;
use serde::{Deserialize, Serialize};

/// What is printed on a disk, as far as the kernel shows it. Of a partition, that of its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// The serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The World Wide Name, or what stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
}

impl Hardware {
    /// That of a device.
    pub fn of(device: DevId) -> Self {
        let disk = device.partition_of().map_or(device, |(disk, _)| disk);
        Self::shown(&disk.sysfs())
    }

    /// As the directory of a disk shows it.
    fn shown(directory: &Path) -> Self {
        let first = |names: [&str; 2]| {
            let mut names = names.iter();
            names.find_map(|name| text_in(directory.join(name)))
        };
        Self {
            serial: first(["serial", "device/serial"]),
            wwn: first(["wwid", "device/wwid"]),
        }
    }
}

/// The name of this machine.
pub fn host() -> Option<String> {
    text_in("/proc/sys/kernel/hostname")
}

/// What is in a file of the kernel's, if there is more than space in it.
pub fn text_in(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_shows_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("device")).unwrap();
        fs::write(dir.path().join("serial"), " \n").unwrap();
        assert_eq!(Hardware::shown(dir.path()), Hardware::default());
        fs::write(dir.path().join("device/serial"), "WD-123 \n").unwrap();
        fs::write(dir.path().join("wwid"), "eui.0025\n").unwrap();
        let shown = Hardware::shown(dir.path());
        assert_eq!(shown.serial.as_deref(), Some("WD-123"));
        assert_eq!(shown.wwn.as_deref(), Some("eui.0025"));
        assert!(host().is_some());
    }
}
