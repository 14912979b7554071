// SPDX-License-Identifier: GPL-2.0-or-later

//! What is seen of several lists of extents, of which a newer one hides what older ones have.
//!
//! ```text
//! newer   ░░░░████░░░░░░░░██░░░░       a window of the device after the other: of each list, what
//! older   ██████  ████████████         reaches into it is in memory, and nothing else
//! seen    ██└──┘  └──────┘└┘██
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use anyhow::Result;
use blksnap::ByteSet;

use crate::buffer;
use crate::extents::{Cursor, Extent, Extents};

/// Bytes of a window.
const WINDOW: u64 = 4 * LONGEST;
/// Bytes of an extent of data, at the most.
const LONGEST: u64 = buffer::SIZE as u64;

/// An extent of data of which something is seen; or a part of one of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of its list, of which the first is the oldest.
    pub layer: usize,
    /// The extent; of zeros, only what is seen.
    pub extent: Extent,
    /// What is seen of it, ascending.
    pub parts: Vec<Range<u64>>,
}

impl Seen {
    /// All of an extent.
    pub fn all(layer: usize, extent: Extent) -> Self {
        let parts = vec![extent.range()];
        Self {
            layer,
            extent,
            parts,
        }
    }

    /// Whether it is zeros.
    pub fn is_zeros(&self) -> bool {
        self.extent.hash.is_none()
    }

    /// Whether all of the extent is seen.
    pub fn is_whole(&self) -> bool {
        self.parts.len() == 1 && self.parts[0] == self.extent.range()
    }

    /// Bytes that are seen.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
}

/// What is seen of lists, the oldest first, in some places: by the first byte of the extents,
/// ascending. A part of an extent may be behind the next extent, but no further than an extent is long.
pub fn seen<'a, 'b>(lists: impl IntoIterator<Item = &'b Extents>, places: &'a ByteSet) -> View<'a> {
    let lists = lists.into_iter().map(|list| List {
        rest: list.iter(),
        ahead: VecDeque::new(),
    });
    View {
        lists: lists.collect(),
        places,
        at: 0,
        found: VecDeque::new(),
    }
}

/// See [`seen`].
pub struct View<'a> {
    lists: Vec<List>,
    places: &'a ByteSet,
    /// The end of the last window.
    at: u64,
    /// What was found in it.
    found: VecDeque<Seen>,
}

/// One of the lists.
struct List {
    rest: Cursor,
    /// What reaches into the window, or begins not far behind.
    ahead: VecDeque<Extent>,
}

impl List {
    /// Has all that ends behind `start` and begins before `end`.
    fn load(&mut self, start: u64, end: u64) -> Result<()> {
        self.ahead.retain(|extent| extent.range().end > start);
        if self.ahead.is_empty() {
            self.rest.skip_to(start);
        }
        while self.ahead.back().is_none_or(|last| last.start < end) {
            match self.rest.next() {
                Some(extent) => self.ahead.push_back(extent?),
                None => break,
            }
        }
        Ok(())
    }
}

impl View<'_> {
    /// Looks at the next window that has something of the places; `false` if there is none.
    fn window(&mut self) -> Result<bool> {
        let Some(next) = self.places.inside(self.at..u64::MAX).next() else {
            return Ok(false);
        };
        let before = self.at;
        let start = next.start;
        let end = (start / WINDOW + 1).saturating_mul(WINDOW);
        // What begins in the window may end behind it.
        let reach = end.saturating_add(LONGEST);
        let mut found = Vec::new();
        let mut hidden = ByteSet::default();
        for (layer, list) in self.lists.iter_mut().enumerate().rev() {
            list.load(start, reach)?;
            for extent in list.ahead.iter().filter(|extent| extent.start < reach) {
                let whole = extent.range();
                match extent.hash {
                    // It was found in an earlier window, or will be in the next one.
                    Some(_) if whole.start < before || whole.start >= end => {}
                    Some(_) => {
                        let open = hidden.outside(whole.clone());
                        let parts: Vec<_> =
                            open.flat_map(|part| self.places.inside(part)).collect();
                        found.extend((!parts.is_empty()).then_some(Seen {
                            layer,
                            extent: *extent,
                            parts,
                        }));
                    }
                    None => {
                        let open = hidden.outside(whole.start.max(start)..whole.end.min(end));
                        let parts = open.flat_map(|part| self.places.inside(part));
                        found.extend(parts.map(|part| Seen::all(layer, Extent::of_zeros(part))));
                    }
                }
                // Nothing is below the oldest.
                if layer > 0 {
                    hidden.insert(whole.start.max(start)..whole.end.min(reach));
                }
            }
        }
        found.sort_unstable_by_key(|seen| seen.extent.start);
        self.found = found.into();
        self.at = end;
        Ok(true)
    }
}

impl Iterator for View<'_> {
    type Item = Result<Seen>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(seen) = self.found.pop_front() {
                return Some(Ok(seen));
            }
            match self.window() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.at = u64::MAX;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The first place of a device of `size` bytes that is in no list.
pub fn first_gap<'a>(
    lists: impl IntoIterator<Item = &'a Extents>,
    size: u64,
) -> Result<Option<u64>> {
    let all = ByteSet::from_iter([0..size]);
    let mut parts = BinaryHeap::new();
    let mut end = 0;
    for seen in seen(lists, &all) {
        let seen = seen?;
        parts.extend(
            seen.parts
                .into_iter()
                .map(|part| Reverse((part.start, part.end))),
        );
        while let Some(&Reverse((start, next))) = parts.peek() {
            if start > end {
                break;
            }
            end = end.max(next);
            parts.pop();
        }
        // Nothing that comes later begins before.
        if seen.extent.start > end {
            break;
        }
    }
    Ok((end < size).then_some(end))
}

#[cfg(test)]
mod tests;
