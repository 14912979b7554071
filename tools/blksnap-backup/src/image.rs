// SPDX-License-Identifier: GPL-2.0-or-later

//! A device as it was, read at any place, by several threads.
//!
//! The newest layer that has a place has what is seen there. An extent of data is read and checked as
//! a whole, also if a few bytes of it are wanted; so those that were read last are kept, in a
//! [`Cache`] that all images share. Of the lists of extents a block each is kept.

mod cache;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::buffer::Buffer;
use crate::chain::{Chain, Layer};
use crate::extents::Extent;
pub use cache::Cache;

/// A device of a backup.
pub struct Image {
    chain: Chain,
    size: u64,
    cache: Arc<Cache>,
    /// Extents whose checksum was found to be wrong, by the file's place in the chain and their start:
    /// who tries sector after sector need not wait for each to be read again.
    wrong: Mutex<BTreeSet<(usize, u64)>>,
}

/// A part of an extent that is seen.
struct Piece<'a> {
    /// Which layer has it.
    index: usize,
    layer: &'a Layer,
    extent: Extent,
    range: Range<u64>,
}

impl Image {
    /// Of a whole chain.
    pub fn new(chain: Chain, cache: Arc<Cache>) -> Self {
        let size = chain.layers.last().map_or(0, |layer| layer.device.size);
        Self {
            chain,
            size,
            cache,
            wrong: Mutex::default(),
        }
    }

    /// Bytes in the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `data` with what was at `offset`. The error has a [`Damaged`](crate::Damaged) if a file is.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(data.len() as u64);
        let Some(end) = end.filter(|&end| end <= self.size) else {
            bail!(
                "{} bytes at byte {offset} are outside of the device",
                data.len()
            );
        };
        for piece in self.pieces(offset..end)? {
            // All of it is inside of what is asked for, which is in memory.
            let place = |range: &Range<u64>, start: u64| {
                (range.start - start) as usize..(range.end - start) as usize
            };
            let target = &mut data[place(&piece.range, offset)];
            if piece.extent.hash.is_none() {
                target.fill(0);
                continue;
            }
            let extent = self.extent(&piece)?;
            target.copy_from_slice(&extent.bytes()[place(&piece.range, piece.extent.start)]);
        }
        Ok(())
    }

    /// What is seen in a range.
    fn pieces(&self, range: Range<u64>) -> Result<Vec<Piece<'_>>> {
        let mut pieces = Vec::new();
        let mut wanted = vec![range];
        for (index, layer) in self.chain.layers.iter().enumerate().rev() {
            // What this layer has not is in an older one.
            let mut older = Vec::new();
            for place in wanted {
                let mut at = place.start;
                for extent in layer.extents.overlapping(place.clone()) {
                    let extent = extent?;
                    let whole = extent.range();
                    let range = whole.start.max(place.start)..whole.end.min(place.end);
                    older.extend((at < range.start).then_some(at..range.start));
                    at = range.end;
                    pieces.push(Piece {
                        index,
                        layer,
                        extent,
                        range,
                    });
                }
                older.extend((at < place.end).then_some(at..place.end));
            }
            wanted = older;
            if wanted.is_empty() {
                break;
            }
        }
        // Chains are checked for it when they are opened.
        ensure!(wanted.is_empty(), "a part of the device is in no backup");
        Ok(pieces)
    }

    /// The data of an extent, which is checked.
    fn extent(&self, piece: &Piece<'_>) -> Result<Arc<Buffer>> {
        let load = || {
            let known = (piece.index, piece.extent.start);
            let wrong = || self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(!wrong().contains(&known), "the checksum is wrong");
            let length = piece.extent.length as usize;
            let mut buffer = Buffer::with_room(length);
            let bytes = &mut buffer.bytes_mut()[..length];
            self.cache.read(piece.layer, piece.extent.start, bytes)?;
            if !piece.extent.matches(bytes) {
                wrong().insert(known);
                bail!("the checksum is wrong");
            }
            Ok(buffer)
        };
        let extent = self.cache.extent(&piece.extent, load);
        extent.with_context(|| piece.layer.damaged(&piece.extent))
    }
}
