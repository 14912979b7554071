// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sizes and places: sectors of 512 bytes, ranges of them, and sets of byte ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A number of sectors of 512 bytes: the unit of the control interface, whatever the device's block
/// size is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Bytes in a sector.
    pub const SIZE: u64 = 512;

    /// The whole sectors in `bytes`; what is left over is dropped.
    pub const fn floor(bytes: u64) -> Self {
        Self(bytes / Self::SIZE)
    }

    /// The sectors needed to hold `bytes`.
    pub const fn ceil(bytes: u64) -> Self {
        Self(bytes.div_ceil(Self::SIZE))
    }

    /// The size in bytes; saturates, which no real device reaches.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(Self::SIZE)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

/// A range of sectors of a block device. Written `START:COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorRange {
    /// First sector.
    pub start: Sectors,
    /// How many.
    pub count: Sectors,
}

impl SectorRange {
    /// A range of `count` sectors from `start`.
    pub const fn new(start: u64, count: u64) -> Self {
        Self {
            start: Sectors(start),
            count: Sectors(count),
        }
    }

    /// The sectors that are inside of a range of bytes, if there are any.
    pub const fn inside(bytes: Range<u64>) -> Option<Self> {
        let start = bytes.start.div_ceil(Sectors::SIZE);
        match (bytes.end / Sectors::SIZE).checked_sub(start) {
            None | Some(0) => None,
            Some(count) => Some(Self::new(start, count)),
        }
    }

    /// The same range in bytes.
    pub const fn bytes(self) -> Range<u64> {
        let start = self.start.bytes();
        start..start.saturating_add(self.count.bytes())
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.start.0, self.count.0)
    }
}

/// Why a text is not a [`SectorRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of sectors: write START:COUNT, such as 2048:8")]
pub struct ParseRangeError(String);

impl FromStr for SectorRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (start, count) = text.split_once(':')?;
            Some(Self::new(
                start.trim().parse().ok()?,
                count.trim().parse().ok()?,
            ))
        };
        parse().ok_or_else(|| ParseRangeError(text.to_owned()))
    }
}

/// A set of bytes of a device, kept as disjoint ranges in ascending order.
///
/// ```
/// let mut set = blksnap::ByteSet::default();
/// set.insert(4096..8192);
/// set.insert(8192..12288);
/// assert_eq!(set.iter().collect::<Vec<_>>(), [4096..12288]);
/// assert_eq!(set.outside(0..16384).collect::<Vec<_>>(), [0..4096, 12288..16384]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteSet {
    /// Start to end of each range.
    ranges: BTreeMap<u64, u64>,
}

impl ByteSet {
    /// Adds a range; it may overlap or touch what is there.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many bytes are in it.
    pub fn len(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// Its ranges, ascending; no two touch.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The parts of `range` that are in the set.
    pub fn inside(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = match self.ranges.range(..=range.start).next_back() {
            Some((&start, &end)) if end > range.start => start,
            _ => range.start,
        };
        self.ranges
            .range(first..range.end.max(first))
            .map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|part| !part.is_empty())
    }

    /// The parts of `range` that are not in the set.
    pub fn outside(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = range.end;
        let mut at = range.start;
        self.inside(range)
            .map(Some)
            .chain([None])
            .filter_map(move |part| {
                let gap = at..part.as_ref().map_or(end, |part| part.start);
                at = part.map_or(end, |part| part.end);
                (!gap.is_empty()).then_some(gap)
            })
    }
}

impl FromIterator<Range<u64>> for ByteSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_round_as_said() {
        assert_eq!(Sectors::floor(1023), Sectors(1));
        assert_eq!(Sectors::ceil(1023), Sectors(2));
        assert_eq!(Sectors(u64::MAX).bytes(), u64::MAX);
    }

    #[test]
    fn sectors_inside_of_bytes() {
        let inside = SectorRange::inside;
        assert_eq!(inside(512..1536), Some(SectorRange::new(1, 2)));
        assert_eq!(inside(1..2047), Some(SectorRange::new(1, 2)));
        assert_eq!(inside(513..1535), None);
        assert_eq!(inside(513..1000), None);
        assert_eq!(inside(1024..1024), None);
    }

    #[test]
    fn ranges_are_read_and_written() {
        assert_eq!("8:16".parse(), Ok(SectorRange::new(8, 16)));
        assert_eq!(SectorRange::new(8, 16).to_string(), "8:16");
        for bad in ["", "8", "8:", ":8", "-1:2", "1:2:3", "0x10:1"] {
            assert!(bad.parse::<SectorRange>().is_err(), "{bad}");
        }
    }

    /// Compares with a plain array of booleans, for all pairs of small ranges.
    #[test]
    fn byte_set_is_a_set() {
        let small = || (0..7u64).flat_map(|s| (s..8).map(move |e| s..e));
        for a in small() {
            for b in small() {
                for c in small().step_by(3) {
                    let set: ByteSet = [a.clone(), b.clone(), c.clone()].into_iter().collect();
                    let model = |i: u64| a.contains(&i) || b.contains(&i) || c.contains(&i);
                    let count = (0..8).filter(|&i| model(i)).count() as u64;
                    assert_eq!(set.len(), count);
                    for window in small() {
                        let inside: Vec<_> = set.inside(window.clone()).flatten().collect();
                        let outside: Vec<_> = set.outside(window.clone()).flatten().collect();
                        let expect = |want| -> Vec<u64> {
                            window.clone().filter(|&i| model(i) == want).collect()
                        };
                        assert_eq!(inside, expect(true), "{set:?} in {window:?}");
                        assert_eq!(outside, expect(false), "{set:?} out of {window:?}");
                    }
                }
            }
        }
    }
}
