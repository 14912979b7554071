// SPDX-License-Identifier: GPL-2.0-or-later

//! Full or incremental: what is known decides.

use blksnap::CbtInfo;

use crate::manifest;

/// How a device is copied.
pub enum Plan {
    /// All of it.
    Full {
        /// Why, in words.
        reason: String,
    },
    /// What was written since an earlier snapshot.
    Incremental {
        /// Its number.
        since: u8,
    },
}

/// The number since which changes are wanted; or why it is not known what has changed.
pub fn since(old: &manifest::Device, info: &CbtInfo) -> Result<u8, String> {
    if old.size != info.capacity {
        return Err(format!(
            "the device had {} bytes at the last backup, and has {} now",
            old.size, info.capacity
        ));
    }
    if old.generation != info.generation.0 {
        return Err(
            "its changes were not tracked all the time since the last backup (a reboot, the module reloaded, or \
             255 snapshots)"
                .into(),
        );
    }
    if old.number >= info.number {
        return Err(format!(
            "the last backup has the number {}, the snapshot {}",
            old.number, info.number
        ));
    }
    Ok(old.number)
}

#[cfg(test)]
mod tests {
    use blksnap::{DevId, GenerationId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_a_known_past_is_continued() {
        let old = manifest::Device {
            name: "vda".into(),
            path: "/dev/vda".into(),
            file: "vda.raw".into(),
            size: 1 << 20,
            generation: Uuid::from_u128(1),
            number: 3,
            block_size: 65536,
        };
        let info = CbtInfo {
            device: DevId { major: 8, minor: 0 },
            block_size: 65536,
            capacity: 1 << 20,
            block_count: 16,
            generation: GenerationId(Uuid::from_u128(1)),
            number: 4,
        };
        assert_eq!(since(&old, &info), Ok(3));
        let number = CbtInfo { number: 3, ..info };
        assert!(since(&old, &number).unwrap_err().contains("number"));
        let capacity = CbtInfo {
            capacity: 2 << 20,
            ..info
        };
        assert!(since(&old, &capacity).unwrap_err().contains("bytes"));
        let generation = CbtInfo {
            generation: GenerationId(Uuid::from_u128(2)),
            ..info
        };
        assert!(since(&old, &generation).unwrap_err().contains("tracked"));
    }
}
