// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a snapshot has to say: it needs storage, or it is lost.

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::error::{Error, Result};
use crate::id::DevId;
use crate::sys;
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
pub enum EventKind {
    /// More difference storage is needed.
    LowFreeSpace {
        /// How much to append.
        requested: Sectors,
    },
    /// The image of a device is lost.
    Corrupted {
        /// The original device.
        device: DevId,
        /// Why.
        errno: Errno,
    },
}

impl Event {
    /// Decodes what the module filled in.
    pub(crate) fn from_raw(raw: &sys::SnapshotEvent) -> Result<Self> {
        let unknown = |_| Error::UnknownEvent(raw.code);
        let kind = match raw.code {
            sys::EVENT_LOW_FREE_SPACE => {
                let (data, _) =
                    sys::EventLowFreeSpace::read_from_prefix(&raw.data).map_err(|_| unknown(()))?;
                EventKind::LowFreeSpace {
                    requested: Sectors(data.requested_nr_sect),
                }
            }
            sys::EVENT_CORRUPTED => {
                let (device, errno) = corrupted(raw).ok_or_else(|| unknown(()))?;
                EventKind::Corrupted { device, errno }
            }
            _ => return Err(unknown(())),
        };
        Ok(Self {
            time_ns: raw.time_label,
            kind,
        })
    }
}

/// Decodes what tells of a loss: the same in both interfaces.
pub(crate) fn corrupted(raw: &sys::SnapshotEvent) -> Option<(DevId, Errno)> {
    let (data, _) = sys::EventCorrupted::read_from_prefix(&raw.data).ok()?;
    // Errno is asked for in its range only: anything else is reported as an I/O error.
    let errno = match data.err_code {
        code @ 1..4096 => Errno::from_raw_os_error(code),
        _ => Errno::IO,
    };
    Some((data.orig_dev_id.into(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(code: u32, data: &[u8]) -> sys::SnapshotEvent {
        let mut raw = sys::SnapshotEvent {
            id: [0; 16],
            timeout_ms: 0,
            code,
            time_label: 42,
            data: [0; 4064],
        };
        raw.data[..data.len()].copy_from_slice(data);
        raw
    }

    #[test]
    fn events_are_decoded() {
        let event = Event::from_raw(&raw(0, &2048u64.to_ne_bytes())).unwrap();
        assert_eq!(event.time_ns, 42);
        let requested = Sectors(2048);
        assert_eq!(event.kind, EventKind::LowFreeSpace { requested });

        let data: Vec<u8> = [8u32, 1, 28].iter().flat_map(|x| x.to_ne_bytes()).collect();
        let device = DevId { major: 8, minor: 1 };
        let errno = Errno::NOSPC;
        assert_eq!(
            Event::from_raw(&raw(1, &data)).unwrap().kind,
            EventKind::Corrupted { device, errno }
        );
        assert!(matches!(
            Event::from_raw(&raw(2, &[])),
            Err(Error::UnknownEvent(2))
        ));
    }
}
