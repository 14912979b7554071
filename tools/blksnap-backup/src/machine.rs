// SPDX-License-Identifier: GPL-2.0-or-later

//! What a machine was when all of its disks were backed up, for who has to make another one of it. The
//! disks themselves are in the backup, bit for bit: a restore needs little of this, people may need more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A machine. What was not known is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The release of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// By what it was booted: `uefi` or `bios`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// The text of `/etc/fstab`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fstab: Option<String>,
    /// The disks, in the order of the manifest's devices.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// For each volume group of LVM, what `vgcfgbackup` writes of it, and `vgcfgrestore` reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_groups: BTreeMap<String, String>,
    /// For each device with data of LUKS, by the kernel's name of it, what `cryptsetup luksDump` prints of its
    /// header: no keys. The header itself is in the backup of the disk, if it is not kept apart from the data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub encrypted: BTreeMap<String, String>,
}

/// What the manifest does not say of a disk by its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The name of the device.
    pub name: String,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Bytes in a logical sector, which tables of partitions count in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u64>,
    /// The table of partitions, as `sfdisk --dump` writes and `sfdisk` reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
}

impl Machine {
    /// A disk, by the name of its device.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}
