// SPDX-License-Identifier: GPL-2.0-or-later

//! A backup made full, by merging what it is based on: see [`prune`](super).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use blksnap::ByteSet;
use blksnap_backup::format::Writer;
use blksnap_backup::{
    Chain, Device, Extent, Extents, Kind, Layer, MANIFEST, Manifest, Repository, State, Watch,
    no_work, private, sync_dir,
};

use super::{Merged, step};
use crate::progress::Progress;
use crate::signals::Signals;

/// Makes a backup full. With `only_dropped`, only if it is based on one that was dropped.
pub fn into(
    repository: &Repository,
    id: &str,
    signals: &Signals,
    only_dropped: bool,
) -> Result<Vec<Merged>> {
    let mut manifest = repository.manifest(id)?;
    let Some(base) = &manifest.base else {
        return Ok(Vec::new());
    };
    let dropped = || {
        let read = repository.manifest(base);
        read.is_ok_and(|base| base.state == State::Dropped)
    };
    if only_dropped && !dropped() {
        return Ok(Vec::new());
    }
    let dir = repository.dir(id);
    let (mut merged, mut devices) = (Vec::new(), Vec::new());
    for device in &manifest.devices {
        let chain = Chain::open(repository, &manifest, device)?;
        let Some(plan) = plan(&chain, &manifest) else {
            devices.push(device.clone());
            continue;
        };
        let (file, extents) = match plan.in_place {
            true => {
                forget_hidden(&chain.layers[0], signals)?;
                drop(chain);
                let chain = Chain::open(repository, &manifest, device)?;
                in_place(chain, &dir, signals)?
            }
            false => new_file(chain, &dir, signals)?,
        };
        devices.push(take_over(&manifest, device, &dir, &file, &extents)?);
        merged.push(plan);
    }
    manifest.devices = devices;
    manifest.base = None;
    step("making it full")?;
    manifest.write(&dir)?;
    Ok(merged)
}

/// What merging means for a device; `None` if it is full already.
pub fn plan(chain: &Chain, manifest: &Manifest) -> Option<Merged> {
    let [full, .., top] = chain.layers.as_slice() else {
        return None;
    };
    let in_place = can_update(full, top);
    let layers = chain.layers.iter().skip(in_place.into());
    Some(Merged {
        backup: manifest.id.clone(),
        device: top.device.name.clone(),
        in_place,
        bytes: layers.map(Layer::data_bytes).sum(),
    })
}

/// Whether the full file can be changed in place, and have another name.
fn can_update(full: &Layer, top: &Layer) -> bool {
    let link = top.dir.join(".link");
    let _ = fs::remove_file(&link);
    let linked = fs::hard_link(full.file(), &link).is_ok();
    let _ = fs::remove_file(&link);
    let format = full.device.file_format;
    linked && matches!(format.update(&full.file()), Ok(Some(_)))
}

/// Merges all into the full file. Gives the name of a link to it in the directory of the backup,
/// and the extents.
fn in_place(chain: Chain, dir: &Path, signals: &Signals) -> Result<(String, Extents)> {
    let [full, .., top] = chain.layers.as_slice() else {
        bail!("nothing to merge");
    };
    let Some(mut writer) = full.device.file_format.update(&full.file())? else {
        bail!("cannot change {} in place", full.file().display());
    };
    let mut extents: Vec<_> = full.extents.iter().copied().collect();
    write(&chain.layers[1..], &mut *writer, &mut extents, signals)?;
    step("syncing the full file")?;
    writer.finish()?;
    let name = format!(".{}.full", top.device.file);
    let link = dir.join(&name);
    let _ = fs::remove_file(&link);
    step("linking the full file")?;
    fs::hard_link(full.file(), &link)
        .with_context(|| format!("cannot make the link {}", link.display()))?;
    private::close(&link).with_context(|| format!("cannot close {}", link.display()))?;
    Ok((name, Extents::new(extents)))
}

