// SPDX-License-Identifier: GPL-2.0-or-later

//! Where in a list something is: the place of every so many lines, of fewer the longer the list is.
//!
//! What was checked as a whole once is read again in blocks; each has a sum of its own, so that a file
//! that has changed meanwhile is never believed.

use std::hash::{DefaultHasher, Hasher};

use super::Extent;

/// Blocks at the most: an even number. (Tests have short lists.)
const BLOCKS: usize = if cfg!(test) { 8 } else { 8192 };
/// Lines in a block of a short list.
const LINES: u64 = if cfg!(test) { 2 } else { 64 };

/// Some lines that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The first byte of the device that is in it.
    pub start: u64,
    /// Its place in the file.
    pub place: u64,
    /// That of its lines.
    pub sum: u64,
}

/// What is known of a list.
#[derive(Debug)]
pub struct Index {
    /// All of it, ascending.
    pub blocks: Vec<Block>,
    /// Lines in each block but the last one.
    lines: u64,
    in_last: u64,
    /// Lines.
    pub count: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of data, and of zeros.
    pub totals: (u64, u64),
    /// The end of the last extent.
    pub end: u64,
    /// Whether there is nothing between the extents, nor before them.
    pub gapless: bool,
}

impl Index {
    /// Of an empty list.
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            lines: LINES,
            in_last: LINES,
            count: 0,
            size: 0,
            totals: (0, 0),
            end: 0,
            gapless: true,
        }
    }

    /// Takes in the next extent, with its line.
    pub fn add(&mut self, extent: &Extent, line: &[u8]) {
        if self.in_last == self.lines {
            if self.blocks.len() == BLOCKS {
                self.halve();
            }
            self.blocks.push(Block {
                start: extent.start,
                place: self.size,
                sum: 0,
            });
            self.in_last = 0;
        }
        if let Some(last) = self.blocks.last_mut() {
            last.sum = last.sum.wrapping_add(sum(line));
        }
        self.in_last += 1;
        self.count += 1;
        self.size += line.len() as u64;
        match extent.hash {
            Some(_) => self.totals.0 += extent.length,
            None => self.totals.1 += extent.length,
        }
        self.gapless &= extent.start == self.end;
        self.end = extent.range().end;
    }

    /// Makes one block of two.
    fn halve(&mut self) {
        let pairs = self.blocks.chunks(2).map(|pair| Block {
            sum: pair.iter().fold(0, |all, one| all.wrapping_add(one.sum)),
            ..pair[0]
        });
        self.blocks = pairs.collect();
        self.lines *= 2;
    }

    /// The block that has a place of the device, or the one before.
    pub fn block_of(&self, at: u64) -> usize {
        let behind = self.blocks.partition_point(|block| block.start <= at);
        behind.saturating_sub(1)
    }
}

/// That of a line. The sum of a block is that of its lines, in whichever order: lines ascend.
pub fn sum(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(line);
    hasher.finish()
}
