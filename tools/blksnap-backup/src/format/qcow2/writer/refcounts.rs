// SPDX-License-Identifier: GPL-2.0-or-later

//! Which clusters of the file are used.
//!
//! Clusters are taken from the end of the file. The clusters of a refcount block are all counted as used
//! once when the first of them is taken, and those that were not taken are uncounted at the end. A
//! cluster in which several compressed ones have something is counted for each of them.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::format::qcow2::file::ImageFile;
use crate::format::qcow2::{CLUSTER, OFFSET, REFCOUNTS};

/// The end of the file.
pub struct Refcounts {
    /// The next cluster to be taken.
    next: u64,
    /// Clusters before this one are counted.
    counted: u64,
    /// Whether counts must be durable before a cluster is used.
    update: bool,
}

impl Refcounts {
    /// Finds the end of a file, and counts the tables of a new one.
    pub fn start(image: &ImageFile, update: bool) -> Result<Self> {
        let next = image.file.metadata()?.len().div_ceil(CLUSTER);
        let mut counts = Self {
            next,
            counted: if update { next } else { 0 },
            update,
        };
        while counts.counted < next {
            counts.count(image)?;
        }
        Ok(counts)
    }

    /// The end of what was taken: bytes.
    pub fn end(&self) -> u64 {
        self.next * CLUSTER
    }

    /// Counts a cluster that was taken once more, or once less; gives how often it is used now.
    pub fn change(&self, image: &ImageFile, place: u64, more: bool) -> Result<u16> {
        let cluster = place / CLUSTER;
        let damaged = || format!("damaged refcounts of the cluster at byte {place}");
        let block = self.knows(place).then(|| self.block_of(image, cluster));
        let block = block.transpose()?.flatten().with_context(damaged)?;
        let at = block + cluster % REFCOUNTS * 2;
        let mut count = [0; 2];
        image.file.read_exact_at(&mut count, at)?;
        let count = u16::from_be_bytes(count);
        let count = match more {
            true => count.checked_add(1),
            false => count.checked_sub(1),
        };
        let count = count.with_context(damaged)?;
        image.write(&count.to_be_bytes(), at)?;
        Ok(count)
    }

    /// Whether a place is one that was taken.
    pub fn knows(&self, place: u64) -> bool {
        place / CLUSTER < self.next
    }

    /// Takes a cluster and gives its place.
    pub fn allocate(&mut self, image: &ImageFile) -> Result<u64> {
        while self.next >= self.counted {
            match self.block_of(image, self.next)? {
                Some(block) => self.recount(image, block)?,
                None => self.count(image)?,
            }
        }
        let place = self.next * CLUSTER;
        ensure!(
            place <= OFFSET - CLUSTER,
            "the file has become too large for qcow2"
        );
        self.next += 1;
        Ok(place)
    }

    /// Counts the clusters from the end of the file on in a block that the file has.
    fn recount(&mut self, image: &ImageFile, block: u64) -> Result<()> {
        let first = self.next % REFCOUNTS;
        let mut counts = vec![0; CLUSTER as usize];
        image.file.read_exact_at(&mut counts, block)?;
        if counts[first as usize * 2..].iter().any(|byte| *byte != 0) {
            eprintln!(
                "blksnap: {}: an earlier change of it was interrupted; some of its space is lost, but no data (`qemu-img check -r leaks` gives it back)",
                image.path.display()
            );
        }
        self.write_counts(image, block, first, 1)?;
        self.counted = (self.next / REFCOUNTS + 1) * REFCOUNTS;
        Ok(())
    }

    /// Makes a refcount block for the clusters after those that are counted, and counts them.
    fn count(&mut self, image: &ImageFile) -> Result<()> {
        let group = self.counted / REFCOUNTS;
        let table = &image.header.refcount_table_offset;
        ensure!(
            group < u64::from(image.header.refcount_table_clusters) * CLUSTER / 8,
            "its refcount table is full: too much was changed in it; make a new full backup"
        );
        // It is a cluster that it counts itself, but for the tables of a new file.
        let place = self.next * CLUSTER;
        self.next += 1;
        let first = self.counted % REFCOUNTS;
        image.write(&vec![0; CLUSTER as usize], place)?;
        self.write_counts(image, place, first, 1)?;
        if self.update {
            image.sync()?;
        }
        image.write(&place.to_be_bytes(), table + group * 8)?;
        self.counted = (group + 1) * REFCOUNTS;
        Ok(())
    }

    /// Uncounts the clusters that were not taken.
    pub fn finish(&mut self, image: &ImageFile) -> Result<()> {
        if self.next == self.counted {
            return Ok(());
        }
        if let Some(block) = self.block_of(image, self.next)? {
            self.write_counts(image, block, self.next % REFCOUNTS, 0)?;
        }
        self.counted = self.next;
        Ok(())
    }

    /// Writes the counts of a block from one on.
    fn write_counts(&self, image: &ImageFile, block: u64, first: u64, count: u16) -> Result<()> {
        let bytes = count.to_be_bytes().repeat((REFCOUNTS - first) as usize);
        Ok(image.write(&bytes, block + first * 2)?)
    }

    /// The place of the block that counts a cluster, if there is one.
    fn block_of(&self, image: &ImageFile, cluster: u64) -> Result<Option<u64>> {
        let index = cluster / REFCOUNTS * 8;
        let header = &image.header;
        if index >= u64::from(header.refcount_table_clusters) * CLUSTER {
            return Ok(None);
        }
        let mut entry = [0; 8];
        image
            .file
            .read_exact_at(&mut entry, header.refcount_table_offset + index)?;
        let entry = u64::from_be_bytes(entry);
        if entry == 0 {
            return Ok(None);
        }
        let inside = entry <= image.file.metadata()?.len().saturating_sub(CLUSTER);
        ensure!(
            entry & !OFFSET == 0 && entry % CLUSTER == 0 && inside,
            "damaged refcount table: an entry of {entry:#x}"
        );
        Ok(Some(entry))
    }
}