/// Merges all into a new file. Gives its name and the extents.
fn new_file(chain: Chain, dir: &Path, signals: &Signals) -> Result<(String, Extents)> {
    let Some(top) = chain.layers.last() else {
        bail!("an empty chain");
    };
    let name = format!(".{}.full", top.device.file);
    let path = dir.join(&name);
    let _ = fs::remove_file(&path);
    let format = top.device.file_format;
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let mut writer = format.create(&path, top.device.size, &id, None)?;
    let mut extents = Vec::new();
    write(&chain.layers, &mut *writer, &mut extents, signals)?;
    step("syncing the new file")?;
    writer.finish()?;
    Ok((name, Extents::new(extents)))
}

/// Writes what is seen of layers, and adds the extents of that.
fn write(
    layers: &[Layer],
    writer: &mut dyn Writer,
    extents: &mut Vec<Extent>,
    signals: &Signals,
) -> Result<()> {
    for layer in layers {
        let id = layer.dir.file_name().unwrap_or_default().to_string_lossy();
        let what = format!("{}: merging what {id} has", layer.device.name);
        let progress = Progress::start(what, layer.data_bytes(), signals);
        for extent in layer.extents.zeros() {
            for part in layer.visible(extent) {
                signals.check()?;
                step("writing zeros")?;
                writer.zero(part.clone())?;
                extents.push(Extent::of_zeros(part));
            }
        }
        layer.read(layer.data(), &progress, no_work, |extent, bytes, good| {
            good?;
            for (part, bytes) in seen(layer, extent, bytes) {
                step("writing data")?;
                writer.write(part.start, bytes)?;
                progress.advance(part.length);
                extents.push(part);
            }
            Ok(())
        })?;
        progress.finish();
    }
    Ok(())
}

/// What is seen of an extent of data, with the data.
fn seen<'a>(layer: &Layer, extent: &Extent, bytes: &'a [u8]) -> Vec<(Extent, &'a [u8])> {
    let parts = layer.visible(extent).map(|part| {
        let inside = |at: u64| (at - extent.start) as usize;
        let bytes = &bytes[inside(part.start)..inside(part.end)];
        let part = match part == extent.range() {
            true => *extent,
            false => Extent::of(part.start, bytes),
        };
        (part, bytes)
    });
    parts.collect()
}

/// Reads and checks all that [`into`] will read of a chain, and changes nothing.
pub fn check(chain: &Chain, plan: &Merged, signals: &Signals) -> Result<()> {
    for (index, layer) in chain.layers.iter().enumerate() {
        let extents = match index == 0 && plan.in_place {
            true => split(layer).1,
            false => layer.data().copied().collect(),
        };
        let id = layer.dir.file_name().unwrap_or_default().to_string_lossy();
        let what = format!("{}: checking what {id} has", layer.device.name);
        let bytes = extents.iter().map(|extent| extent.length).sum();
        let progress = Progress::start(what, bytes, signals);
        layer.read(extents.iter(), &progress, no_work, |extent, _, good| {
            progress.advance(extent.length);
            good
        })?;
        progress.finish();
    }
    Ok(())
}

/// What is still seen of a layer: extents, and extents of data which are seen in part only.
fn split(layer: &Layer) -> (Vec<Extent>, Vec<Extent>) {
    let (mut kept, mut cut) = (Vec::new(), Vec::new());
    for extent in layer.extents.iter() {
        let mut parts = layer.visible(extent).peekable();
        match parts.peek() {
            None => {}
            Some(part) if *part == extent.range() => kept.push(*extent),
            Some(_) if extent.hash.is_some() => cut.push(*extent),
            Some(_) => kept.extend(parts.map(Extent::of_zeros)),
        }
    }
    (kept, cut)
}

