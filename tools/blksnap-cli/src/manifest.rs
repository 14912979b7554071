// SPDX-License-Identifier: GPL-2.0-or-later

//! `manifest.json`: what a directory of backups holds.
//!
//! It is replaced as a whole (a new file, made durable, renamed), and says which files belong to
//! the backup. What it does not name is not part of the backup.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The name of the file.
pub const NAME: &str = "manifest.json";
/// What [`Manifest::format`] says.
const FORMAT: &str = "blksnap-backup";
/// The newest version known here.
const VERSION: u32 = 1;

/// A backup of several devices at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `blksnap-backup`.
    pub format: String,
    /// 1. A greater one means that this program is too old.
    pub version: u32,
    /// Whether the files are whole.
    pub state: State,
    /// The snapshot.
    pub snapshot: Uuid,
    /// The time of day before and after the take, in nanoseconds since 1970.
    pub taken_unix_ns: [u64; 2],
    /// The devices.
    pub devices: Vec<Device>,
}

/// Whether the files of a backup are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// They are as the manifest says.
    Complete,
    /// They were being changed in place: they are neither the old nor the new backup.
    Updating,
}

/// The backup of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The kernel's name of it then, such as `vda`.
    pub name: String,
    /// The path it was given by.
    pub path: PathBuf,
    /// The file of its bytes, in the same directory.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// The generation of change tracking.
    pub generation: Uuid,
    /// The number of the snapshot in it.
    pub number: u8,
    /// Bytes in a tracking block.
    pub block_size: u32,
}

impl Manifest {
    /// A whole backup.
    pub fn new(snapshot: Uuid, taken_unix_ns: [u64; 2], devices: Vec<Device>) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            state: State::Complete,
            snapshot,
            taken_unix_ns,
            devices,
        }
    }

    /// Reads the manifest of a directory; `None` if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Self::parse(&text)
            .with_context(|| path.display().to_string())
            .map(Some)
    }

    /// Understands the text of a manifest.
    fn parse(text: &str) -> Result<Self> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_str(text).context("not the manifest of a backup")?;
        if head.format != FORMAT {
            bail!(
                "not the manifest of a blksnap backup, but of `{}`",
                head.format
            );
        }
        if head.version > VERSION {
            bail!(
                "written by a newer blksnap (version {} of the manifest, {VERSION} is known here): use that one",
                head.version
            );
        }
        let manifest: Self = serde_json::from_str(text).context("damaged manifest")?;
        for device in &manifest.devices {
            if device.file.is_empty() || device.file.contains('/') || device.file.starts_with('.') {
                bail!("damaged manifest: `{}` is no name of a file", device.file);
            }
        }
        Ok(manifest)
    }

    /// Writes it to a directory: either all of it, or nothing, is there after a crash.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        let new = dir.join(format!("{NAME}.partial"));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The backup of the device with this path.
    pub fn device(&self, path: &Path) -> Option<&Device> {
        self.devices.iter().find(|device| device.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        Manifest::new(
            Uuid::from_u128(1),
            [5, 6],
            vec![Device {
                name: "vda".into(),
                path: "/dev/vda".into(),
                file: "vda-00000000.raw".into(),
                size: 4096,
                generation: Uuid::from_u128(2),
                number: 3,
                block_size: 65536,
            }],
        )
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        example().write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(example()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let text = serde_json::to_string(&example()).unwrap();
        for (from, to, reason) in [
            ("\"version\":1", "\"version\":2,\"new\":0", "newer blksnap"),
            (FORMAT, "tar", "but of `tar`"),
            ("\"complete\"", "\"perhaps\"", "damaged"),
            ("vda-00000000.raw", "../../etc/passwd", "no name of a file"),
            ("{", "", "not the manifest"),
        ] {
            let error = Manifest::parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
