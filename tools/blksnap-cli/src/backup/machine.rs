// SPDX-License-Identifier: GPL-2.0-or-later

//! What the manifest says of a machine whose disks are all backed up. What cannot be found out is remarked,
//! and missing: the disks are in the backup all the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use blksnap_backup::{Disk, Machine, text_in};

use super::{Given, lvm};
use crate::output;

/// This machine, and these disks of it.
pub fn describe(disks: &[Given], groups: &[String]) -> Machine {
    let firmware = match Path::new("/sys/firmware/efi").exists() {
        true => "uefi",
        false => "bios",
    };
    let mut volume_groups = BTreeMap::new();
    for group in groups {
        match lvm::metadata(group) {
            Ok(text) => drop(volume_groups.insert(group.clone(), text)),
            Err(error) => output::remark(format!(
                "the metadata of the volume group {group} will not be in the manifest: {error:#}"
            )),
        }
    }
    Machine {
        kernel: text_in("/proc/sys/kernel/osrelease"),
        firmware: Some(firmware.into()),
        fstab: fs::read_to_string("/etc/fstab").ok(),
        disks: disks.iter().map(disk).collect(),
        volume_groups,
    }
}

/// One disk.
fn disk(given: &Given) -> Disk {
    let shown = |name: &str| text_in(given.id.sysfs().join(name));
    let table = table(&given.id.path());
    let table = table.unwrap_or_else(|error| {
        output::remark(format!(
            "{}: its table of partitions will not be in the manifest: {error:#}",
            given.path.display()
        ));
        None
    });
    Disk {
        name: given.name.clone(),
        model: shown("device/model"),
        sector_size: shown("queue/logical_block_size").and_then(|text| text.parse().ok()),
        table,
    }
}

/// The table of partitions of a device, for sfdisk; `None` if it has none.
fn table(path: &Path) -> Result<Option<String>> {
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.arg("--dump").arg("--").arg(path);
    sfdisk.stdin(Stdio::null());
    let output = sfdisk.output().context("cannot run sfdisk")?;
    let text = String::from_utf8(output.stdout).context("sfdisk prints what is no text")?;
    // It fails where there is no table, and so where it cannot read: that the copy will tell.
    Ok(output.status.success().then_some(text))
}
