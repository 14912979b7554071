// SPDX-License-Identifier: GPL-2.0-or-later

//! What the module tells, as one value. Its JSON form is stable: `blksnap-command.rst` describes it,
//! members may be added, none changes its meaning. What an older module does not tell is `null`.

use std::path::{Path, PathBuf};

use blksnap::state::{ImageState, SnapshotState, TrackerState};
use blksnap::{CbtInfo, Control, DevId, Image, Owner, SnapshotId, v2};
use rustix::io::Errno;
use rustix::system::uname;
use serde::Serialize;
use uuid::Uuid;

/// All there is.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Version of the module.
    pub module: String,
    /// What calls it.
    pub flavour: Flavour,
    /// The release of the kernel that runs.
    pub kernel: String,
    pub trackers: Vec<Tracker>,
    pub snapshots: Vec<Snapshot>,
}

/// How the module sees bios, see `flavours.rst`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// The kernel was patched for it.
    Tree,
    /// It is one that nobody patched.
    Stock,
}

impl Flavour {
    /// That of the module that is loaded: only one of them has this parameter.
    fn read() -> Self {
        if Path::new("/sys/module/blksnap/parameters/filters").exists() {
            Self::Stock
        } else {
            Self::Tree
        }
    }
}

/// A tracked device. Sizes are in bytes, times in seconds since 1970.
#[derive(Debug, Serialize)]
pub struct Tracker {
    pub device: PathBuf,
    pub number: String,
    pub since: Option<u64>,
    pub size: u64,
    pub block_size: u32,
    pub blocks: u32,
    pub generation: Uuid,
    /// The number of the last snapshot of the device, 0 if there was none.
    pub snap_number: u8,
    pub map_memory: Option<u64>,
    /// The snapshot that it is in.
    pub snapshot: Option<Uuid>,
}

/// A snapshot.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    pub id: Uuid,
    /// The control interface that it was made by: 1 is that of 2022, 2 that of 2025.
    pub interface: u8,
    pub state: Phase,
    pub error: Option<Failure>,
    pub created: Option<u64>,
    pub taken: Option<u64>,
    /// How long the devices were stopped by the take.
    pub stopped_ns: Option<u64>,
    pub storage: Storage,
    /// Bytes of old data that were copied from the devices.
    pub bytes_copied: Option<u64>,
    pub copies_in_flight: Option<u64>,
    /// Writes to the devices that wait for a copy.
    pub writes_held: Option<u64>,
    /// Reads of images that were overtaken by a write, and done again.
    pub reads_retried: Option<u64>,
    /// Bytes of kernel memory.
    pub memory: Option<u64>,
    /// Events that nobody has fetched.
    pub events: Option<u64>,
    /// Who made it, if that is known.
    pub owner: Option<Holder>,
    pub devices: Vec<Captured>,
}

/// Where a snapshot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Created,
    Taken,
    Corrupted,
}

/// The difference storage of a snapshot, in bytes.
#[derive(Debug, Serialize)]
pub struct Storage {
    pub size: Option<u64>,
    pub used: Option<u64>,
    /// All that was asked for so far.
    pub requested: Option<u64>,
}

/// The process that made a snapshot.
#[derive(Debug, Serialize)]
pub struct Holder {
    pub pid: u32,
    /// Whether it still lives: if not, nobody ends the snapshot, or gives it storage.
    pub alive: bool,
    /// What the paths of its difference files begin with.
    #[serde(serialize_with = "crate::output::path")]
    pub storage: PathBuf,
}

/// A device of a snapshot, and its image, which is there from the take on.
#[derive(Debug, Serialize)]
pub struct Captured {
    pub device: PathBuf,
    pub number: String,
    pub image: Option<PathBuf>,
    pub image_number: Option<String>,
    pub error: Option<Failure>,
}

/// Why something is of no use any more.
#[derive(Debug, Serialize)]
pub struct Failure {
    pub errno: i32,
    pub meaning: String,
    pub advice: &'static str,
}

impl Status {
    /// Asks the module.
    pub fn read(control: &Control) -> blksnap::Result<Self> {
        let mut snapshots = Vec::new();
        for id in control.snapshots()? {
            match control.images(id) {
                // It has just ended.
                Err(error) if error.errno() == Some(Errno::SRCH) => {}
                // It has not been taken.
                Err(error) if error.errno() == Some(Errno::NODEV) => {
                    snapshots.push(Snapshot::new(1, id, SnapshotState::read(id), None));
                }
                images => {
                    let images = Some(images?);
                    snapshots.push(Snapshot::new(1, id, SnapshotState::read(id), images));
                }
            }
        }
        let second = v2::Control::open_if_there()?;
        for id in second.map_or(Ok(Vec::new()), |second| second.snapshots())? {
            let state = SnapshotState::read(id);
            let images = Some(state.images()).filter(|images| !images.is_empty());
            // It may have just ended.
            if state.phase().is_some() {
                snapshots.push(Snapshot::new(2, id, state, images));
            }
        }
        snapshots.sort_by_key(|snapshot| snapshot.created);
        Ok(Self {
            module: control.version()?.to_string(),
            flavour: Flavour::read(),
            kernel: uname().release().to_string_lossy().into_owned(),
            trackers: control.trackers()?.iter().map(Tracker::from).collect(),
            snapshots,
        })
    }
}