/// Replaces the list of extents of a dropped layer by one of what is seen.
fn forget_hidden(layer: &Layer, signals: &Signals) -> Result<()> {
    let (mut kept, cut) = split(layer);
    if cut.is_empty() && kept.iter().eq(layer.extents.iter()) {
        return Ok(());
    }
    let what = format!(
        "{}: reading what will be merged with newer data",
        layer.device.name
    );
    let bytes = cut.iter().map(|extent| extent.length).sum();
    let progress = Progress::start(what, bytes, signals);
    layer.read(cut.iter(), &progress, no_work, |extent, bytes, good| {
        good?;
        progress.advance(extent.length);
        kept.extend(seen(layer, extent, bytes).into_iter().map(|(part, _)| part));
        Ok(())
    })?;
    progress.finish();
    let extents = Extents::new(kept);
    let mut manifest = Manifest::read(&layer.dir)?;
    if manifest.state != State::Dropped {
        bail!("{} is still in use", manifest.id);
    }
    for device in &mut manifest.devices {
        if device.name == layer.device.name {
            store_list(&layer.dir, device, &extents)?;
        }
    }
    step("forgetting what is hidden")?;
    manifest.write(&layer.dir)
}

/// Puts the merged file in the place of the one of a backup, and gives what the manifest will say.
fn take_over(
    manifest: &Manifest,
    device: &Device,
    dir: &Path,
    file: &str,
    extents: &Extents,
) -> Result<Device> {
    let (data, zeros) = extents.totals();
    let all = ByteSet::from_iter([0..device.size]);
    if extents.places() != all || data + zeros != device.size {
        bail!(
            "{}: what was merged is not all of {}",
            manifest.id,
            device.name
        );
    }
    let new = dir.join(file);
    let size = new
        .metadata()
        .with_context(|| format!("cannot look at {}", new.display()))?
        .len();
    let mut full = Device {
        kind: Kind::Full,
        reason: "merged by prune".into(),
        base_device: None,
        file_size: size,
        ..device.clone()
    };
    full = full.stored_as(device.file_format);
    store_list(dir, &mut full, extents)?;
    if full.file == device.file && size < device.file_size {
        // Until it is full, this is the file of an incremental backup.
        let mut smaller = Manifest::read(dir)?;
        for old in &mut smaller.devices {
            if old.name == device.name {
                old.file_size = size;
            }
        }
        step("allowing a smaller file")?;
        smaller.write(dir)?;
    }
    step("taking over the full file")?;
    fs::rename(&new, dir.join(&full.file))
        .with_context(|| format!("cannot rename {}", new.display()))?;
    // Two names of one file: the rename has done nothing then.
    let _ = fs::remove_file(&new);
    sync_dir(dir)?;
    Ok(full)
}

/// Writes a list of extents under a name that no other list has, and names it in the entry of the
/// device.
fn store_list(dir: &Path, device: &mut Device, extents: &Extents) -> Result<()> {
    let new = dir.join(".extents.new");
    let (hash, _) = extents.write(&new)?;
    let hash = hash.to_hex();
    let (stem, _) = device
        .extents
        .split_once('.')
        .unwrap_or((&device.extents, ""));
    let (stem, _) = stem.split_once('~').unwrap_or((stem, ""));
    device.extents = format!("{stem}~{}.extents.jsonl", &hash[..8]);
    device.extents_blake3 = hash.to_string();
    (device.data_bytes, device.zero_bytes) = extents.totals();
    fs::rename(&new, dir.join(&device.extents))
        .with_context(|| format!("cannot rename {}", new.display()))?;
    sync_dir(dir)
}

/// Removes files that the manifest of a backup does not name.
pub fn tidy(repository: &Repository, id: &str) -> Result<()> {
    let (dir, manifest) = (repository.dir(id), repository.manifest(id)?);
    let failed = || format!("cannot clean up {}", dir.display());
    for entry in fs::read_dir(&dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name();
        let named = |device: &Device| name == *device.file || name == *device.extents;
        if name != MANIFEST && !manifest.devices.iter().any(named) {
            step("cleaning up")?;
            fs::remove_file(entry.path()).with_context(failed)?;
        }
    }
    Ok(())
}
