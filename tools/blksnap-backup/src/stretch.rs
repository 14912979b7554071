// SPDX-License-Identifier: GPL-2.0-or-later

//! Stretches of a device that are compared at once: of an image, what is in one buffer is read with as
//! few calls as there are gaps, however many extents it is cut into.

use std::ops::Range;

use anyhow::Result;

use crate::buffer;
use crate::copy::pieces;
use crate::extents::Extent;
use crate::seen::Seen;

/// Direct I/O wants such addresses.
const ALIGN: u64 = 4096;

/// Some extents whose parts are not further from each other than a buffer is long.
pub struct Stretch {
    /// What is at the beginning of the buffer.
    pub start: u64,
    /// What is seen there; of zeros one part each.
    pub items: Vec<Seen>,
}

impl Stretch {
    /// Where something is in the buffer.
    pub fn place(&self, range: &Range<u64>) -> Range<usize> {
        (range.start - self.start) as usize..(range.end - self.start) as usize
    }

    /// Bytes that are compared.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(Seen::bytes).sum()
    }

    /// What is to be read of the image: ascending, neighbours joined.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let parts = self.items.iter().flat_map(|seen| &seen.parts);
        let mut ranges: Vec<_> = parts.cloned().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let join = last.end == next.start;
            if join {
                last.end = next.end;
            }
            join
        });
        ranges
    }
}

/// Cuts what is seen into stretches.
pub fn stretches(
    seen: impl Iterator<Item = Result<Seen>>,
) -> impl Iterator<Item = Result<Stretch>> {
    let mut seen = seen.flat_map(cut);
    let mut next: Option<Seen> = None;
    std::iter::from_fn(move || {
        let first = match next.take().map(Ok).or_else(|| seen.next())? {
            Ok(first) => first,
            Err(error) => return Some(Err(error)),
        };
        let whole = first.extent.range();
        let fits = |start: &u64| whole.end - start <= buffer::SIZE as u64;
        let aligned = Some(whole.start / ALIGN * ALIGN).filter(fits);
        let start = aligned.unwrap_or(whole.start);
        let end = start + buffer::SIZE as u64;
        let mut items = vec![first];
        loop {
            match seen.next() {
                Some(Ok(one)) if one.extent.range().end <= end => items.push(one),
                Some(Ok(one)) => {
                    next = Some(one);
                    break;
                }
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        Some(Ok(Stretch { start, items }))
    })
}

/// Cuts zeros to the size of buffers.
fn cut(seen: Result<Seen>) -> Vec<Result<Seen>> {
    match seen {
        Ok(seen) if seen.is_zeros() => pieces(seen.parts.into_iter())
            .map(|piece| Ok(Seen::all(seen.layer, Extent::of_zeros(piece))))
            .collect(),
        other => vec![other],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_stretch_has_room_in_a_buffer() {
        let size = buffer::SIZE as u64;
        let data = |start: u64, length| Extent {
            length,
            ..Extent::of(start, b"x")
        };
        let extents = [
            // Nobody writes such lists, but they can be read.
            data(512, size),
            data(size + 512, size - 512),
            Extent::of_zeros(2 * size..4 * size + 4096),
            data(4 * size + 4096, 4096),
            data(4 * size + 10_000, 100),
            data(5 * size - 512, 1024),
        ];
        let seen = extents.iter().map(|extent| Ok(Seen::all(0, *extent)));
        let stretches: Vec<_> = stretches(seen).map(Result::unwrap).collect();
        let mut bytes = 0;
        for stretch in &stretches {
            bytes += stretch.bytes();
            for range in stretch.ranges() {
                assert!(stretch.place(&range).end <= buffer::SIZE);
            }
        }
        assert_eq!(bytes, extents.iter().map(|one| one.length).sum::<u64>());
        assert_eq!(stretches.len(), 6);
        let joined = stretches[4].ranges();
        assert_eq!(joined[0], 4 * size..4 * size + 8192);
        assert_eq!(joined.len(), 2);
    }
}
