// SPDX-License-Identifier: GPL-2.0-or-later

//! `manifest.json`: what one backup is, and which files belong to it.
//!
//! It is written as a whole (a new file, made durable, renamed). What it does not name is not part
//! of the backup. Its last member is a checksum of all text before: a number that has become another
//! one would be as good as any.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::Format;
use crate::hardware::{self, Hardware};
use crate::machine::Machine;
use crate::private;

/// The name of the file.
pub const NAME: &str = "manifest.json";
/// What [`Manifest::format`] says.
const FORMAT: &str = "blksnap-backup";
/// How the last member begins: the checksum of the text before this.
const CHECKSUM: &str = ",\n  \"blake3\": \"";
/// What follows the checksum.
const END: &str = "\"\n}\n";
/// The newest version known here: 2 has devices that were [`Kind::Compared`].
const VERSION: u32 = 2;

/// A backup of several devices at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `blksnap-backup`.
    pub format: String,
    /// 1, or 2 if a device was compared. A greater one means that this program is too old.
    pub version: u32,
    /// Whether this is a backup, or only a part of later ones.
    pub state: State,
    /// The name of the directory.
    pub id: String,
    /// The backup that has what the incremental ones of these devices have not.
    pub base: Option<String>,
    /// The snapshot.
    pub snapshot: Uuid,
    /// The machine it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The time of day before and after the take, in nanoseconds since 1970.
    pub taken_unix_ns: [u64; 2],
    /// The devices.
    pub devices: Vec<Device>,
    /// The machine, if all of its disks were backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

/// What a directory is to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A backup.
    Complete,
    /// It was dropped; its data is to be merged into a later backup.
    Dropped,
}

/// How a device was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All of it.
    Full,
    /// What has changed.
    Incremental,
    /// What differs from the base. It was not known what has changed, so all was read.
    Compared,
}

/// The backup of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The kernel's name of it then, such as `vda`.
    pub name: String,
    /// The path it was given by.
    pub path: PathBuf,
    /// Other paths of it then, which did not depend on the order in which disks are found.
    #[serde(default)]
    pub stable: Vec<String>,
    /// What is printed on the disk.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// Bytes.
    pub size: u64,
    /// The generation of change tracking.
    pub generation: Uuid,
    /// The number of the snapshot in it.
    pub number: u8,
    /// Bytes in a tracking block.
    pub block_size: u32,
    /// Whether the base is needed.
    pub kind: Kind,
    /// Why it is full, or was compared, in words.
    pub reason: String,
    /// The name of the device in the base, if it was compared with that. Else it is the one with the
    /// same generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_device: Option<String>,
    /// The format of the file.
    pub file_format: Format,
    /// The file of its data, in the same directory.
    pub file: String,
    /// Bytes in that file, at least.
    pub file_size: u64,
    /// The file with the list of extents, in the same directory.
    pub extents: String,
    /// The blake3 checksum of that file.
    pub extents_blake3: String,
    /// Bytes of data in the extents.
    pub data_bytes: u64,
    /// Bytes of zeros in the extents.
    pub zero_bytes: u64,
    /// Where the device could not be read, in this backup or in one it is based on, and nothing was
    /// written since: the first byte, and how many, of what reads as zeros.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<[u64; 2]>,
    /// Bytes that are zeros in this backup because no file system used them, whatever the device has there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unused_bytes: u64,
    /// Where that is so, in this backup or in one it is based on, and nothing was copied since: the first byte,
    /// and how many. There may be more in it, so that the list stays short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<[u64; 2]>,
}

/// What is left out of the file.
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

impl Device {
    /// With the names of its files, which follow from its own, the format, and whether it is full: a
    /// raw file of only what changed must not be taken for an image.
    pub fn stored_as(mut self, format: Format) -> Self {
        let name = self.file_name();
        self.file_format = format;
        self.file = match (format, self.kind) {
            (Format::Raw, Kind::Incremental | Kind::Compared) => format!("{name}.raw-delta"),
            _ => format!("{name}.{format}"),
        };
        self.extents = format!("{name}.extents.jsonl");
        self
    }
}

