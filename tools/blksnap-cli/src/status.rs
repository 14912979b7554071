// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap status`: what is tracked, and which snapshots there are.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use blksnap::state::SnapshotState;
use blksnap::{CbtInfo, Control, SnapshotId};
use rustix::io::Errno;
use serde::Serialize;
use uuid::Uuid;

use crate::args;
use crate::output;
use crate::size::Size;

/// Shows it.
pub fn run(args: &args::Status) -> Result<()> {
    let status = Status::read(&Control::open()?)?;
    if args.json {
        output::print_json(&status)
    } else {
        output::print(status.to_string().trim_end())
    }
}

/// All there is.
#[derive(Debug, Serialize)]
struct Status {
    version: String,
    trackers: Vec<Tracker>,
    snapshots: Vec<Snapshot>,
}

/// A tracked device.
#[derive(Debug, Serialize)]
struct Tracker {
    device: PathBuf,
    number: String,
    size: u64,
    block_size: u32,
    blocks: u32,
    generation: Uuid,
    snapshots_taken: u8,
}

/// A snapshot.
#[derive(Debug, Serialize)]
struct Snapshot {
    id: Uuid,
    taken: bool,
    images: Vec<Image>,
    /// What the module shows of it.
    state: BTreeMap<String, String>,
    /// The values a script wants most, in bytes and nanoseconds.
    copied_to_storage: Option<u64>,
    storage_bytes: Option<u64>,
    stopped_ns: Option<u64>,
}

/// An image.
#[derive(Debug, Serialize)]
struct Image {
    device: PathBuf,
    image: PathBuf,
}

impl Status {
    /// Asks the module.
    fn read(control: &Control) -> Result<Self> {
        let mut snapshots = Vec::new();
        for id in control.snapshots()? {
            match Snapshot::read(control, id) {
                // It has just ended.
                Err(error) if error.errno() == Some(Errno::SRCH) => {}
                read => snapshots.push(read?),
            }
        }
        Ok(Self {
            version: control.version()?.to_string(),
            trackers: control.trackers()?.iter().map(Tracker::from).collect(),
            snapshots,
        })
    }
}

impl From<&CbtInfo> for Tracker {
    fn from(info: &CbtInfo) -> Self {
        Self {
            device: info.device.path(),
            number: info.device.to_string(),
            size: info.capacity,
            block_size: info.block_size,
            blocks: info.block_count,
            generation: info.generation.0,
            snapshots_taken: info.number,
        }
    }
}

impl Snapshot {
    fn read(control: &Control, id: SnapshotId) -> blksnap::Result<Self> {
        let images = match control.images(id) {
            Err(error) if error.errno() == Some(Errno::NODEV) => None,
            read => Some(read?),
        };
        let state = SnapshotState::read(id);
        Ok(Self {
            id: id.0,
            taken: images.is_some(),
            images: images
                .unwrap_or_default()
                .into_iter()
                .map(|image| Image {
                    device: image.original.path(),
                    image: image.path,
                })
                .collect(),
            copied_to_storage: state.copied_bytes(),
            storage_bytes: state.storage_bytes(),
            stopped_ns: state.stopped_ns(),
            state: state
                .iter()
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect(),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "module version {}", self.version)?;
        if self.trackers.is_empty() {
            writeln!(f, "no device is tracked")?;
        } else {
            let head = ["DEVICE", "SIZE", "BLOCK", "TAKEN", "GENERATION"];
            writeln!(
                f,
                "{:<16} {:>10} {:>10} {:>5}  {}",
                head[0], head[1], head[2], head[3], head[4]
            )?;
        }
        for tracker in &self.trackers {
            writeln!(
                f,
                "{:<16} {:>10} {:>10} {:>5}  {}",
                tracker.device.display().to_string(),
                Size(tracker.size),
                Size(tracker.block_size.into()),
                tracker.snapshots_taken,
                tracker.generation
            )?;
        }
        for snapshot in &self.snapshots {
            let phase = match snapshot.state.get("state").map(String::as_str) {
                Some("corrupted") => "lost",
                _ if snapshot.taken => "taken",
                _ => "not taken yet",
            };
            write!(f, "snapshot {}, {phase}", snapshot.id)?;
            if let (Some(copied), Some(given)) =
                (snapshot.copied_to_storage, snapshot.storage_bytes)
            {
                write!(f, ", storage: {} used of {}", Size(copied), Size(given))?;
            }
            f.write_char('\n')?;
            for image in &snapshot.images {
                writeln!(
                    f,
                    "  {} of {}",
                    image.image.display(),
                    image.device.display()
                )?;
            }
        }
        Ok(())
    }
}
