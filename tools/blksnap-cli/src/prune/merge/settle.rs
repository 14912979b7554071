// SPDX-License-Identifier: GPL-2.0-or-later

//! What a merge has written becomes that of a backup: its files, and its entries in the manifest.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use blksnap_backup::{Device, Extents, Kind, MANIFEST, Manifest, Repository, sync_dir};

use crate::prune::step;

/// Puts the merged file, if it is a new one, in the place of the one of a backup, and gives what the
/// manifest will say. What is lost of the dropped ones, and was not written since, it says already.
pub fn take_over(
    manifest: &Manifest,
    device: &Device,
    dir: &Path,
    file: Option<&str>,
    kind: Kind,
    extents: Extents,
) -> Result<Device> {
    if kind == Kind::Full && !extents.is_all(device.size) {
        bail!(
            "{}: what was merged is not all of {}",
            manifest.id,
            device.name
        );
    }
    let mut entry = Device {
        kind,
        base_device: None,
        ..device.clone()
    };
    if kind == Kind::Full {
        entry.reason = "merged by prune".into();
        entry = entry.stored_as(device.file_format);
    }
    let Some(file) = file else {
        store_list(dir, &mut entry, extents)?;
        return Ok(entry);
    };
    let new = dir.join(file);
    let size = new
        .metadata()
        .with_context(|| format!("cannot look at {}", new.display()))?
        .len();
    entry.file_size = size;
    store_list(dir, &mut entry, extents)?;
    if entry.file == device.file && size < device.file_size {
        // Until the manifest is replaced, this is the file of the backup as it was.
        let mut smaller = Manifest::read(dir)?;
        for old in &mut smaller.devices {
            if old.name == device.name {
                old.file_size = size;
            }
        }
        step("allowing a smaller file")?;
        smaller.write(dir)?;
    }
    step("taking over the merged file")?;
    fs::rename(&new, dir.join(&entry.file))
        .with_context(|| format!("cannot rename {}", new.display()))?;
    // Two names of one file: the rename has done nothing then.
    let _ = fs::remove_file(&new);
    sync_dir(dir)?;
    Ok(entry)
}

/// The name of a list of extents that is being written.
pub const LIST: &str = ".extents.new";

/// Gives a new list of extents a name that no other list has, and names it in the entry of the device.
pub fn store_list(dir: &Path, device: &mut Device, extents: Extents) -> Result<()> {
    let new = extents.path();
    File::open(new)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot write back {}", new.display()))?;
    let hash = extents.hash().to_hex();
    let (stem, _) = device
        .extents
        .split_once('.')
        .unwrap_or((&device.extents, ""));
    let (stem, _) = stem.split_once('~').unwrap_or((stem, ""));
    device.extents = format!("{stem}~{}.extents.jsonl", &hash[..8]);
    device.extents_blake3 = hash.to_string();
    (device.data_bytes, device.zero_bytes) = extents.totals();
    extents.renamed(&dir.join(&device.extents))?;
    sync_dir(dir)
}

/// Removes files that the manifest of a backup does not name. Directories are of somebody else: of storage that
/// shows its snapshots in them, or keeps its notes there.
pub fn tidy(repository: &Repository, id: &str) -> Result<()> {
    let (dir, manifest) = (repository.dir(id), repository.manifest(id)?);
    let failed = || format!("cannot clean up {}", dir.display());
    for entry in fs::read_dir(&dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let named = |device: &Device| name == *device.file || name == *device.extents;
        let is_dir = entry.file_type().with_context(failed)?.is_dir();
        if name != MANIFEST && !is_dir && !manifest.devices.iter().any(named) {
            step("cleaning up")?;
            fs::remove_file(entry.path()).with_context(failed)?;
        }
    }
    Ok(())
}
