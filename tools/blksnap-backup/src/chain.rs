// SPDX-License-Identifier: GPL-2.0-or-later

//! One device in a chain of backups: a full one, and what has changed since, layer upon layer.
//!
//! Every layer has extents; of what several layers have, the newest is what is [`seen`]. An extent of
//! data is read and checked as a whole, also if only a part of it is seen.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use blake3::Hash;
use blksnap::ByteSet;

use crate::extents::{Extent, Extents};
use crate::format::Reader;
use crate::manifest::{Device, Kind, Manifest};
use crate::repository::Repository;
use crate::seen::{View, first_gap, seen};

/// What one backup has of a device.
pub struct Layer {
    /// The directory of the backup.
    pub dir: PathBuf,
    /// What the manifest says.
    pub device: Device,
    /// What it has.
    pub extents: Extents,
}

impl Layer {
    /// Reads the list of extents of a device of a backup.
    pub fn open(dir: PathBuf, device: &Device) -> Result<Self> {
        check_files(&dir, device)?;
        Self::open_damaged(dir, device)
    }

    /// The same, whatever is wrong with the file of the data.
    fn open_damaged(dir: PathBuf, device: &Device) -> Result<Self> {
        let hash = Hash::from_hex(&device.extents_blake3)
            .with_context(|| format!("damaged manifest of {}", dir.display()))?;
        Ok(Self {
            extents: Extents::open(&dir.join(&device.extents), hash, device.size)?,
            device: device.clone(),
            dir,
        })
    }

    /// The file of its data.
    pub fn file(&self) -> PathBuf {
        self.dir.join(&self.device.file)
    }

    /// Opens the file of its data.
    pub fn reader(&self) -> Result<Box<dyn Reader>> {
        self.device.file_format.open(&self.file(), self.device.size)
    }

    pub(crate) fn damaged(&self, extent: &Extent) -> Damaged {
        Damaged {
            file: self.file(),
            place: extent.range(),
        }
    }
}

/// Of an error, which data is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The file.
    pub file: PathBuf,
    /// The place on the device.
    pub place: Range<u64>,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is damaged: {} bytes at byte {} of the device",
            self.file.display(),
            self.place.end - self.place.start,
            self.place.start
        )
    }
}

/// Lists of extents that were checked already, or why they are damaged: many backups need the same.
#[derive(Default)]
pub struct Checked(HashMap<PathBuf, Result<Extents, Arc<str>>>);

impl Checked {
    /// The same as [`Layer::open`].
    pub fn layer(&mut self, dir: PathBuf, device: &Device) -> Result<Layer> {
        check_files(&dir, device)?;
        let list = self.0.entry(dir.join(&device.extents));
        let opened = list.or_insert_with(|| {
            let layer = Layer::open_damaged(dir.clone(), device);
            layer
                .map(|layer| layer.extents)
                .map_err(|error| format!("{error:#}").into())
        });
        match opened {
            Ok(extents) => Ok(Layer {
                extents: extents.clone(),
                device: device.clone(),
                dir,
            }),
            Err(error) => Err(anyhow!("{error}")),
        }
    }
}

/// All layers of a device, the oldest first. Together they have all of the device.
pub struct Chain {
    /// The layers.
    pub layers: Vec<Layer>,
}

impl Chain {
    /// Opens what a backup needs to have a device, and checks all but the data.
    pub fn open(repository: &Repository, manifest: &Manifest, device: &Device) -> Result<Self> {
        Self::open_checked(repository, manifest, device, &mut Checked::default())
    }

    /// The same, but for lists that were checked before.
    pub fn open_checked(
        repository: &Repository,
        manifest: &Manifest,
        device: &Device,
        checked: &mut Checked,
    ) -> Result<Self> {
        let parts = parts(repository, manifest, device)?;
        Self::of_parts(parts, |dir, device| checked.layer(dir, device))
    }

    /// The same, whatever is wrong with the files of the data: what can be read of them is.
    pub fn open_damaged(
        repository: &Repository,
        manifest: &Manifest,
        device: &Device,
    ) -> Result<Self> {
        let parts = parts_with(repository, manifest, device, &|_| false, |_, _| Ok(()))?;
        Self::of_parts(parts, Layer::open_damaged)
    }

    /// The same, but only what is above the first backup below for which `stop` is true: see
    /// [`parts_above`].
    pub fn open_above(
        repository: &Repository,
        manifest: &Manifest,
        device: &Device,
        stop: &dyn Fn(&str) -> bool,
    ) -> Result<(Self, Option<Part>)> {
        let (parts, below) = parts_above(repository, manifest, device, stop)?;
        let chain = Self::layers_of(parts, Layer::open)?;
        if below.is_none() {
            chain.check_whole()?;
        }
        Ok((chain, below))
    }

