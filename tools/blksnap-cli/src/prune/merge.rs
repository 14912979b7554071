// SPDX-License-Identifier: GPL-2.0-or-later

//! What was dropped, merged into the backup that needs it: see [`prune`](super).

mod settle;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use blksnap_backup::format::{Base, Writer};
use blksnap_backup::{
    Chain, Device, Extent, Extents, Kind, Layer, Manifest, Part, State, Watch, no_work, private,
};

use super::report::Merged;
use super::staying::Staying;
use super::step;
use crate::progress::Progress;
use crate::signals::Signals;
pub use settle::tidy;
use settle::{store_list, take_over};

/// How what was dropped is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Into the full file below, which then is that of the backup.
    TakeOver,
    /// Into the file of the backup, at places that are in no list of it.
    Extend,
    /// Into a new file.
    Copy,
}

/// The dropped layers of a device, and those of the backup that needs them.
pub struct Run {
    /// The newest is that of the backup.
    pub chain: Chain,
    /// What the oldest is based on, if it is not full: a backup that stays.
    below: Option<Part>,
    way: Way,
}

impl Run {
    /// Of a device of a backup; `None` if it needs no dropped one.
    pub fn open(
        staying: &Staying<'_>,
        manifest: &Manifest,
        device: &Device,
    ) -> Result<Option<Self>> {
        let stays = |id: &str| staying.has(id);
        let (chain, below) = Chain::open_above(staying.repository, manifest, device, &stays)?;
        let [bottom, .., top] = chain.layers.as_slice() else {
            return Ok(None);
        };
        let format = top.device.file_format;
        let way = match &below {
            None if can_take_over(&chain.layers) && !staying.shared(manifest, &bottom.dir) => {
                Way::TakeOver
            }
            Some(_) if matches!(format.extend(&top.file()), Ok(Some(_))) => Way::Extend,
            _ => Way::Copy,
        };
        Ok(Some(Self { chain, below, way }))
    }

    /// The layers whose data is written somewhere.
    pub fn moved(&self) -> &[Layer] {
        let layers = &self.chain.layers;
        match (self.way, layers.as_slice()) {
            (Way::TakeOver, [_, newer @ ..]) => newer,
            (Way::Extend, [older @ .., _]) => older,
            _ => layers,
        }
    }

    /// The full file that the backup takes over.
    pub fn taken_over(&self) -> Option<&Layer> {
        let full = self.chain.layers.first();
        full.filter(|_| self.way == Way::TakeOver)
    }

    /// What merging means.
    pub fn plan(&self, manifest: &Manifest) -> Option<Merged> {
        Some(Merged {
            backup: manifest.id.clone(),
            device: self.chain.layers.last()?.device.name.clone(),
            kind: match self.below {
                None => Kind::Full,
                Some(_) => Kind::Incremental,
            },
            in_place: self.way != Way::Copy,
            bytes: self.moved().iter().map(Layer::data_bytes).sum(),
        })
    }
}

/// Makes a backup one that needs no dropped ones.
pub fn into(staying: &Staying<'_>, id: &str, signals: &Signals) -> Result<Vec<Merged>> {
    let repository = staying.repository;
    let mut manifest = repository.manifest(id)?;
    if staying.is_based_well(&manifest) {
        return Ok(Vec::new());
    }
    let dir = repository.dir(id);
    let (mut merged, mut devices, mut base) = (Vec::new(), Vec::new(), None);
    for device in &manifest.devices {
        let Some(run) = Run::open(staying, &manifest, device)? else {
            devices.push(device.clone());
            continue;
        };
        merged.extend(run.plan(&manifest));
        let below = run.below.clone();
        let (file, extents) = match run.way {
            Way::TakeOver => {
                forget_hidden(&run.chain.layers[0], signals)?;
                let Some(again) = Run::open(staying, &manifest, device)? else {
                    bail!("{id}: {} needs nothing any more", device.name);
                };
                let (file, extents) = in_place(again.chain, &dir, signals)?;
                (Some(file), extents)
            }
            Way::Extend => (None, extend(&run, signals)?),
            Way::Copy => {
                let (file, extents) = new_file(&run, &dir, signals)?;
                (Some(file), extents)
            }
        };
        let kind = match &below {
            None => Kind::Full,
            Some(_) => Kind::Incremental,
        };
        let mut entry = take_over(&manifest, device, &dir, file.as_deref(), kind, &extents)?;
        if let Some((dir, below)) = below {
            let id = dir.file_name().unwrap_or_default().to_string_lossy();
            // All that stay incremental have been based on one chain of backups.
            base = Some(id.clone().into_owned());
            let older = repository.manifest(&id)?;
            if entry.base_in(&older) != Some(&below) {
                // A dropped one was compared: the changes since then were not tracked all the time.
                entry.kind = Kind::Compared;
                entry.base_device = Some(below.name.clone());
            }
            if entry.base_in(&older) != Some(&below) {
                bail!(
                    "{}: {} would be based on another device of {id}",
                    manifest.id,
                    entry.name
                );
            }
        }
        devices.push(entry);
    }
    manifest.set_devices(devices);
    manifest.base = base;
    step("making it independent of what was dropped")?;
    manifest.write(&dir)?;
    Ok(merged)
}

/// Whether the full file can be changed in place, and have another name.
fn can_take_over(layers: &[Layer]) -> bool {
    let [full, middle @ .., top] = layers else {
        return false;
    };
    let inode = |layer: &Layer| {
        layer
            .file()
            .metadata()
            .ok()
            .map(|meta| (meta.dev(), meta.ino()))
    };
    // One that was interrupted may have got the full file already: then it is read from there.
    if middle.iter().any(|layer| inode(layer) == inode(full)) {
        return false;
    }
    let link = top.dir.join(".link");
    let _ = fs::remove_file(&link);
    let linked = fs::hard_link(full.file(), &link).is_ok();
    let _ = fs::remove_file(&link);
    let format = full.device.file_format;
    linked && matches!(format.update(&full.file()), Ok(Some(_)))
}

/// Merges what was dropped into the file of the backup itself. Gives the extents.
fn extend(run: &Run, signals: &Signals) -> Result<Extents> {
    let [older @ .., top] = run.chain.layers.as_slice() else {
        bail!("nothing to merge");
    };
    let Some(mut writer) = top.device.file_format.extend(&top.file())? else {
        bail!("cannot add to {}", top.file().display());
    };
    let mut extents: Vec<_> = top.extents.iter().copied().collect();
    write(older, &mut *writer, &mut extents, signals)?;
    step("syncing the file")?;
    writer.finish()?;
    Ok(Extents::new(extents))
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
fn new_file(run: &Run, dir: &Path, signals: &Signals) -> Result<(String, Extents)> {
    let layers = &run.chain.layers;
    let Some(top) = layers.last() else {
        bail!("an empty chain");
    };
    let base = run.below.as_ref();
    let base = base.map(|(dir, device)| Base::new(dir, &device.file));
    let name = format!(".{}.merged", top.device.file);
    let path = dir.join(&name);
    let _ = fs::remove_file(&path);
    let format = top.device.file_format;
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let mut writer = format.create(&path, top.device.size, &id, base.as_ref())?;
    let mut extents = Vec::new();
    write(layers, &mut *writer, &mut extents, signals)?;
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
pub fn check(run: &Run, signals: &Signals) -> Result<()> {
    let cut = run.taken_over().map(|full| (full, split(full).1));
    let moved = run.moved().iter();
    let moved = moved.map(|layer| (layer, layer.data().copied().collect()));
    for (layer, extents) in cut.into_iter().chain(moved) {
        let extents: Vec<Extent> = extents;
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