impl Device {
    /// This device in the manifest of the base. All that looks for it does so here.
    pub fn base_in<'a>(&self, base: &'a Manifest) -> Option<&'a Self> {
        let is_base = |old: &&Self| match &self.base_device {
            Some(name) => old.name == *name,
            None => old.generation == self.generation && old.number < self.number,
        };
        let same_kind = |old: &&Self| old.size == self.size && old.file_format == self.file_format;
        let mut devices = base.devices.iter().filter(same_kind);
        devices.find(is_base)
    }

    /// The kernel's name of it, as a name of files.
    pub fn file_name(&self) -> String {
        self.name.replace('!', "_")
    }

    /// Whether two entries are of one device, as far as names tell: the kernel's one counts only where
    /// there is no better one.
    pub fn is_of_same(&self, other: &Self) -> bool {
        let stable = self.stable.iter().any(|path| other.stable.contains(path));
        let unknown = self.stable.is_empty() || other.stable.is_empty();
        self.path == other.path || stable || unknown && self.name == other.name
    }
}

/// Of an error: the manifest is whole, but not to be used here.
#[derive(Debug)]
struct Misfit(String);

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

/// The version that who reads entries must know.
fn version(devices: &[Device]) -> u32 {
    match devices.iter().any(|one| one.kind == Kind::Compared) {
        true => VERSION,
        false => 1,
    }
}

/// Compares a manifest with its checksum. Earlier versions wrote none.
fn check(text: &str) -> Result<(), Misfit> {
    let Some((text, rest)) = text.rsplit_once(CHECKSUM) else {
        return Ok(());
    };
    match rest.strip_suffix(END) == Some(&*blake3::hash(text.as_bytes()).to_hex()) {
        true => Ok(()),
        false => Err(Misfit(
            "its checksum is wrong: it is damaged, or someone has changed it; if all in it is right, replace it by what \
             `jq 'del(.blake3)'` makes of it"
                .into(),
        )),
    }
}

impl Manifest {
    /// Of a new backup.
    pub fn new(id: String, snapshot: Uuid, taken_unix_ns: [u64; 2], devices: Vec<Device>) -> Self {
        Self {
            format: FORMAT.into(),
            version: version(&devices),
            state: State::Complete,
            id,
            base: None,
            snapshot,
            host: hardware::host(),
            taken_unix_ns,
            devices,
            machine: None,
        }
    }

    /// Has other entries for its devices.
    pub fn set_devices(&mut self, devices: Vec<Device>) {
        self.version = version(&devices);
        self.devices = devices;
    }

