// SPDX-License-Identifier: GPL-2.0-or-later

//! Remarks where what should be apart is not: backups and difference storage on what is captured.

use std::path::Path;

use blksnap::{DevId, Relation};

use crate::names;
use crate::output;

/// Remarks that backups go to what they are backups of.
pub fn remark_backups(directory: &Path, devices: &[DevId]) {
    if let Some(device) = captured_below(directory, devices) {
        output::remark(format!(
            "the backups in {} are on {}, which is backed up: they are lost with it, and each of them is copied again by \
             the next one; name a directory on another disk by --to",
            directory.display(),
            device.path().display()
        ));
    }
}

/// Remarks that difference storage is on what is captured.
pub fn remark_storage(directory: &Path, devices: &[DevId]) {
    if let Some(device) = captured_below(directory, devices) {
        output::remark(format!(
            "difference storage: {} is on the captured {}: what is stored there counts as changed, and the next \
             incremental backup copies it; name another disk by --storage",
            directory.display(),
            device.path().display()
        ));
    }
}

/// The captured device that the file system of a directory is on, directly or by way of others.
fn captured_below(directory: &Path, devices: &[DevId]) -> Option<DevId> {
    let mut below = names::devices_under(directory).into_iter();
    below.find_map(|device| match Relation::of(device, devices) {
        Relation::Separate => None,
        Relation::Overlaps(captured) | Relation::Above(captured) => Some(captured),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_directory_is_found() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let under = names::devices_under(dir.path());
        if under.is_empty() {
            eprintln!("/var/tmp is on no block device here");
        }
        for device in under {
            assert_eq!(captured_below(dir.path(), &[device]), Some(device));
        }
        let other = DevId {
            major: 4095,
            minor: 1,
        };
        assert_eq!(captured_below(dir.path(), &[other]), None);
        assert_eq!(captured_below(Path::new("/proc"), &[other]), None);
    }
}
