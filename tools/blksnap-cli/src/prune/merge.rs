// SPDX-License-Identifier: GPL-2.0-or-later

//! What was dropped, merged into the backup that needs it: see [`prune`](super).

mod output;
mod settle;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use blksnap_backup::format::{Base, Writer};
use blksnap_backup::{
    Chain, Device, Extent, Extents, Kind, Layer, Manifest, Part, Seen, State, Watch, no_work,
    private, read,
};

use super::report::Merged;
use super::staying::Staying;
use super::step;
use crate::progress::Progress;
use crate::signals::Signals;
use output::Output;
pub use settle::tidy;
use settle::{LIST, store_list, take_over};

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
            None if can_take_over(&chain.layers) && !staying.shared(manifest, &bottom.dir)? => {
                Way::TakeOver
            }
            Some(_)
                if !has_other_links(top, &[top])
                    && matches!(format.extend(&top.file()), Ok(Some(_))) =>
            {
                Way::Extend
            }
            _ => Way::Copy,
        };
        Ok(Some(Self { chain, below, way }))
    }

    /// Whether the data of a layer is written somewhere.
    pub fn moves(&self, layer: usize) -> bool {
        match self.way {
            Way::TakeOver => layer > 0,
            Way::Extend => layer + 1 < self.chain.layers.len(),
            Way::Copy => true,
        }
    }

    /// Bytes of data that are written.
    pub fn bytes(&self) -> Result<u64> {
        self.sum(|seen| {
            if self.moves(seen.layer) {
                seen.bytes()
            } else {
                0
            }
        })
    }

    /// The sum of something over all data that is seen.
    fn sum(&self, of: impl Fn(&Seen) -> u64) -> Result<u64> {
        let mut sum = 0;
        for seen in self.chain.seen(&self.chain.all()) {
            let seen = seen?;
            sum += if seen.is_zeros() { 0 } else { of(&seen) };
        }
        Ok(sum)
    }

    /// The full file that the backup takes over.
    pub fn taken_over(&self) -> Option<&Layer> {
        let full = self.chain.layers.first();
        full.filter(|_| self.way == Way::TakeOver)
    }

    /// Whether this is data of the full file that the backup takes over, seen in part.
    fn is_cut(&self, seen: &Seen) -> bool {
        self.way == Way::TakeOver && seen.layer == 0 && !seen.is_zeros() && !seen.is_whole()
    }

    /// Reads and checks the whole extents of what is wanted, and hands on all that is seen.
    fn read<T: Send>(
        &self,
        what: String,
        signals: &Signals,
        wanted: impl Fn(&Seen) -> bool,
        work: impl Fn(&Seen, &[u8]) -> Result<T> + Sync,
        mut then: impl FnMut(&Seen, Result<T>) -> Result<()>,
    ) -> Result<()> {
        let length = |seen: &Seen| if wanted(seen) { seen.extent.length } else { 0 };
        let progress = Progress::start(what, self.sum(length)?, signals);
        let all = self.chain.all();
        let (layers, seen) = (&self.chain.layers, self.chain.seen(&all));
        let sink = |seen: Seen, bytes: &[u8], good| {
            progress.advance(bytes.len() as u64);
            then(&seen, good)
        };
        read(layers, seen, &wanted, &progress, work, sink)?;
        progress.finish();
        Ok(())
    }

    /// What merging means.
    pub fn plan(&self, manifest: &Manifest, device: &Device) -> Result<Merged> {
        Ok(Merged {
            backup: manifest.id.clone(),
            device: device.name.clone(),
            kind: match self.below {
                None => Kind::Full,
                Some(_) => Kind::Incremental,
            },
            in_place: self.way != Way::Copy,
            bytes: self.bytes()?,
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
        merged.push(run.plan(&manifest, device)?);
        let below = run.below.clone();
        // What an older one has left out stays so: it may be in use again.
        let unused = run.chain.layers.iter();
        let unused: u64 = unused.map(|layer| layer.device.unused_bytes).sum();
        let (file, extents) = match run.way {
            Way::TakeOver => {
                forget_hidden(&run, signals)?;
                let Some(again) = Run::open(staying, &manifest, device)? else {
                    bail!("{id}: {} needs nothing any more", device.name);
                };
                let (file, extents) = in_place(&again, &dir, signals)?;
                (Some(file), extents)
            }
            Way::Extend => (None, extend(&run, &dir, signals)?),
            Way::Copy => {
                let (file, extents) = new_file(&run, &dir, signals)?;
                (Some(file), extents)
            }
        };
        let kind = match &below {
            None => Kind::Full,
            Some(_) => Kind::Incremental,
        };
        let mut entry = take_over(&manifest, device, &dir, file.as_deref(), kind, extents)?;
        entry.unused_bytes = unused.min(entry.zero_bytes);
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
    if has_other_links(full, &[full, top]) {
        return false;
    }
    let link = top.dir.join(".link");
    let _ = fs::remove_file(&link);
    let linked = fs::hard_link(full.file(), &link).is_ok();
    let _ = fs::remove_file(&link);
    let format = full.device.file_format;
    linked && matches!(format.update(&full.file()), Ok(Some(_)))
}

/// Whether the file of a layer has names elsewhere than in these directories, where an interrupted merge may have
/// left some: a copy of all backups that was made of links (`cp -al`) would change with it. What cannot be
/// seen counts as one.
fn has_other_links(layer: &Layer, ours: &[&Layer]) -> bool {
    let Ok(meta) = layer.file().metadata() else {
        return true;
    };
    let is_same = |path: PathBuf| {
        let other = path.symlink_metadata();
        other.is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
    };
    let names = ours.iter().map(|layer| fs::read_dir(&layer.dir));
    let entries = names.flatten().flatten().flatten();
    let ours = entries.filter(|entry| is_same(entry.path())).count();
    meta.nlink() != ours as u64
}

/// Merges what was dropped into the file of the backup itself. Gives the extents.
fn extend(run: &Run, dir: &Path, signals: &Signals) -> Result<Extents> {
    let Some(top) = run.chain.layers.last() else {
        bail!("nothing to merge");
    };
    let Some(mut writer) = top.device.file_format.extend(&top.file())? else {
        bail!("cannot add to {}", top.file().display());
    };
    let extents = write(run, dir, &mut *writer, signals)?;
    step("syncing the file")?;
    writer.finish()?;
    Ok(extents)
}

/// Merges all into the full file. Gives the name of a link to it in the directory of the backup,
/// and the extents.
fn in_place(run: &Run, dir: &Path, signals: &Signals) -> Result<(String, Extents)> {
    let [full, .., top] = run.chain.layers.as_slice() else {
        bail!("nothing to merge");
    };
    let Some(mut writer) = full.device.file_format.update(&full.file())? else {
        bail!("cannot change {} in place", full.file().display());
    };
    let extents = write(run, dir, &mut *writer, signals)?;
    step("syncing the full file")?;
    writer.finish()?;
    let name = format!(".{}.full", top.device.file);
    let link = dir.join(&name);
    let _ = fs::remove_file(&link);
    step("linking the full file")?;
    fs::hard_link(full.file(), &link)
        .with_context(|| format!("cannot make the link {}", link.display()))?;
    private::close(&link).with_context(|| format!("cannot close {}", link.display()))?;
    Ok((name, extents))
}

/// Merges all into a new file. Gives its name and the extents.
fn new_file(run: &Run, dir: &Path, signals: &Signals) -> Result<(String, Extents)> {
    let Some(top) = run.chain.layers.last() else {
        bail!("an empty chain");
    };
    let base = run.below.as_ref();
    let base = base.map(|(dir, device)| Base::new(dir, &device.file));
    let name = format!(".{}.merged", top.device.file);
    let path = dir.join(&name);
    let _ = fs::remove_file(&path);
    let format = top.device.file_format;
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    // As that of the backup was.
    let compress = format.is_compressed(&top.file())?;
    let mut writer = format.create(&path, top.device.size, &id, base.as_ref(), compress)?;
    let extents = write(run, dir, &mut *writer, signals)?;
    step("syncing the new file")?;
    writer.finish()?;
    Ok((name, extents))
}

/// Writes what is moved, and gives the list of all that is seen.
fn write(run: &Run, dir: &Path, writer: &mut dyn Writer, signals: &Signals) -> Result<Extents> {
    let layers = &run.chain.layers;
    let name = layers.last().map_or("", |top| &*top.device.name);
    let what = format!("{name}: merging what was dropped");
    let progress = Progress::start(what, run.bytes()?, signals);
    let mut output = Output::create(&dir.join(LIST), Some(writer))?;
    let moved = |seen: &Seen| run.moves(seen.layer);
    let all = run.chain.all();
    let seen = run.chain.seen(&all);
    read(
        layers,
        seen,
        moved,
        &progress,
        parts,
        |seen, bytes, good| {
            let parts = good?;
            match (moved(&seen), seen.is_zeros()) {
                (true, true) => output.zeros(&seen),
                (true, false) => {
                    progress.advance(seen.bytes());
                    output.data(&seen, bytes, parts)
                }
                (false, _) => {
                    // What is hidden of a full one was forgotten, and nothing is above the top.
                    ensure!(seen.is_whole(), "an extent that stays is seen in part");
                    output.keep(&seen, [seen.extent])
                }
            }
        },
    )?;
    progress.finish();
    output.finish()
}

/// What becomes of an extent of data, of which only parts are seen.
fn parts(seen: &Seen, bytes: &[u8]) -> Result<Vec<Extent>> {
    if bytes.is_empty() || seen.is_whole() {
        return Ok(vec![seen.extent]);
    }
    let inside = |at: u64| (at - seen.extent.start) as usize;
    let parts = seen.parts.iter();
    let parts = parts.map(|part| {
        let bytes = &bytes[inside(part.start)..inside(part.end)];
        Extent::of(part.start, bytes)
    });
    Ok(parts.collect())
}

/// Reads and checks all that [`into`] will read of a chain, and changes nothing.
pub fn check(run: &Run, signals: &Signals) -> Result<()> {
    // Of a full one that is taken over: what gets new checksums.
    let wanted = |seen: &Seen| run.moves(seen.layer) || run.is_cut(seen);
    let name = run.chain.layers.last().map_or("", |top| &*top.device.name);
    let what = format!("{name}: checking what will be merged");
    run.read(what, signals, wanted, no_work, |seen, good| {
        good.with_context(|| format!("{name} at byte {}", seen.extent.start))
    })
}

/// Replaces the list of extents of a dropped full layer by one of what is seen.
fn forget_hidden(run: &Run, signals: &Signals) -> Result<()> {
    let Some(layer) = run.taken_over() else {
        bail!("there is no full file");
    };
    let what = format!(
        "{}: reading what will be merged with newer data",
        layer.device.name
    );
    let mut output = Output::create(&layer.dir.join(LIST), None)?;
    let cut = |seen: &Seen| run.is_cut(seen);
    run.read(what, signals, cut, parts, |seen, good| match seen.layer {
        0 => output.keep(seen, good?),
        _ => Ok(()),
    })?;
    let extents = output.finish()?;
    if extents.hash() == layer.extents.hash() {
        return fs::remove_file(extents.path())
            .with_context(|| format!("cannot remove {}", extents.path().display()));
    }
    let mut manifest = Manifest::read(&layer.dir)?;
    if manifest.state != State::Dropped {
        bail!("{} is still in use", manifest.id);
    }
    let device = manifest.devices.iter_mut();
    let device = device
        .into_iter()
        .find(|device| device.name == layer.device.name)
        .with_context(|| format!("{} has gone from its manifest", layer.device.name))?;
    store_list(&layer.dir, device, extents)?;
    step("forgetting what is hidden")?;
    manifest.write(&layer.dir)
}
