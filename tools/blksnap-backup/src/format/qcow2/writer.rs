// SPDX-License-Identifier: GPL-2.0-or-later

//! Making an image, and changing one.

mod refcounts;
mod small;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::compressed::{Clusters, Compressor};
use super::file::{ImageFile, table_bytes};
use super::header::Header;
use super::{CACHED, CLUSTER, COMPRESSED, COPIED, ENTRIES, OFFSET, PER_L2, ZERO};
use crate::format::Writer;
use crate::private;
use refcounts::Refcounts;

/// An image being written. What was stored is in it after [`Writer::finish`].
pub struct Image {
    image: ImageFile,
    refcounts: Refcounts,
    /// Whether the file was an image before, and must be one at each moment.
    update: bool,
    /// L2 tables in memory, by their index in the L1 table.
    pub(super) l2: HashMap<usize, Table>,
    /// What makes clusters smaller, if they are to be.
    compressor: Option<Compressor>,
    /// The rest of a cluster of the file that compressed ones are put into.
    room: Range<u64>,
    /// Entries that L2 tables had, whose clusters are still counted.
    old: Vec<u64>,
}

/// An L2 table.
pub(super) struct Table {
    entries: Vec<u64>,
    /// Whether the file lacks the changes.
    dirty: bool,
    /// Whether the L1 table in the file lacks it.
    new: bool,
}

impl Image {
    /// Makes an image of a device of `size` bytes that has no data yet, in a file that does not
    /// exist. With `backing`, it is an overlay of the qcow2 image of that name, a path relative to
    /// the directory of the file. With `compress`, clusters are made smaller by zstd.
    pub fn create(path: &Path, size: u64, backing: Option<&str>, compress: bool) -> Result<Self> {
        let failed = || format!("cannot create {}", path.display());
        let header = Header::new(size, backing, compress).with_context(failed)?;
        let image = ImageFile {
            path: path.to_owned(),
            file: private::create_new(path).with_context(failed)?,
            l1: vec![0; header.l1_entries() as usize],
            header,
        };
        let begin = image.header.l1_offset + image.header.l1_clusters() * CLUSTER;
        image
            .write(&image.header.to_bytes(), 0)
            .and_then(|()| image.file.set_len(begin))
            .with_context(failed)?;
        Self::start(image, false)
    }

    /// Opens an image to store a later state of its device in it. The file is a valid image at each
    /// moment, but has a mixture of both states until it is finished.
    pub fn open_for_update(path: &Path) -> Result<Self> {
        Self::start(
            ImageFile::open(path, File::options().read(true).write(true))?,
            true,
        )
    }

    fn start(image: ImageFile, update: bool) -> Result<Self> {
        let refcounts = Refcounts::start(&image, update)
            .with_context(|| format!("cannot write {}", image.path.display()))?;
        let compress = image.header.compressed;
        Ok(Self {
            image,
            refcounts,
            update,
            l2: HashMap::new(),
            compressor: compress.then(Compressor::new).transpose()?,
            room: 0..0,
            old: Vec::new(),
        })
    }

    /// The L2 table at an index of the L1 table, made if need be.
    fn table(&mut self, index: usize) -> Result<&mut Table> {
        if !self.l2.contains_key(&index) {
            if self.l2.len() >= CACHED {
                self.flush()?;
                self.l2.clear();
            }
            let new = self.image.l1[index] == 0;
            let entries = if new {
                self.image.l1[index] = self.allocate()? | COPIED;
                vec![0; ENTRIES as usize]
            } else {
                self.image.l2(self.image.l1[index])?
            };
            let table = Table {
                entries,
                dirty: new,
                new,
            };
            self.l2.insert(index, table);
        }
        self.l2.get_mut(&index).context("a table just inserted")
    }

    /// Takes a cluster from the end of the file.
    fn allocate(&mut self) -> Result<u64> {
        self.refcounts
            .allocate(&self.image)
            .with_context(|| self.failed())
    }

    /// The place to store the cluster at `offset` of the device, which is taken to have data then.
    pub(super) fn place(&mut self, offset: u64) -> Result<u64> {
        let (index, slot) = split(offset);
        let entry = self.table(index)?.entries[slot];
        let place = match entry & OFFSET {
            _ if entry & COMPRESSED != 0 => {
                self.old.push(entry);
                self.allocate()?
            }
            0 => self.allocate()?,
            place => {
                let known = self.refcounts.knows(place);
                ensure!(
                    known,
                    "damaged L2 table: a cluster at {place}, behind the file"
                );
                place
            }
        };
        let table = self.table(index)?;
        if table.entries[slot] != place | COPIED {
            table.entries[slot] = place | COPIED;
            table.dirty = true;
        }
        Ok(place)
    }

    /// Makes a cluster read as zeros; its place is kept, but takes no space.
    fn zero_cluster(&mut self, offset: u64) -> Result<()> {
        let (index, slot) = split(offset);
        let is_overlay = self.is_overlay();
        let table = self.table(index)?;
        let entry = table.entries[slot];
        if entry & COMPRESSED != 0 {
            table.entries[slot] = ZERO;
            table.dirty = true;
            self.old.push(entry);
            return Ok(());
        }
        if entry & ZERO != 0 || entry == 0 && !is_overlay {
            return Ok(());
        }
        table.entries[slot] = entry | ZERO;
        table.dirty = true;
        if entry != 0 {
            self.punch(entry & OFFSET);
        }
        Ok(())
    }

