// SPDX-License-Identifier: MIT OR Apache-2.0

//! Extents that are given to a snapshot a portion at a time.

use std::collections::VecDeque;

use super::Extents;
use crate::id::DevId;
use crate::units::{SectorRange, Sectors};

/// A cut within an extent is made at a multiple of this on the device, so that no part has an end
/// that the module can't use.
const CUT: u64 = (1 << 20) / Sectors::SIZE;

/// What is left of some extents.
#[derive(Debug)]
pub(crate) struct Portions {
    device: DevId,
    rest: VecDeque<SectorRange>,
}

impl Portions {
    /// All of them.
    pub(crate) fn new(extents: Extents) -> Self {
        Self {
            device: extents.device,
            rest: extents.ranges.into(),
        }
    }

    /// Takes away about as much as is wanted, or what is left; `None` when there is nothing.
    pub(crate) fn next(&mut self, bytes: u64) -> Option<Extents> {
        let wanted = Sectors::ceil(bytes).0.max(1);
        let mut ranges = Vec::new();
        let mut got = 0;
        while got < wanted {
            let Some(range) = self.rest.pop_front() else {
                break;
            };
            let (start, end) = (range.start.0, range.start.0 + range.count.0);
            let cut = (start + (wanted - got)).next_multiple_of(CUT).min(end);
            ranges.push(SectorRange::new(start, cut - start));
            got += cut - start;
            if cut < end {
                self.rest.push_front(SectorRange::new(cut, end - cut));
            }
        }
        (!ranges.is_empty()).then_some(Extents {
            device: self.device,
            ranges,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn portions(ranges: &[(u64, u64)]) -> Portions {
        let ranges = ranges.iter().map(|&(s, n)| SectorRange::new(s, n));
        Portions::new(Extents {
            device: DevId { major: 8, minor: 0 },
            ranges: ranges.collect(),
        })
    }

    fn next(portions: &mut Portions, bytes: u64) -> Vec<(u64, u64)> {
        let extents = portions.next(bytes);
        let ranges = extents.into_iter().flat_map(|extents| extents.ranges);
        ranges.map(|range| (range.start.0, range.count.0)).collect()
    }

    #[test]
    fn all_is_given_out_once_and_in_order() {
        let mut left = portions(&[(8, 8), (4096, 8192), (100, 2)]);
        assert_eq!(next(&mut left, 0), [(8, 8)]);
        assert_eq!(next(&mut left, MIB), [(4096, 2048)]);
        assert_eq!(next(&mut left, MIB + 1), [(6144, 4096)]);
        assert_eq!(next(&mut left, 2 * MIB), [(10240, 2048), (100, 2)]);
        assert_eq!(next(&mut left, MIB), []);
    }

    #[test]
    fn cuts_are_at_whole_mebibytes_of_the_device() {
        let mut left = portions(&[(2050, 8192)]);
        assert_eq!(next(&mut left, MIB), [(2050, 4096 + 2048 - 2050)]);
        assert_eq!(next(&mut left, MIB), [(6144, 2048)]);
        assert_eq!(next(&mut left, u64::MAX), [(8192, 2050)]);
        assert_eq!(next(&mut left, u64::MAX), []);
    }
}
