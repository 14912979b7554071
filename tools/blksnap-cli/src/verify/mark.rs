// SPDX-License-Identifier: GPL-2.0-or-later

//! `verify --mark-dirty`: what is damaged in the newest backup, and what it is based on, is marked as
//! changed in the module. The next incremental backup copies that again, as it is then, and hides
//! the damage from all restores of itself and of later ones.

use std::path::Path;

use anyhow::{Context, Result};
use blksnap::{ByteSet, Control, SectorRange};
use blksnap_backup::{Chain, Device, Layer, Manifest, Repository};
use serde::Serialize;

use super::Damage;
use crate::output;
use crate::remembered::{Memory, Take};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// What was marked of a device.
#[derive(Debug, Serialize)]
pub struct Marked {
    /// The name of the device in the backup.
    pub device: String,
    /// How much was damaged.
    pub bytes: u64,
}

/// Marks what is damaged in the newest backup.
pub fn dirty(path: &Path, damage: &[Damage]) -> Result<Vec<Marked>> {
    let (repository, _) = Repository::read(path)?;
    let Some(newest) = repository.newest()? else {
        return Ok(Vec::new());
    };
    let control = Control::open()?;
    let trackers = control.trackers()?;
    let memory = Memory::open();
    let mut marked = Vec::new();
    for device in &newest.devices {
        let places = damaged(&repository, &newest, device, damage)?;
        if places.is_empty() {
            continue;
        }
        let tracker = trackers
            .iter()
            .find(|info| info.generation.0 == device.generation && info.capacity == device.size);
        let known = tracker
            .ok_or_else(|| "not tracked since the newest backup".to_owned())
            .and_then(|tracker| {
                let remembered = memory.has(tracker.device, Take::of(&newest, device));
                remembered.map(|()| tracker)
            });
        let tracker = match known {
            Ok(tracker) => tracker,
            Err(why) => {
                output::remark(format!(
                    "{}: {why}, so nothing can be marked, and the next one compares checksums, which does not find this \
                     damage: make that one with `blksnap backup --full`",
                    device.name
                ));
                continue;
            }
        };
        let ranges: Vec<_> = places
            .iter()
            .map(|range| {
                let start = range.start / SECTOR;
                SectorRange::new(start, range.end.div_ceil(SECTOR) - start)
            })
            .collect();
        control
            .mark_dirty(tracker.device, &ranges)
            .with_context(|| format!("cannot mark what is damaged of {}", device.name))?;
        marked.push(Marked {
            device: device.name.clone(),
            bytes: places.len(),
        });
    }
    Ok(marked)
}

/// What is damaged of what a backup shows of a device.
fn damaged(
    repository: &Repository,
    manifest: &Manifest,
    device: &Device,
    damage: &[Damage],
) -> Result<ByteSet> {
    let chain = Chain::open_damaged(repository, manifest, device);
    let chain = chain.with_context(|| {
        format!(
            "what is damaged of {} cannot be told: make a full backup",
            device.name
        )
    })?;
    let of_layer = |layer: &Layer| -> ByteSet {
        let id = layer.dir.file_name().unwrap_or_default();
        let here = damage.iter().filter(|one| {
            id == one.backup.as_str() && one.device.as_ref() == Some(&layer.device.name)
        });
        here.map(|one| match (one.start, one.length) {
            (Some(start), Some(length)) => start..start + length,
            // All of the file.
            _ => 0..layer.device.size,
        })
        .collect()
    };
    let by_layer: Vec<_> = chain.layers.iter().map(of_layer).collect();
    let anywhere = by_layer.iter().flat_map(ByteSet::iter).collect();
    let mut places = ByteSet::default();
    for seen in chain.seen(&anywhere) {
        let seen = seen?;
        if seen.is_zeros() {
            continue;
        }
        let parts = seen.parts.iter().cloned();
        parts
            .flat_map(|part| by_layer[seen.layer].inside(part))
            .for_each(|part| places.insert(part));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use blksnap_backup::testing::Store;

    use super::*;
    use crate::signals::Signals;
    use crate::verify::verify;

    #[test]
    fn only_what_the_newest_shows_is_marked() {
        let store = Store::new(8 << 20);
        let data = vec![5; 8 << 20];
        store.full(&data);
        let full = store.full(&data);
        let changed = 0..(1 << 20) + 65536;
        let next = store.incremental(&full, &data, std::slice::from_ref(&changed));
        let mib = 1 << 20;
        let flip = |id: &str, file: &str, at: usize| {
            let path = store.path().join(id).join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        };
        // Hidden, seen in part, and seen; and in the newer one.
        for at in [5, mib + 5, 4 * mib + 5] {
            flip(&full, "vda.raw", at);
        }
        flip(&next, "vda.raw-delta", mib + 5);
        let report = verify(store.path(), &Signals::catch().unwrap()).unwrap();
        assert_eq!(report.damage.len(), 4);
        let (repository, _) = Repository::read(store.path()).unwrap();
        let newest = repository.manifest(&next).unwrap();
        let places = damaged(&repository, &newest, &newest.devices[0], &report.damage).unwrap();
        let mib = mib as u64;
        assert_eq!(
            places.iter().collect::<Vec<_>>(),
            [mib..2 * mib, 4 * mib..5 * mib]
        );
    }
}