    /// Gives back the space of a cluster of the file, whose contents do not matter.
    fn punch(&self, place: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where that can't be done, the space is lost until data is stored there again.
        let _ = fallocate(&self.image.file, flags, place, CLUSTER);
    }

    /// Stores clusters as they are.
    fn store_whole(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        // The run of clusters with consecutive places that is not stored yet.
        let mut run: Range<usize> = 0..0;
        let mut run_place = 0;
        while run.end < data.len() {
            // Looking for a table may write back others: what those refer to must be stored.
            if (offset + run.end as u64) % PER_L2 == 0 {
                self.store(run_place, &data[run.clone()])?;
                run.start = run.end;
                run_place = 0;
            }
            let place = self.place(offset + run.end as u64)?;
            if place != run_place + run.len() as u64 {
                self.store(run_place, &data[run.clone()])?;
                run.start = run.end;
                run_place = place;
            }
            run.end = data.len().min(run.end + CLUSTER as usize);
        }
        self.store(run_place, &data[run])
    }

    /// Stores a run of whole clusters in consecutive places.
    fn store(&self, place: u64, data: &[u8]) -> Result<()> {
        let image = &self.image;
        let whole = data.len() as u64 / CLUSTER * CLUSTER;
        let (clusters, tail) = data.split_at(whole as usize);
        let write = || {
            image.write(clusters, place)?;
            if !tail.is_empty() {
                // The end of the device. QEMU reads whole clusters.
                let mut last = vec![0; CLUSTER as usize];
                last[..tail.len()].copy_from_slice(tail);
                image.write(&last, place + whole)?;
            }
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| self.failed())
    }

    /// Writes the tables that the file lacks. What a table refers to is made durable before it; what it
    /// has referred to is uncounted after that.
    fn flush(&mut self) -> Result<()> {
        self.write_tables()?;
        self.uncount_old()
    }

    fn write_tables(&mut self) -> Result<()> {
        let mut dirty: Vec<_> = self.l2.iter_mut().filter(|(_, t)| t.dirty).collect();
        if dirty.is_empty() {
            return Ok(());
        }
        dirty.sort_unstable_by_key(|(index, _)| **index);
        let image = &self.image;
        let barrier = || match self.update {
            true => image.sync(),
            false => Ok(()),
        };
        let mut write = || {
            barrier()?;
            for (index, table) in &mut dirty {
                let place = image.l1[**index] & OFFSET;
                image.write(&table_bytes(&table.entries), place)?;
                table.dirty = false;
            }
            dirty.retain(|(_, table)| table.new);
            if dirty.is_empty() {
                return Ok(());
            }
            barrier()?;
            for (index, table) in &mut dirty {
                let place = image.header.l1_offset + **index as u64 * 8;
                image.write(&image.l1[**index].to_be_bytes(), place)?;
                table.new = false;
            }
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| format!("cannot write {}", image.path.display()))
    }

    /// Whether there is a backing file, whose data shows where this one has none.
    fn is_overlay(&self) -> bool {
        self.image.header.backing.is_some()
    }

    fn failed(&self) -> String {
        format!("cannot write {}", self.image.path.display())
    }

    /// Checks that a range is inside the device, and made of whole clusters.
    fn check(&self, offset: u64, length: u64) -> Result<()> {
        self.image.check(offset, length)?;
        let end = offset + length;
        let whole = |at: u64| at % CLUSTER == 0;
        ensure!(
            whole(offset) && (whole(end) || end == self.image.header.size),
            "{}: {length} bytes at byte {offset} are no whole clusters",
            self.image.path.display()
        );
        Ok(())
    }
}

/// The index in the L1 table and in the L2 table, of a byte of the device.
fn split(offset: u64) -> (usize, usize) {
    // At most 2^20 and 2^13.
    (
        (offset / PER_L2) as usize,
        (offset / CLUSTER % ENTRIES) as usize,
    )
}

impl Writer for Image {
    fn granularity(&self) -> u64 {
        CLUSTER
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        match &mut self.compressor {
            Some(compressor) => {
                let clusters = compressor.compress(data)?;
                self.store_clusters(offset, data, &clusters)
            }
            None => self.store_whole(offset, data),
        }
    }

    fn compresses(&self) -> bool {
        self.compressor.is_some()
    }

    fn write_compressed(&mut self, offset: u64, data: &[u8], clusters: &Clusters) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        self.store_clusters(offset, data, clusters)
    }

    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        self.check(range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        while at < range.end {
            if self.image.l1[split(at).0] == 0 && !self.is_overlay() {
                at = (at / PER_L2 + 1) * PER_L2;
                continue;
            }
            self.zero_cluster(at)?;
            at += CLUSTER;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.refcounts
            .finish(&self.image)
            .and_then(|()| self.fill_up())
            .and_then(|()| Ok(self.image.sync()?))
            .with_context(|| self.failed())
    }
}
