// SPDX-License-Identifier: GPL-2.0-or-later

//! Reading an image without its backing file.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::compressed::Decompressor;
use super::file::ImageFile;
use super::{CLUSTER, COMPRESSED, ENTRIES, OFFSET, PER_L2, ZERO};
use crate::format::Reader;

/// An L2 table, and which one it is.
type Table = (usize, Arc<[u64]>);

thread_local! {
    /// Made when it is needed: one for each thread, however many images it reads.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// What one image has itself.
pub struct Layer {
    image: ImageFile,
    /// The L2 table used last, and which one it is.
    l2: Mutex<Option<Table>>,
}

impl Layer {
    /// Opens an image. Its backing file, if any, is not looked at.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            image: ImageFile::open(path, File::options().read(true))?,
            l2: Mutex::default(),
        })
    }

    /// Bytes in the device.
    pub fn size(&self) -> u64 {
        self.image.header.size
    }

    /// The name of the backing file that the image gives.
    pub fn backing(&self) -> Option<&str> {
        self.image.header.backing.as_deref()
    }

    /// Whether clusters may be compressed.
    pub fn is_compressed(&self) -> bool {
        self.image.header.compressed
    }

    /// Reads a part of a compressed cluster.
    fn decompress(&self, entry: u64, start: u64, part: &mut [u8]) -> Result<()> {
        DECOMPRESSOR.with_borrow_mut(|decompressor| {
            let decompressor = match decompressor {
                Some(made) => made,
                none => none.insert(Decompressor::new()?),
            };
            let cluster = decompressor.read(&self.image, entry)?;
            // Both are less than a cluster, and so is their sum.
            part.copy_from_slice(&cluster[start as usize..start as usize + part.len()]);
            Ok(())
        })
    }

    /// The entry of the L2 table for the cluster at `offset`; 0 if there is none. `kept` is the table
    /// that the caller has looked at last.
    fn entry(&self, offset: u64, kept: &mut Option<Table>) -> Result<u64> {
        // At most 2^20.
        let index = (offset / PER_L2) as usize;
        if kept.as_ref().is_none_or(|(at, _)| *at != index) {
            let l1 = self.image.l1[index];
            if l1 == 0 {
                return Ok(0);
            }
            let mut last = self.l2.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = match &*last {
                Some(table) if table.0 == index => Some(table.clone()),
                _ => {
                    let table = (index, self.image.l2(l1)?.into());
                    last.insert(table).clone().into()
                }
            };
        }
        let table = kept.as_ref().context("no L2 table")?;
        Ok(table.1[(offset / CLUSTER % ENTRIES) as usize])
    }
}

impl Reader for Layer {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.image.check(offset, data.len() as u64)?;
        let mut at = offset;
        let mut table = None;
        let mut rest = data;
        while !rest.is_empty() {
            let in_cluster = at % CLUSTER;
            let entry = self.entry(at, &mut table)?;
            let mut length = CLUSTER - in_cluster;
            let compressed = entry & COMPRESSED != 0;
            // Neighbours on the device are mostly neighbours in the file.
            while length < rest.len() as u64
                && !compressed
                && entry & ZERO == 0
                && entry != 0
                && self.entry(at + length, &mut table)? == entry + in_cluster + length
            {
                length += CLUSTER;
            }
            let length = length.min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(length);
            if compressed {
                self.decompress(entry, in_cluster, part)?;
            } else if entry & ZERO != 0 {
                part.fill(0);
            } else if entry == 0 {
                if let Some(backing) = self.backing() {
                    bail!(
                        "{} is damaged: it has no data for byte {at} (its backing file {backing} may)",
                        self.image.path.display()
                    );
                }
                part.fill(0);
            } else {
                let place = (entry & OFFSET) + in_cluster;
                self.image
                    .file
                    .read_exact_at(part, place)
                    .with_context(|| {
                        let path = self.image.path.display();
                        format!("cannot read {length} bytes at byte {place} of {path}")
                    })?;
            }
            at += length as u64;
            rest = after;
        }
        Ok(())
    }
}
