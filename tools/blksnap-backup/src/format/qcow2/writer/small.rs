// SPDX-License-Identifier: GPL-2.0-or-later

//! Clusters that are stored compressed.

use anyhow::{Context, Result};

use super::{Image, split};
use crate::format::qcow2::compressed::{self, Clusters};
use crate::format::qcow2::{CLUSTER, COMPRESSED, MORE, OFFSET};

impl Image {
    /// Stores clusters, those compressed that are smaller so.
    pub fn store_clusters(&mut self, offset: u64, data: &[u8], clusters: &Clusters) -> Result<()> {
        // What is not smaller, and not stored yet.
        let mut whole = 0..0;
        for (start, small) in clusters.iter() {
            // Each is at another place than the one it replaces, so that a file that is updated again and
            // again would become too long. What is whole is stored over.
            let small = small.filter(|_| self.refcounts.end() < self.image.header.size + MORE);
            let Some(small) = small else {
                whole.end = data.len().min(start + CLUSTER as usize);
                continue;
            };
            self.store_whole(offset + whole.start as u64, &data[whole.clone()])?;
            self.store_small(offset + start as u64, small)?;
            let next = data.len().min(start + CLUSTER as usize);
            whole = next..next;
        }
        self.store_whole(offset + whole.start as u64, &data[whole])
    }

    /// Stores the cluster at `offset` of the device.
    fn store_small(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (index, slot) = split(offset);
        // To have it may take a cluster.
        self.table(index)?;
        let start = self.make_room(bytes.len() as u64)?;
        let place = start..start + bytes.len() as u64;
        let entry = compressed::entry(&place)?;
        let written = self.image.write(bytes, start);
        written.with_context(|| self.failed())?;
        let table = self.table(index)?;
        let old = std::mem::replace(&mut table.entries[slot], entry);
        table.dirty = true;
        if old & (COMPRESSED | OFFSET) != 0 {
            self.old.push(old);
        }
        Ok(())
    }

    /// Finds a place for so many bytes, fewer than a cluster has, and counts it.
    fn make_room(&mut self, length: u64) -> Result<u64> {
        let left = self.room.end - self.room.start;
        if length > left {
            let next = self.allocate()?;
            if left == 0 || next != self.room.end {
                // The taken one is counted.
                self.room = next + length..next + CLUSTER;
                return Ok(next);
            }
            self.room.end = next + CLUSTER;
        }
        let start = self.room.start;
        let counted = self.refcounts.change(&self.image, start, true);
        counted.with_context(|| self.failed())?;
        self.room.start += length;
        Ok(start)
    }

    /// Uncounts what no table refers to any more, and gives its space back.
    pub fn uncount_old(&mut self) -> Result<()> {
        if self.old.is_empty() {
            return Ok(());
        }
        if self.update {
            self.image.sync().with_context(|| self.failed())?;
        }
        for entry in std::mem::take(&mut self.old) {
            let place = match entry & COMPRESSED {
                0 => (entry & OFFSET)..(entry & OFFSET) + CLUSTER,
                _ => compressed::place(entry),
            };
            let first = place.start / CLUSTER * CLUSTER;
            for cluster in (first..place.end).step_by(CLUSTER as usize) {
                let left = self.refcounts.change(&self.image, cluster, false);
                if left.with_context(|| self.failed())? == 0 {
                    self.punch(cluster);
                }
            }
        }
        Ok(())
    }

    /// Makes the last cluster a whole one.
    pub fn fill_up(&self) -> Result<()> {
        let (length, end) = (self.image.file.metadata()?.len(), self.refcounts.end());
        if length < end {
            self.image.file.set_len(end)?;
        }
        Ok(())
    }
}
