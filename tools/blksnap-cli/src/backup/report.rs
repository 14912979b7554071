// SPDX-License-Identifier: GPL-2.0-or-later

//! What a backup has done, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use blksnap::Taken;
use blksnap::session::Moment;
use blksnap_backup::Kind;
use serde::Serialize;
use uuid::Uuid;

use super::all::LeftOut;
use super::unix_ns;
use crate::size::Size;

/// What a backup has done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The directory of backups.
    #[serde(serialize_with = "crate::output::path")]
    pub directory: PathBuf,
    /// The name of this one.
    pub backup: String,
    /// The one it is based on.
    pub base: Option<String>,
    /// The snapshot it was made from.
    pub snapshot: Uuid,
    /// When that was taken.
    pub taken: TakenReport,
    /// The devices.
    pub devices: Vec<DeviceReport>,
    /// What `--all` did not take, and why.
    pub left_out: Vec<LeftOut>,
    /// Bytes of difference storage given.
    pub storage_bytes: u64,
    /// In how many portions: one before the take, the others because the module asked for them.
    pub storage_portions: usize,
    /// Bytes of it that were allocated before the take, if they had to be.
    pub storage_reserved: Option<u64>,
    /// Bytes of old data copied to it, if the module tells.
    pub copied_to_storage: Option<u64>,
    /// How long the devices were stopped by the take, in nanoseconds, if the module tells.
    pub stopped_ns: Option<u64>,
    /// All that the module tells of the snapshot, just before its end.
    pub state: BTreeMap<String, String>,
    /// How long all of it took.
    pub seconds: f64,
}

/// The one instant lies between these.
#[derive(Debug, Serialize)]
pub struct TakenReport {
    before: MomentReport,
    after: MomentReport,
}

/// A point in time on two clocks.
#[derive(Debug, Serialize)]
pub struct MomentReport {
    /// CLOCK_MONOTONIC.
    monotonic_ns: i64,
    /// Since 1970.
    unix_ns: u64,
}

impl From<Taken> for TakenReport {
    fn from(taken: Taken) -> Self {
        let report = |moment: Moment| MomentReport {
            monotonic_ns: moment.monotonic_ns,
            unix_ns: unix_ns(moment.wall),
        };
        Self {
            before: report(taken.before),
            after: report(taken.after),
        }
    }
}

/// What was done with one device.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    /// The device.
    pub device: PathBuf,
    /// Its image.
    pub image: PathBuf,
    /// Its file in the backup.
    #[serde(serialize_with = "crate::output::path")]
    pub file: PathBuf,
    /// How it was copied.
    pub kind: Kind,
    /// Why it was copied in full, or compared.
    pub reason: String,
    /// The number of the snapshot since which changes were copied.
    pub since: Option<u8>,
    /// The number of this snapshot.
    pub number: u8,
    /// The generation of change tracking.
    pub generation: Uuid,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes in a tracking block.
    pub block_size: u32,
    /// Tracking blocks.
    pub blocks: u64,
    /// Those copied.
    pub blocks_changed: u64,
    /// Bytes read from the image.
    pub bytes_copied: u64,
    /// Bytes written to the backup; zeros become holes.
    pub bytes_written: u64,
    /// How long the copy took.
    pub seconds: f64,
    /// Whether all of the backup was found equal to the image.
    pub verified: bool,
    /// Bytes of `bytes_copied` that were copied again, because the image had changed meanwhile:
    /// where difference storage was added, or the image was written to.
    pub bytes_copied_again: u64,
    /// Bytes that were not read and are zeros in the backup, as no file system used them.
    pub bytes_unused: u64,
    /// Why all was read, as far as it had to be, whether it is used or not.
    pub unused_unknown: Option<String>,
    /// Where the device could not be read, here or in the base, and nothing was written since: the
    /// first byte, and how many.
    pub lost: Vec<[u64; 2]>,
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, ", self.device.display(), Size(self.size))?;
        match (self.kind, self.since) {
            (_, Some(since)) => write!(
                f,
                "incremental since snapshot {since}: {} of {} blocks of {} changed, {} copied",
                self.blocks_changed,
                self.blocks,
                Size(self.block_size.into()),
                Size(self.bytes_copied)
            )?,
            (Kind::Compared, None) => write!(
                f,
                "compared with the last backup ({}): {} of {} blocks of {} differ, {} stored",
                self.reason,
                self.blocks_changed,
                self.blocks,
                Size(self.block_size.into()),
                Size(self.bytes_written)
            )?,
            (_, None) => write!(
                f,
                "full ({}): {} copied, {} stored",
                self.reason,
                Size(self.bytes_copied),
                Size(self.bytes_written)
            )?,
        }
        if self.bytes_unused > 0 {
            write!(f, ", {} unused", Size(self.bytes_unused))?;
        }
        write!(f, " in {:.2} s", self.seconds)?;
        f.write_str(if self.verified {
            ", compared and equal"
        } else {
            ""
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.directory.join(&self.backup);
        for device in &self.devices {
            writeln!(f, "{device}; {}", dir.join(&device.file).display())?;
            if let Some(why) = &device.unused_unknown {
                let path = device.device.display();
                writeln!(f, "{path}: unused blocks are read, too: {why}")?;
            }
            for [start, length] in &device.lost {
                writeln!(
                    f,
                    "{}: {} sectors from sector {} on cannot be read: lost, and zeros in the backup",
                    device.device.display(),
                    length.div_ceil(512),
                    start / 512
                )?;
            }
        }
        if let Some(copied) = self.copied_to_storage {
            write!(f, "difference storage: {} used of ", Size(copied))?;
        } else {
            write!(f, "difference storage: ")?;
        }
        let portions = match self.storage_portions {
            1 => "1 portion".to_owned(),
            count => format!("{count} portions"),
        };
        writeln!(f, "{} given in {portions}", Size(self.storage_bytes))?;
        if let Some(stopped) = self.stopped_ns {
            writeln!(f, "devices stopped for {:.3} ms", stopped as f64 / 1e6)?;
        }
        writeln!(f, "done in {:.1} s", self.seconds)
    }
}
