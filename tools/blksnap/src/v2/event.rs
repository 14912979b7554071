// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a snapshot of the second interface has to say.

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::event::corrupted;
use crate::id::DevId;
use crate::sys::{self, v2};
use crate::units::Sectors;

/// What a snapshot has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened, in nanoseconds of the monotonic clock.
    pub time_ns: i64,
    /// What happened.
    pub kind: EventKind,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The image of a device is lost.
    Corrupted {
        /// The original device.
        device: DevId,
        /// Why.
        errno: Errno,
    },
    /// The storage should become larger, and may not. The snapshot is good as long as what there is
    /// is enough.
    NoSpace {
        /// The size that it has reached.
        reached: Sectors,
    },
    /// The module is newer than this crate.
    Other {
        /// Its number.
        code: u32,
    },
}

impl Event {
    /// Decodes what the module filled in.
    pub(super) fn from_raw(raw: &sys::SnapshotEvent) -> Self {
        let kind = match raw.code {
            v2::EVENT_CORRUPTED => {
                corrupted(raw).map(|(device, errno)| EventKind::Corrupted { device, errno })
            }
            v2::EVENT_NO_SPACE => {
                let data = v2::EventNoSpace::read_from_prefix(&raw.data);
                data.ok().map(|(data, _)| EventKind::NoSpace {
                    reached: Sectors(data.requested_nr_sect),
                })
            }
            _ => None,
        };
        Self {
            time_ns: raw.time_label,
            kind: kind.unwrap_or(EventKind::Other { code: raw.code }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(code: u32, data: &[u8]) -> Event {
        let mut raw = sys::SnapshotEvent {
            id: [0; 16],
            timeout_ms: 0,
            code,
            time_label: 42,
            data: [0; 4064],
        };
        raw.data[..data.len()].copy_from_slice(data);
        Event::from_raw(&raw)
    }

    #[test]
    fn events_are_decoded() {
        let data: Vec<u8> = [8u32, 1, 28].iter().flat_map(|x| x.to_ne_bytes()).collect();
        let lost = event(0, &data);
        assert_eq!(lost.time_ns, 42);
        let device = DevId { major: 8, minor: 1 };
        let errno = Errno::NOSPC;
        assert_eq!(lost.kind, EventKind::Corrupted { device, errno });
        let reached = Sectors(2048);
        let full = event(1, &2048u64.to_ne_bytes()).kind;
        assert_eq!(full, EventKind::NoSpace { reached });
        assert_eq!(event(7, &[]).kind, EventKind::Other { code: 7 });
    }
}