    fn of_parts(
        parts: Vec<Part>,
        open: impl FnMut(PathBuf, &Device) -> Result<Layer>,
    ) -> Result<Self> {
        let chain = Self::layers_of(parts, open)?;
        chain.check_whole()?;
        Ok(chain)
    }

    fn layers_of(
        parts: Vec<Part>,
        mut open: impl FnMut(PathBuf, &Device) -> Result<Layer>,
    ) -> Result<Self> {
        let layers = parts.into_iter().rev();
        let layers = layers.map(|(dir, device)| open(dir, &device));
        Ok(Self::new(layers.collect::<Result<_>>()?))
    }

    /// Of layers, the oldest first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers }
    }

    /// All places of the device.
    pub fn all(&self) -> ByteSet {
        let size = self.layers.last().map_or(0, |layer| layer.device.size);
        ByteSet::from_iter([0..size])
    }

    /// What is seen in some places: see [`seen`].
    pub fn seen<'a>(&'a self, places: &'a ByteSet) -> View<'a> {
        seen(self.layers.iter().map(|layer| &layer.extents), places)
    }

    /// Bytes of data that are seen.
    pub fn data_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for seen in self.seen(&self.all()) {
            let seen = seen?;
            bytes += if seen.is_zeros() { 0 } else { seen.bytes() };
        }
        Ok(bytes)
    }

    /// Fails if a part of the device is in no layer.
    fn check_whole(&self) -> Result<()> {
        let Some(top) = self.layers.last() else {
            bail!("an empty chain");
        };
        let size = top.device.size;
        // So it is of all full backups: no need to look at the others.
        if self.layers[0].extents.is_all(size) {
            return Ok(());
        }
        let lists = self.layers.iter().map(|layer| &layer.extents);
        match first_gap(lists, size)? {
            Some(gap) => bail!(
                "{} is damaged: byte {gap} of {} is in no list of extents",
                top.dir.display(),
                top.device.name
            ),
            None => Ok(()),
        }
    }
}

/// What one backup has of a device: its directory, and the entry of the device in its manifest.
pub type Part = (PathBuf, Device);

/// What a backup needs to have a device, the newest first. Only the manifests are read, and the sizes
/// of files compared with them.
pub fn parts(repository: &Repository, manifest: &Manifest, device: &Device) -> Result<Vec<Part>> {
    parts_with(repository, manifest, device, &|_| false, check_files)
}

/// The same, down to the first backup below for which `stop` is true, if one is needed: that part is
/// given apart. Nothing is known then of what that one is based on.
pub fn parts_above(
    repository: &Repository,
    manifest: &Manifest,
    device: &Device,
    stop: &dyn Fn(&str) -> bool,
) -> Result<(Vec<Part>, Option<Part>)> {
    let mut parts = parts_with(repository, manifest, device, stop, check_files)?;
    let id = |dir: &Path| {
        dir.file_name()
            .is_some_and(|id| id.to_str().is_some_and(stop))
    };
    let stopped = parts.len() > 1 && parts.last().is_some_and(|(dir, _)| id(dir));
    let below = if stopped { parts.pop() } else { None };
    Ok((parts, below))
}

fn parts_with(
    repository: &Repository,
    manifest: &Manifest,
    device: &Device,
    stop: &dyn Fn(&str) -> bool,
    check_files: fn(&Path, &Device) -> Result<()>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let (mut manifest, mut device) = (manifest.clone(), device.clone());
    loop {
        let dir = repository.dir(&manifest.id);
        check_files(&dir, &device)?;
        parts.push((dir, device.clone()));
        if device.kind == Kind::Full || parts.len() > 1 && stop(&manifest.id) {
            return Ok(parts);
        }
        let broken = || format!("the chain of {} is broken", manifest.id);
        let Some(base) = &manifest.base else {
            bail!("{}: {} needs a base, and has none", broken(), device.name);
        };
        let older = repository
            .manifest(base)
            .with_context(|| format!("{}: its base {base} is missing or damaged", broken()))?;
        let same = device.base_in(&older);
        let same = same.with_context(|| format!("{}: {base} has no {}", broken(), device.name))?;
        device = same.clone();
        manifest = older;
    }
}

/// Fails if the files of a device are not there, or too short.
fn check_files(dir: &Path, device: &Device) -> Result<()> {
    let size_of = |name: &str| {
        let path = dir.join(name);
        let meta = path.metadata();
        let meta = meta.with_context(|| format!("the backup is damaged: {}", path.display()))?;
        Ok::<_, anyhow::Error>((path, meta.len()))
    };
    size_of(&device.extents)?;
    let (path, size) = size_of(&device.file)?;
    // A file may have grown when others were merged into it.
    if size < device.file_size {
        bail!(
            "the backup is damaged: {} has {size} bytes in place of {}",
            path.display(),
            device.file_size
        );
    }
    Ok(())
}
