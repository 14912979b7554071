// SPDX-License-Identifier: MIT OR Apache-2.0

//! The structures that C sees. They are filled by this library and never grow.

use std::ffi::c_char;

use blksnap_rs::{CbtInfo, DevId, GenerationId, SessionEvent};

/// The number of a block device: major() and minor() of its st_rdev.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl From<DevId> for Device {
    fn from(DevId { major, minor }: DevId) -> Self {
        Self { major, minor }
    }
}

/// A UUID, its bytes in the order in which they are printed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuid {
    /// The bytes.
    pub bytes: [u8; 16],
}

/// A point in the history of a device's changes: the snapshot that a backup was made of. It is
/// what is kept with the backup, so that the next one can continue it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The generation that the number belongs to.
    pub generation: Uuid,
    /// The number of the snapshot.
    pub number: u8,
}

impl From<blksnap_rs::Point> for Point {
    fn from(point: blksnap_rs::Point) -> Self {
        let bytes = point.generation.to_raw();
        Self {
            generation: Uuid { bytes },
            number: point.number,
        }
    }
}

impl From<Point> for blksnap_rs::Point {
    fn from(point: Point) -> Self {
        Self {
            generation: GenerationId::from_raw(point.generation.bytes),
            number: point.number,
        }
    }
}

/// A captured device and its image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The device that was captured.
    pub original: Device,
    /// The device that shows it as it was.
    pub device: Device,
    /// The path of that device; valid until the session is destroyed.
    pub path: *const c_char,
}

/// A part of a device, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A tracked device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tracker {
    /// The device.
    pub device: Device,
    /// Bytes of the device.
    pub capacity: u64,
    /// Bytes in a tracking block: a power of two.
    pub block_size: u32,
    /// Number of tracking blocks; the last one may be short.
    pub block_count: u32,
    /// The last snapshot taken of it; number 0 if there was none.
    pub point: Point,
}

impl From<CbtInfo> for Tracker {
    fn from(info: CbtInfo) -> Self {
        Self {
            device: info.device.into(),
            capacity: info.capacity,
            block_size: info.block_size,
            block_count: info.block_count,
            point: info.point().into(),
        }
    }
}

/// The library does not know what happened: it is newer than this list.
pub const BLKSNAP_EVENT_OTHER: u32 = 0;
/// Storage was asked for and could not be given. The snapshot is good as long as what it has is
/// enough.
pub const BLKSNAP_EVENT_TROUBLE: u32 = 1;
/// The image of a device is lost.
pub const BLKSNAP_EVENT_CORRUPTED: u32 = 2;
/// Somebody else has destroyed the snapshot.
pub const BLKSNAP_EVENT_GONE: u32 = 3;

/// What a session has to say. It feeds its snapshot by itself: this is what it can't do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// One of the numbers BLKSNAP_EVENT_*.
    pub kind: u32,
    /// BLKSNAP_EVENT_CORRUPTED: why, a positive errno; ENOSPC when the storage was full.
    pub error: i32,
    /// BLKSNAP_EVENT_CORRUPTED: the original device.
    pub device: Device,
    /// For people; what does not fit is cut off.
    pub text: [c_char; 256],
}

impl From<SessionEvent> for Event {
    fn from(event: SessionEvent) -> Self {
        let mut text = [0; 256];
        // The last one stays 0.
        for (to, from) in text[..255].iter_mut().zip(event.to_string().bytes()) {
            *to = from as c_char;
        }
        let (kind, error, device) = match event {
            SessionEvent::Trouble(_) => (BLKSNAP_EVENT_TROUBLE, 0, Device::default()),
            SessionEvent::Corrupted { device, errno } => {
                let errno = errno.raw_os_error();
                (BLKSNAP_EVENT_CORRUPTED, errno, device.into())
            }
            SessionEvent::Gone => (BLKSNAP_EVENT_GONE, 0, Device::default()),
            _ => (BLKSNAP_EVENT_OTHER, 0, Device::default()),
        };
        Self {
            kind,
            error,
            device,
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_ended() {
        let event = Event::from(SessionEvent::Trouble("x".repeat(1000)));
        assert_eq!(event.kind, BLKSNAP_EVENT_TROUBLE);
        assert_eq!(event.text[254], b'x' as c_char);
        assert_eq!(event.text[255], 0);
    }

    #[test]
    fn a_point_survives_the_journey() {
        let point = Point {
            generation: Uuid { bytes: [7; 16] },
            number: 9,
        };
        assert_eq!(Point::from(blksnap_rs::Point::from(point)), point);
    }
}