    /// Reads the manifest of a directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow::anyhow!("there is no {}", path.display()),
            _ => anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
        })?;
        let manifest = Self::parse(&text).with_context(|| path.display().to_string())?;
        if dir.file_name().is_none_or(|name| name != &*manifest.id) {
            bail!(Misfit(format!(
                "{}: it belongs to the directory {}; rename that back",
                path.display(),
                manifest.id
            )));
        }
        Ok(manifest)
    }

    /// Whether an error of [`read`](Self::read) tells that there is no backup any more: the manifest is missing or
    /// damaged. Else there may be one, for who can read it, tries again, or is a newer program.
    pub fn is_damage(error: &anyhow::Error) -> bool {
        // What is not UTF-8 was read, and is no manifest.
        let unread = |error: &io::Error| error.kind() != ErrorKind::InvalidData;
        !error.chain().any(|cause| {
            cause.is::<Misfit>() || cause.downcast_ref::<io::Error>().is_some_and(unread)
        })
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
            bail!(Misfit(format!(
                "written by a newer blksnap (version {} of the manifest, {VERSION} is known here): use that one",
                head.version
            )));
        }
        check(text)?;
        let manifest: Self = serde_json::from_str(text).context("damaged manifest")?;
        for name in manifest.devices.iter().flat_map(|d| [&d.file, &d.extents]) {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                bail!("damaged manifest: `{name}` is no name of a file");
            }
        }
        let outside = |device: &Device| {
            let inside = |&[start, length]: &[u64; 2]| {
                start
                    .checked_add(length)
                    .is_some_and(|end| end <= device.size)
            };
            !device.lost.iter().chain(&device.unused).all(inside)
        };
        if manifest.devices.iter().any(outside) {
            bail!("damaged manifest: what is lost or unused is outside of the device");
        }
        // Names are of digits in a fixed order, so this also says that a chain has an end.
        if manifest
            .base
            .as_ref()
            .is_some_and(|base| *base >= manifest.id)
        {
            bail!("damaged manifest: its base is not older than itself");
        }
        Ok(manifest)
    }

    /// Writes it to a directory: either all of it, or nothing, is there after a crash.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        let new = dir.join(format!(".{NAME}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = private::replace(&new)?;
            file.write_all(self.text()?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// What is written.
    fn text(&self) -> serde_json::Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        // For the checksum to be one more member.
        text.truncate(text.trim_end_matches('}').trim_end().len());
        let hash = blake3::hash(text.as_bytes());
        Ok(format!("{text}{CHECKSUM}{hash}{END}"))
    }

    /// The device that a person means by a name or path.
    /// The path it was given by comes first, then the stable ones, then the kernel's name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        fn short(name: &str) -> &str {
            name.strip_prefix("/dev/").unwrap_or(name)
        }
        let find = |is: &dyn Fn(&Device) -> bool| self.devices.iter().find(|device| is(device));
        let given = |device: &Device| device.path.to_str().map(short) == Some(short(name));
        let stable = |device: &Device| device.stable.iter().any(|one| short(one) == short(name));
        let kernel = |device: &Device| device.name == short(name);
        find(&given)
            .or_else(|| find(&stable))
            .or_else(|| find(&kernel))
    }

    /// The names of the devices, for people.
    pub fn names(&self) -> String {
        let names = self.devices.iter().map(|device| {
            let usual = Path::new("/dev").join(device.name.replace('!', "/"));
            let given = (device.path != usual).then(|| device.path.display().to_string());
            let stable = device.stable.iter().cloned();
            let others: Vec<_> = given.into_iter().chain(stable).collect();
            match others.is_empty() {
                true => device.name.clone(),
                false => format!("{} ({})", device.name, others.join(", ")),
            }
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether any device needs the base, or none; and if one was compared, that.
    pub fn kind(&self) -> Kind {
        let compared = self.devices.iter().any(|one| one.kind == Kind::Compared);
        match self.base {
            Some(_) if compared => Kind::Compared,
            Some(_) => Kind::Incremental,
            None => Kind::Full,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
            Self::Compared => "compared",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Disk;
    use crate::testing::device;

    fn example() -> Manifest {
        let id = "20261124T201629Z-00000001";
        Manifest::new(id.into(), Uuid::from_u128(1), [5, 6], vec![device("vda")])
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join(example().id);
        fs::create_dir(&dir).unwrap();
        let error = Manifest::read(&dir).unwrap_err();
        assert!(error.to_string().contains("there is no"), "{error:#}");
        example().write(&dir).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), example());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let other = dir.with_file_name("other");
        fs::rename(&dir, &other).unwrap();
        let error = Manifest::read(&other).unwrap_err();
        assert!(error.to_string().contains("rename"), "{error:#}");
    }

    #[test]
    fn one_that_has_changed_is_refused() {
        let text = example().text().unwrap();
        assert_eq!(Manifest::parse(&text).unwrap(), example());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let hash = value["blake3"].as_str().unwrap();
        // Each byte in turn: it is refused, or means the same.
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(other) = String::from_utf8(bytes) else {
                continue;
            };
            if let Ok(found) = Manifest::parse(&other) {
                assert_eq!(found, example(), "{other}");
            }
        }
        let number = text.replacen("\"number\": 3", "\"number\": 2", 1);
        assert_ne!(number, text);
        let error = Manifest::parse(&number).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error:#}");
        assert!(!Manifest::is_damage(&error), "a person may know better");
        // As it was before there was one, and as the message says.
        let without = number.replace(&format!(",\n  \"blake3\": \"{hash}\""), "");
        assert_eq!(Manifest::parse(&without).unwrap().devices[0].number, 2);
    }

    #[test]
    fn a_machine_is_an_addition() {
        let disk = Disk {
            name: "vda".into(),
            model: None,
            sector_size: Some(4096),
            table: Some("label: gpt\n".into()),
        };
        let machine = Machine {
            firmware: Some("uefi".into()),
            disks: vec![disk],
            ..Machine::default()
        };
        let with = Manifest {
            machine: Some(machine),
            ..example()
        };
        assert_eq!(with.version, 1, "who does not know it reads the right data");
        let text = serde_json::to_string(&with).unwrap();
        assert_eq!(Manifest::parse(&text).unwrap(), with);
        // What others may add later, and what they may not have known.
        let newer = text.replace(r#""firmware""#, r#""colour":"grey","firmware""#);
        assert_eq!(Manifest::parse(&newer).unwrap(), with);
        let other = text.replace(r#","sector_size":4096"#, "");
        assert_ne!(other, text);
        let machine = Manifest::parse(&other).unwrap().machine.unwrap();
        assert_eq!(machine.disk("vda").unwrap().sector_size, None);
        assert!(
            !serde_json::to_string(&example())
                .unwrap()
                .contains("machine")
        );
    }

    #[test]
    fn a_device_is_found_by_each_of_its_names() {
        let mut manifest = example();
        manifest.devices.push(Device {
            path: "/dev/mapper/home".into(),
            stable: vec!["/dev/disk/by-id/dm-name-home".into(), "/dev/vda".into()],
            ..device("dm-3")
        });
        let find = |name: &str| manifest.device(name).map(|device| device.name.as_str());
        for (name, found) in [
            ("vda", Some("vda")),
            ("/dev/vda", Some("vda")),
            ("dm-3", Some("dm-3")),
            ("/dev/dm-3", Some("dm-3")),
            ("/dev/mapper/home", Some("dm-3")),
            ("mapper/home", Some("dm-3")),
            ("/dev/disk/by-id/dm-name-home", Some("dm-3")),
            ("home", None),
            ("vd", None),
            ("", None),
        ] {
            assert_eq!(find(name), found, "{name}");
        }
        assert_eq!(
            manifest.names(),
            "vda, dm-3 (/dev/mapper/home, /dev/disk/by-id/dm-name-home, /dev/vda)"
        );
        // Older manifests have no such names.
        let text = serde_json::to_string(&example()).unwrap();
        let old = text.replace(r#""stable":[],"#, "");
        assert_ne!(old, text);
        assert_eq!(Manifest::parse(&old).unwrap(), example());
    }

    #[test]
    fn the_device_in_the_base_is_found() {
        let base = Manifest {
            devices: vec![device("vda"), device("vdb")],
            ..example()
        };
        let name = |entry: Device| entry.base_in(&base).map(|found| found.name.clone());
        let next = Device {
            number: 4,
            kind: Kind::Incremental,
            ..device("vdz")
        };
        assert_eq!(name(next.clone()).as_deref(), Some("vda"));
        let generation = Uuid::from_u128(9);
        let compared = Device {
            generation,
            number: 1,
            kind: Kind::Compared,
            base_device: Some("vdb".into()),
            ..device("vdz")
        };
        assert_eq!(name(compared.clone()).as_deref(), Some("vdb"));
        for other in [
            Device {
                number: 3,
                ..next.clone()
            },
            Device { generation, ..next },
            Device {
                size: 8192,
                ..compared.clone()
            },
            Device {
                file_format: Format::Qcow2,
                ..compared.clone()
            },
            Device {
                base_device: Some("vdz".into()),
                ..compared.clone()
            },
        ] {
            assert_eq!(name(other), None);
        }
        // Who does not know of comparisons says so, and does not look for the generation.
        assert_eq!(example().version, 1);
        assert_eq!(
            Manifest::new(String::new(), Uuid::nil(), [0, 0], vec![compared]).version,
            2
        );
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let text = serde_json::to_string(&example()).unwrap();
        for (from, to, reason) in [
            ("\"version\":1", "\"version\":3,\"new\":0", "newer blksnap"),
            (FORMAT, "tar", "but of `tar`"),
            ("\"complete\"", "\"perhaps\"", "damaged"),
            ("vda.raw", "../../etc/passwd", "no name of a file"),
            ("vda.extents", ".", "no name of a file"),
            (
                "\"zero_bytes\":0",
                "\"zero_bytes\":0,\"lost\":[[4096,1]]",
                "outside of the device",
            ),
            (
                "\"zero_bytes\":0",
                "\"zero_bytes\":0,\"unused\":[[4096,1]]",
                "outside of the device",
            ),
            ("null", "\"20261124T201629Z-00000001\"", "not older"),
            ("{", "", "not the manifest"),
        ] {
            let error = Manifest::parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