impl From<&CbtInfo> for Tracker {
    fn from(info: &CbtInfo) -> Self {
        let state = TrackerState::read(info.device);
        Self {
            device: info.device.path(),
            number: info.device.to_string(),
            since: state.since,
            size: info.capacity,
            block_size: info.block_size,
            blocks: info.block_count,
            generation: info.generation.0,
            snap_number: info.number,
            map_memory: state.map_memory,
            snapshot: state.snapshot.map(|id| id.0),
        }
    }
}

impl Snapshot {
    /// Of what was read, and its images if it was taken.
    fn new(
        interface: u8,
        id: SnapshotId,
        state: SnapshotState,
        images: Option<Vec<Image>>,
    ) -> Self {
        let error = state.number("error").and_then(Failure::new);
        Self {
            id: id.0,
            interface,
            state: match (&error, &images) {
                (Some(_), _) => Phase::Corrupted,
                (None, Some(_)) => Phase::Taken,
                (None, None) => Phase::Created,
            },
            error,
            created: state.number("created"),
            taken: state.number("taken").filter(|&time| time > 0),
            stopped_ns: state.stopped_ns(),
            storage: Storage {
                size: state.storage_bytes(),
                used: state.filled_bytes(),
                requested: state.number("storage_requested"),
            },
            bytes_copied: state.copied_bytes(),
            copies_in_flight: state.number("copies_in_flight"),
            writes_held: state.number("writes_held"),
            reads_retried: state.number("reads_retried"),
            memory: state.number("memory"),
            events: state.number("events"),
            owner: Owner::of(id).map(Holder::from),
            devices: match images {
                Some(images) => images.iter().map(Captured::from).collect(),
                None => state.originals().map(Captured::from).collect(),
            },
        }
    }
}

impl From<Owner> for Holder {
    fn from(owner: Owner) -> Self {
        Self {
            pid: owner.pid,
            alive: owner.alive,
            storage: owner.storage,
        }
    }
}

impl From<&Image> for Captured {
    fn from(image: &Image) -> Self {
        Self {
            image: Some(image.path.clone()),
            image_number: Some(image.device.to_string()),
            error: ImageState::read(image)
                .error
                .and_then(|errno| Failure::new(errno.into())),
            ..image.original.into()
        }
    }
}

impl From<DevId> for Captured {
    /// Before the take.
    fn from(device: DevId) -> Self {
        Self {
            device: device.path(),
            number: device.to_string(),
            image: None,
            image_number: None,
            error: None,
        }
    }
}

impl Failure {
    /// What an error number of the module means; none if it is 0.
    fn new(errno: u64) -> Option<Self> {
        let errno = i32::try_from(errno).ok().filter(|&errno| errno > 0)?;
        let (meaning, advice) = match Errno::from_raw_os_error(errno) {
            Errno::NOSPC => (
                "the difference storage was full".into(),
                "destroy the snapshot, and take it again with more storage, or hold it for a shorter time",
            ),
            Errno::NOMEM => (
                "there was no memory for a copy".into(),
                "destroy the snapshot, and take it again when less memory is in use",
            ),
            Errno::NODEV => (
                "the device has gone".into(),
                "the images of the other devices are good; destroy the snapshot when they are not needed",
            ),
            Errno::OPNOTSUPP => (
                "there was a write of a kind that is not known".into(),
                "destroy the snapshot; please report this, with the kernel log",
            ),
            other => (
                format!("old data could not be read or stored: {other}"),
                "look for the error of the device in the kernel log; destroy the snapshot",
            ),
        };
        Some(Self {
            errno,
            meaning,
            advice,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_meaning_and_an_advice() {
        assert!(Failure::new(0).is_none());
        assert!(Failure::new(u64::MAX).is_none());
        for (errno, meaning) in [
            (28, "full"),
            (5, "(os error 5)"),
            (19, "gone"),
            (117, "not be"),
        ] {
            let failure = Failure::new(errno).unwrap();
            assert!(failure.meaning.contains(meaning), "{failure:?}");
            assert!(failure.advice.contains("destroy"), "{failure:?}");
        }
    }

    /// The documented form of what is there in any state.
    #[test]
    fn the_json_is_as_documented() {
        let device = DevId {
            major: 4095,
            minor: 1,
        };
        let json = serde_json::to_value(Captured::from(device)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"device": "/dev/block/4095:1", "number": "4095:1", "image": null,
                "image_number": null, "error": null})
        );
        assert_eq!(serde_json::to_value(Phase::Corrupted).unwrap(), "corrupted");
        let json = serde_json::to_value(Failure::new(28)).unwrap();
        assert_eq!(json["errno"], 28);
        assert!(json["meaning"].is_string() && json["advice"].is_string());
    }
}
