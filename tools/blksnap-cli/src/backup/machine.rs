// SPDX-License-Identifier: GPL-2.0-or-later

//! What the manifest says of a machine whose disks are all backed up. What cannot be found out is remarked,
//! and missing: the disks are in the backup all the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use blksnap_backup::{Disk, Machine, text_in};

use super::all::All;
use super::{Given, lvm};
use crate::output;

/// This machine, and these disks of it.
pub fn describe(disks: &[Given], all: &All) -> Machine {
    let firmware = match Path::new("/sys/firmware/efi").exists() {
        true => "uefi",
        false => "bios",
    };
    let groups = all.groups.iter().map(|group| {
        let what = format!("the metadata of the volume group {group}");
        (group.clone(), known(&what, lvm::metadata(group)))
    });
    let encrypted = all.encrypted.iter().map(|device| {
        let path = device.path();
        let what = format!("the header of LUKS of {}", path.display());
        let name = device.kernel_name().unwrap_or_else(|| device.to_string());
        (name, known(&what, header(&path)))
    });
    let found = |(name, text): (String, Option<String>)| Some((name, text?));
    Machine {
        kernel: text_in("/proc/sys/kernel/osrelease"),
        firmware: Some(firmware.into()),
        fstab: fs::read_to_string("/etc/fstab").ok(),
        disks: disks.iter().map(disk).collect(),
        volume_groups: groups.filter_map(found).collect(),
        encrypted: encrypted.filter_map(found).collect(),
    }
}

/// What was found out; what was not is remarked.
fn known<T>(what: &str, found: Result<T>) -> Option<T> {
    let remark = |error| output::remark(format!("{what} will not be in the manifest: {error:#}"));
    found.map_err(remark).ok()
}

/// What a header of LUKS says.
fn header(path: &Path) -> Result<String> {
    let mut cryptsetup = Command::new("cryptsetup");
    cryptsetup.args(["luksDump", "--"]).arg(path);
    cryptsetup.stdin(Stdio::null());
    let output = cryptsetup.output().context("cannot run cryptsetup")?;
    ensure!(
        output.status.success(),
        "cryptsetup luksDump: {} (a header that is kept apart from the data must be saved apart, too)",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("cryptsetup prints what is no text")
}

/// One disk.
fn disk(given: &Given) -> Disk {
    let shown = |name: &str| text_in(given.id.sysfs().join(name));
    let what = format!("the table of partitions of {}", given.path.display());
    let table = known(&what, table(&given.id.path())).flatten();
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
