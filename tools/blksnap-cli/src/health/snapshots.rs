// SPDX-License-Identifier: GPL-2.0-or-later

//! The module, and the snapshots that there are now.

use std::fs;

use super::{Found, Level};
use crate::module;
use crate::size::Size;
use crate::status::{self, Phase, Snapshot};

/// Sectors that the module wants to have free, or asks for, as it is set.
const PORTION: &str = "/sys/module/blksnap/parameters/diff_storage_minimum";
/// Bytes of that, if it cannot be read.
const USUAL_PORTION: u64 = 1 << 30;

/// Looks at the module and all snapshots.
pub fn look(found: &mut Found) {
    let status = status::read();
    if let Err(error) = &status {
        let missing = module::is_missing(error);
        if missing {
            let trouble = module::trouble(error).unwrap_or("`modprobe blksnap` loads it".into());
            let text = format!("the module is not loaded: no backup can be made; {trouble}");
            found.add(Level::Critical, text);
        } else {
            found.add(Level::Unknown, format!("{error:#}"));
        }
        if !missing {
            return;
        }
    }
    let help = "Whether the module is loaded.";
    let loaded = status.is_ok().into();
    found.metrics.add("module_loaded", help, loaded);
    let Ok(status) = status else {
        return;
    };
    let text = format!(
        "module {}, {} devices tracked, {} snapshots",
        status.module,
        status.trackers.len(),
        status.snapshots.len()
    );
    found.add(Level::Ok, text);
    let lost = |snapshot: &&Snapshot| snapshot.state == Phase::Corrupted;
    let lost = status.snapshots.iter().filter(lost).count();
    let help = "Snapshots that there are.";
    let count = status.snapshots.len() as u64;
    found.metrics.add("snapshots", help, count);
    let help = "Snapshots that are lost.";
    found.metrics.add("snapshots_corrupted", help, lost as u64);
    let portion = fs::read_to_string(PORTION).ok();
    let portion = portion.and_then(|text| text.trim().parse::<u64>().ok());
    let portion = portion.map_or(USUAL_PORTION, |sectors| sectors.saturating_mul(512));
    for snapshot in &status.snapshots {
        look_at(snapshot, portion, found);
    }
}

fn look_at(snapshot: &Snapshot, portion: u64, found: &mut Found) {
    let id = snapshot.id.to_string();
    let devices = snapshot.devices.iter();
    let devices: Vec<_> = devices
        .map(|one| one.device.display().to_string())
        .collect();
    let name = format!("the snapshot {id} of {}", devices.join(", "));
    if let Some(error) = &snapshot.error {
        let text = format!("{name} is lost: {}; {}", error.meaning, error.advice);
        found.add(Level::Critical, text);
    }
    for device in &snapshot.devices {
        if let (Some(error), None) = (&device.error, &snapshot.error) {
            let device = device.device.display();
            let text = format!("{name}: the image of {device} is lost: {}", error.meaning);
            found.add(Level::Critical, text);
        }
    }
    if snapshot.owner.as_ref().is_some_and(|owner| !owner.alive) {
        let text = format!("{name} has lost its owner: `blksnap snapshot_destroy -i {id}` ends it");
        found.add(Level::Warning, text);
    }
    let (Some(size), Some(used)) = (snapshot.storage.size, snapshot.storage.used) else {
        return;
    };
    if is_nearly_full(size, used, portion) && snapshot.state == Phase::Taken {
        let text = format!(
            "{name}: its difference storage is nearly full: {} of {} are used; if it gets full, the snapshot is lost",
            Size(used),
            Size(size)
        );
        found.add(Level::Warning, text);
    }
    let label = ("snapshot", &*id);
    let help = "Bytes of difference storage that a snapshot has.";
    let name = "snapshot_storage_size_bytes";
    found.metrics.add_of(name, help, label, size);
    let help = "Bytes of it that are in use.";
    let name = "snapshot_storage_used_bytes";
    found.metrics.add_of(name, help, label, used);
}

/// The kernel gives more, and others are asked for more, when half a portion is left. So what has less
/// than a quarter has not got it, or not fast enough. What is given once has no more than that.
fn is_nearly_full(size: u64, used: u64, portion: u64) -> bool {
    size.saturating_sub(used) < (portion / 4).min(size / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_that_grows_is_not_nearly_full() {
        const GIB: u64 = 1 << 30;
        // It has just got a portion, or is about to.
        assert!(!is_nearly_full(GIB, GIB / 2, GIB));
        assert!(!is_nearly_full(100 * GIB, 99 * GIB + GIB / 2, GIB));
        // It has not got it.
        assert!(is_nearly_full(100 * GIB, 99 * GIB + GIB * 7 / 8, GIB));
        assert!(is_nearly_full(GIB, GIB, GIB));
        assert!(!is_nearly_full(0, 0, GIB));
        // All that there will be.
        assert!(!is_nearly_full(100, 89, GIB));
        assert!(is_nearly_full(100, 91, GIB));
    }
}
