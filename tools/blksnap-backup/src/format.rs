// SPDX-License-Identifier: GPL-2.0-or-later

//! The formats a backup can be stored in: one file per device and backup.

pub mod qcow2;
pub mod raw;
pub mod rbd_diff;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::direct::Direct;
pub use qcow2::{Clusters, Compressor};

/// Stores the data of one device of one backup.
pub trait Writer {
    /// Every call's offset and length are multiples of this (but the end of the device): bytes.
    fn granularity(&self) -> u64;
    /// Stores data.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// For several threads to store data at once, if the format has a place for every byte from the
    /// beginning. [`stored`](Self::stored) is called after that.
    fn shared(&self) -> Option<Arc<Direct>> {
        None
    }
    /// Notes that data was stored by one of several threads.
    fn stored(&mut self, _range: Range<u64>) {}
    /// Whether data is compressed; then several threads can do that before, each with a [`Compressor`].
    fn compresses(&self) -> bool {
        false
    }
    /// Stores data of which is known what becomes of it.
    fn write_compressed(&mut self, offset: u64, data: &[u8], _clusters: &Clusters) -> Result<()> {
        self.write(offset, data)
    }
    /// Stores that a range reads as zeros, whatever the base has there.
    fn zero(&mut self, range: Range<u64>) -> Result<()>;
    /// Makes all durable.
    fn finish(&mut self) -> Result<()>;
}

/// Reads what one backup itself stores of a device (not its base); only ranges its extents name.
/// Several threads may do so at a time.
pub trait Reader: Send + Sync {
    /// Fills `data` with what is at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<()>;
}

/// A format of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A sparse file of the size of the device, with everything at its place
    #[default]
    Raw,
    /// An image of QEMU; of an incremental backup an overlay with a backing file
    Qcow2,
    /// What `rbd import-diff` of Ceph reads
    RbdDiff,
}

/// The backup that has what is not stored in a file.
pub struct Base {
    /// Its name.
    pub id: String,
    /// Its file, as a path from the directory of the other.
    pub file: PathBuf,
}

impl Base {
    /// A file in the directory of another backup.
    pub fn new(dir: &Path, file: &str) -> Self {
        let id = dir.file_name().unwrap_or_default();
        Self {
            id: id.to_string_lossy().into_owned(),
            file: Path::new("..").join(id).join(file),
        }
    }
}

impl Format {
    /// Its name, which is also the suffix of its files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::RbdDiff => "rbd-diff",
        }
    }

    /// Makes a new file for a device of `size` bytes, in the backup `id`. What is not stored in it
    /// is in the base, or zero if there is none. With `compress`, data is made smaller.
    pub fn create(
        self,
        path: &Path,
        size: u64,
        id: &str,
        base: Option<&Base>,
        compress: bool,
    ) -> Result<Box<dyn Writer>> {
        Ok(match self {
            _ if compress && !self.can_compress() => {
                bail!("a file of the format {self} can't be compressed")
            }
            Self::Raw => Box::new(raw::RawWriter::create(path, size)?),
            Self::Qcow2 => {
                let backing = base.map(|base| base.file.to_string_lossy());
                Box::new(qcow2::Image::create(
                    path,
                    size,
                    backing.as_deref(),
                    compress,
                )?)
            }
            Self::RbdDiff => {
                let from = base.map(|base| base.id.as_str());
                Box::new(rbd_diff::Stream::create(path, size, from, id)?)
            }
        })
    }

    /// Whether its files can be compressed.
    pub fn can_compress(self) -> bool {
        self == Self::Qcow2
    }

    /// Whether the data in a file is compressed, as far as it gets smaller.
    pub fn is_compressed(self, path: &Path) -> Result<bool> {
        match self {
            Self::Qcow2 => Ok(qcow2::Layer::open(path)?.is_compressed()),
            Self::Raw | Self::RbdDiff => Ok(false),
        }
    }

    /// Opens a full file for changes in place; `None` if that can't be done.
    pub fn update(self, path: &Path) -> Result<Option<Box<dyn Writer>>> {
        Ok(match self {
            Self::Raw => Some(Box::new(raw::RawWriter::open(path)?)),
            Self::Qcow2 => Some(Box::new(qcow2::Image::open_for_update(path)?)),
            Self::RbdDiff => None,
        })
    }

    /// Opens the file of an incremental backup, to store in it what it lacks; `None` if that can't be
    /// done, or if the file names its base, which is another one then.
    pub fn extend(self, path: &Path) -> Result<Option<Box<dyn Writer>>> {
        Ok(match self {
            Self::Raw => Some(Box::new(raw::RawWriter::open(path)?)),
            Self::Qcow2 | Self::RbdDiff => None,
        })
    }

    /// Opens a file of a device of `size` bytes for reading.
    pub fn open(self, path: &Path, size: u64) -> Result<Box<dyn Reader>> {
        let (found, reader): (_, Box<dyn Reader>) = match self {
            Self::Raw => (size, Box::new(raw::RawReader::open(path)?)),
            Self::Qcow2 => {
                let image = qcow2::Layer::open(path)?;
                (image.size(), Box::new(image))
            }
            Self::RbdDiff => {
                let diff = rbd_diff::Diff::open(path)?;
                (diff.size(), Box::new(diff))
            }
        };
        ensure!(
            found == size,
            "{} is damaged: it is of a device of {found} bytes, not {size}",
            path.display()
        );
        Ok(reader)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
