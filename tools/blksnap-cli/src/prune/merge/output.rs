// SPDX-License-Identifier: GPL-2.0-or-later

//! What a merge writes: data to a file, and the list of all its extents, both ascending.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::path::Path;

use anyhow::Result;
use blksnap_backup::format::Writer;
use blksnap_backup::{Extent, Extents, ExtentsWriter, Seen};

use crate::prune::step;

/// A part of what is seen, behind which others may have to come first: no more than an extent is long.
struct Waiting {
    extent: Extent,
    /// What is to be written.
    data: Option<Vec<u8>>,
}

impl Ord for Waiting {
    /// The first one is the greatest: it leaves a heap first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.extent.start.cmp(&self.extent.start)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

/// A file, if data is written, and a list.
pub struct Output<'a> {
    writer: Option<&'a mut dyn Writer>,
    list: ExtentsWriter,
    waiting: BinaryHeap<Waiting>,
}

impl<'a> Output<'a> {
    /// A new list with that path.
    pub fn create(list: &Path, writer: Option<&'a mut dyn Writer>) -> Result<Self> {
        Ok(Self {
            writer,
            list: ExtentsWriter::create(list)?,
            waiting: BinaryHeap::new(),
        })
    }

    /// What is there already: it is only listed.
    pub fn keep(&mut self, seen: &Seen, parts: impl IntoIterator<Item = Extent>) -> Result<()> {
        self.write_before(seen.extent.start)?;
        let parts = parts
            .into_iter()
            .map(|extent| Waiting { extent, data: None });
        self.waiting.extend(parts);
        Ok(())
    }

    /// Zeros, to be written.
    pub fn zeros(&mut self, seen: &Seen) -> Result<()> {
        self.write_before(seen.extent.start)?;
        for part in &seen.parts {
            step("writing zeros")?;
            if let Some(writer) = &mut self.writer {
                writer.zero(part.clone())?;
            }
            self.list.push(Extent::of_zeros(part.clone()))?;
        }
        Ok(())
    }

    /// Data, to be written: what became of an extent, of which these are the bytes.
    pub fn data(&mut self, seen: &Seen, bytes: &[u8], parts: Vec<Extent>) -> Result<()> {
        let start = seen.extent.start;
        self.write_before(start)?;
        for extent in parts {
            let inside = |at: u64| (at - start) as usize;
            let bytes = &bytes[inside(extent.start)..inside(extent.range().end)];
            if extent.start == start {
                self.write(extent, Some(bytes))?;
            } else {
                let data = Some(bytes.to_vec());
                self.waiting.push(Waiting { extent, data });
            }
        }
        Ok(())
    }

    /// Nothing comes any more that is before a place.
    fn write_before(&mut self, place: u64) -> Result<()> {
        let is_before = |first: &Waiting| first.extent.start < place;
        while self.waiting.peek().is_some_and(is_before) {
            if let Some(first) = self.waiting.pop() {
                self.write(first.extent, first.data.as_deref())?;
            }
        }
        Ok(())
    }

    fn write(&mut self, extent: Extent, data: Option<&[u8]>) -> Result<()> {
        if let (Some(data), Some(writer)) = (data, &mut self.writer) {
            step("writing data")?;
            writer.write(extent.start, data)?;
        }
        self.list.push(extent)
    }

    /// All has come. Gives the list.
    pub fn finish(mut self) -> Result<Extents> {
        self.write_before(u64::MAX)?;
        self.list.finish()
    }
}
