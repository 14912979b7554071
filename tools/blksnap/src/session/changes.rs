// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a backup that continues an earlier one has to read.

use std::ops::Range;

use rustix::io::Errno;

use super::Session;
use crate::cbt::{CbtInfo, ChangeMap, Point};
use crate::error::{Command, Error, Result};
use crate::id::DevId;

/// What changed on a captured device between a [`Point`] and the instant of a session's snapshot;
/// all of the device if that is not known.
#[derive(Clone, Debug)]
pub struct Changes {
    info: CbtInfo,
    /// The map, and the number since which changes count; or everything.
    map: Option<(ChangeMap, u8)>,
}

impl Changes {
    /// What is known of the device. Keep its [`point`](CbtInfo::point) with the backup, once that
    /// is complete.
    pub fn info(&self) -> &CbtInfo {
        &self.info
    }

    /// Whether everything has to be read, because there was no point to start from, or nothing is
    /// known since then.
    pub fn is_full(&self) -> bool {
        self.map.is_none()
    }

    /// The ranges to read, in bytes: ascending, neighbours joined.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.map.is_none().then_some(0..self.info.capacity);
        let some = self.map.iter();
        let some = some.flat_map(|(map, number)| map.changed_since(*number));
        all.into_iter()
            .chain(some)
            .filter(|range| !range.is_empty())
    }
}

impl Session {
    /// What of a captured device a backup has to read that continues one made at `since`.
    ///
    /// **Blocks** while the change map is read, which is a byte in memory for each tracking block.
    pub fn changes(&self, device: DevId, since: Option<Point>) -> Result<Changes> {
        let tracker = self.tracker(device)?;
        let info = tracker.ok_or_else(|| Error::Command {
            command: Command::TrackerReadCbtMap,
            subject: device.to_string(),
            errno: Errno::NODATA,
        })?;
        let since = since.filter(|&point| info.knows_since(point));
        let map = match since {
            Some(point) => Some((self.change_map(&info)?, point.number)),
            None => None,
        };
        Ok(Changes { info, map })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GenerationId;

    fn info(number: u8) -> CbtInfo {
        CbtInfo {
            device: DevId { major: 8, minor: 0 },
            block_size: 4096,
            capacity: 3 * 4096,
            block_count: 3,
            generation: GenerationId(uuid::Uuid::from_u128(1)),
            number,
        }
    }

    #[test]
    fn only_a_point_of_this_generation_tells() {
        let now = info(5);
        let point = |generation, number| Point {
            generation: GenerationId(uuid::Uuid::from_u128(generation)),
            number,
        };
        assert!(now.knows_since(point(1, 4)));
        assert!(now.knows_since(now.point()));
        assert!(!now.knows_since(point(2, 4)));
        assert!(!now.knows_since(point(1, 6)), "of the future");
    }

    #[test]
    fn changes_are_ranges_or_everything() {
        let all = Changes {
            info: info(2),
            map: None,
        };
        assert!(all.is_full());
        assert_eq!(all.ranges().collect::<Vec<_>>(), [0..12288]);
        let map = ChangeMap::new(vec![2, 1, 2], 4096, 3 * 4096);
        let some = Changes {
            info: info(2),
            map: Some((map, 1)),
        };
        assert!(!some.is_full());
        assert_eq!(some.ranges().collect::<Vec<_>>(), [0..4096, 8192..12288]);
    }
}
