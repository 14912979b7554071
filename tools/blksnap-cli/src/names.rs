// SPDX-License-Identifier: GPL-2.0-or-later

//! Block devices as people name them: by a path or a link to one, the kernel's name (`vda1`), the
//! number (`254:1`), a tag as in fstab (`UUID=…`), or the place where the device is mounted.
//!
//! A mount point stands for a device only if all of the file system is on that one: of a btrfs over
//! two disks, or an xfs with its log elsewhere, half would be captured.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use blksnap::{DevId, Error};

use crate::mounts::{self, Mount};

/// The tags of fstab, and where udev has links for them.
const TAGS: [(&str, &str); 4] = [
    ("UUID=", "/dev/disk/by-uuid"),
    ("LABEL=", "/dev/disk/by-label"),
    ("PARTUUID=", "/dev/disk/by-partuuid"),
    ("PARTLABEL=", "/dev/disk/by-partlabel"),
];

/// The block device that is meant.
pub fn device(name: impl AsRef<Path>) -> Result<DevId> {
    let name = name.as_ref();
    let path = match find(name) {
        Ok(id) => return Ok(id),
        Err(path) => path,
    };
    let meta = fs::metadata(&path).with_context(|| {
        format!(
            "there is no device `{}` (name it by its path, as vda1, 254:1, UUID=…, LABEL=…, or by where it is mounted)",
            name.display()
        )
    })?;
    if !meta.is_dir() {
        return Err(Error::NotBlockDevice(path).into());
    }
    let path = path
        .canonicalize()
        .with_context(|| format!("cannot find out what {} is", path.display()))?;
    mounted(&path, &mounts::table()?)
}

/// The block device that is meant, where the name may also be that of a file: `None` then.
pub fn device_or_file(name: &Path) -> Result<Option<DevId>> {
    match find(name) {
        Ok(id) => Ok(Some(id)),
        Err(path) if path != name => device(name).map(Some),
        // A directory that is no mount point is no device, whatever else it is.
        Err(path) if path.is_dir() => Ok(device(name).ok()),
        Err(_) => Ok(None),
    }
}

/// The block device of a name that is not the place where it is mounted, or the path to look at.
fn find(name: &Path) -> Result<DevId, PathBuf> {
    let path = tagged(name).unwrap_or_else(|| name.to_owned());
    if let Some(id) = at(&path) {
        return Ok(id);
    }
    // `./vda` is a file here, and nothing else.
    if path.is_absolute() || path.starts_with(".") || path.starts_with("..") {
        return Err(path);
    }
    if let Some(id) = at(&Path::new("/dev").join(&path)) {
        return Ok(id);
    }
    // A file system that nobody looks for devices in may have no /dev.
    let number = fs::read_to_string(Path::new("/sys/class/block").join(&path).join("dev"));
    if let Some(id) = number.ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(id);
    }
    let number = path.to_str().and_then(|name| name.parse().ok());
    number.ok_or(path)
}

/// The devices that are meant.
pub fn devices(names: &[PathBuf]) -> Result<Vec<DevId>> {
    names.iter().map(device).collect()
}

/// Paths of a device that do not depend on the order in which disks are found: by-id, and those of
/// the device mapper.
pub fn stable(id: DevId) -> Vec<String> {
    let mut paths = links_to(Path::new("/dev/disk/by-id"), id);
    if let Ok(name) = fs::read_to_string(id.sysfs().join("dm/name")) {
        paths.push(format!("/dev/mapper/{}", name.trim()));
    }
    paths
}

/// What leads to a device in a directory of links.
fn links_to(directory: &Path, id: DevId) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| at(path) == Some(id))
        .filter_map(|path| path.into_os_string().into_string().ok())
        .collect();
    paths.sort();
    paths
}

/// Whether a name is a tag, as in fstab.
pub fn is_tag(name: &str) -> bool {
    TAGS.iter().any(|(tag, _)| name.starts_with(tag))
}

/// The path that a tag stands for.
fn tagged(name: &Path) -> Option<PathBuf> {
    let name = name.to_str()?;
    TAGS.iter().find_map(|(tag, directory)| {
        let value = name.strip_prefix(tag)?.trim_matches('"');
        Some(Path::new(directory).join(link_name(value)))
    })
}

/// How udev writes a tag in the name of a link: what may confuse a shell is escaped.
fn link_name(value: &str) -> String {
    let mut name = String::new();
    for c in value.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
            name.push(c);
        } else {
            name.push_str(&format!("\\x{:02x}", u32::from(c)));
        }
    }
    name
}

/// The block device whose node a path leads to.
fn at(path: &Path) -> Option<DevId> {
    let meta = fs::metadata(path).ok()?;
    let is_device = meta.file_type().is_block_device();
    is_device.then(|| DevId::from_raw(meta.rdev()))
}

/// The device that is mounted on a directory.
fn mounted(directory: &Path, table: &[Mount]) -> Result<DevId> {
    // The last one covers those before.
    if let Some(mount) = table.iter().rfind(|mount| mount.point == directory) {
        return sole_device(mount);
    }
    let around = table.iter().rev();
    let around = around
        .filter(|mount| directory.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len());
    match around {
        Some(mount) => bail!(
            "{} is a directory in the file system on {}: name {0} only if something is mounted there, or {1} to mean all of it",
            directory.display(),
            mount.point.display()
        ),
        None => bail!("nothing is mounted on {}", directory.display()),
    }
}

/// The device of a file system, if it is on one.
fn sole_device(mount: &Mount) -> Result<DevId> {
    let point = mount.point.display();
    if mount.kind == "btrfs" {
        let first = at(Path::new(&mount.source))
            .with_context(|| format!("cannot find the device {} of {point}", mount.source))?;
        let all = btrfs_devices(Path::new("/sys/fs/btrfs"), first)
            .with_context(|| format!("cannot find out which devices the btrfs on {point} has"))?;
        if let [_] = &all[..] {
            return Ok(first);
        }
        bail!(
            "the btrfs on {point} has {} devices: name each of them: {}",
            all.len(),
            all.join(" ")
        );
    }
    if mount.device.major == 0 {
        let what = match &*mount.kind {
            "tmpfs" | "ramfs" => "is in memory",
            "overlay" => "lies over directories of other file systems: name one of those",
            "zfs" | "bcachefs" => "spreads over devices of its own: name those",
            _ => "is not on a block device of this machine",
        };
        bail!("{point}: a file system of type {} {what}", mount.kind);
    }
    for option in mount.options.split(',') {
        if let Some((_, other)) = option
            .split_once('=')
            .filter(|(name, _)| ["logdev", "rtdev", "journal_path"].contains(name))
        {
            bail!(
                "the {} on {point} is on two devices: name each of them: {} {other}",
                mount.kind,
                mount.source
            );
        }
    }
    Ok(mount.device)
}

/// The devices that the file system of a directory is on; none if it is on none, or cannot be looked
/// at.
pub fn devices_under(directory: &Path) -> Vec<DevId> {
    let Ok(meta) = directory.metadata() else {
        return Vec::new();
    };
    let number = DevId::from_raw(meta.dev());
    if number.major != 0 {
        return vec![number];
    }
    // A subvolume of btrfs has a number of its own.
    let (Ok(path), Ok(table)) = (directory.canonicalize(), mounts::table()) else {
        return Vec::new();
    };
    let around = table.iter();
    let around = around
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len());
    around.map(devices_of).unwrap_or_default()
}

/// The devices of a mounted file system.
pub fn devices_of(mount: &Mount) -> Vec<DevId> {
    if mount.kind != "btrfs" {
        let one = (mount.device.major != 0).then_some(mount.device);
        return one.into_iter().collect();
    }
    let Some(first) = at(Path::new(&mount.source)) else {
        return Vec::new();
    };
    let all = btrfs_devices(Path::new("/sys/fs/btrfs"), first);
    let all = all.into_iter().flatten();
    all.filter_map(|name| device(name).ok()).collect()
}

/// The kernel's names of all devices of the btrfs that one is a device of, by what the kernel shows
/// in a directory.
fn btrfs_devices(shown: &Path, one: DevId) -> Option<Vec<String>> {
    let names = |dir: PathBuf| -> Vec<String> {
        let entries = fs::read_dir(dir.join("devices")).into_iter().flatten();
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    };
    let one = one.kernel_name()?;
    let mut file_systems = fs::read_dir(shown).ok()?.flatten();
    file_systems.find_map(|entry| {
        let names = names(entry.path());
        names.contains(&one).then_some(names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:40 / /tmp rw - tmpfs tmpfs rw
25 22 0:41 / /over rw - overlay overlay rw,lowerdir=/a
26 22 254:16 / /mnt/my\\040data rw - xfs /dev/vdb rw,attr2
27 22 254:32 / /mnt/log rw - xfs /dev/vdc rw,attr2,logdev=/dev/vdd
28 22 254:48 / /hidden rw - ext4 /dev/vdd rw
29 22 254:64 /sub /hidden rw - ext4 /dev/vde rw
30 22 0:50 / /srv rw - nfs4 server:/srv rw
";

    fn find(directory: &str) -> Result<DevId, String> {
        let table: Vec<_> = TABLE.lines().filter_map(Mount::parse).collect();
        mounted(Path::new(directory), &table).map_err(|error| error.to_string())
    }

    #[test]
    fn a_mount_point_is_its_device() {
        let id = |minor| DevId { major: 254, minor };
        assert_eq!(find("/"), Ok(id(0)));
        assert_eq!(find("/mnt/my data"), Ok(id(16)));
        assert_eq!(find("/hidden"), Ok(id(64)), "the last mount counts");
    }

    #[test]
    fn what_is_not_one_device_is_refused_and_why() {
        for (directory, why) in [
            ("/tmp", "in memory"),
            ("/over", "other file systems"),
            ("/srv", "not on a block device"),
            (
                "/mnt/log",
                "two devices: name each of them: /dev/vdc /dev/vdd",
            ),
            ("/home", "in the file system on /:"),
            ("/mnt/my data/x", "in the file system on /mnt/my data:"),
        ] {
            let error = find(directory).unwrap_err();
            assert!(error.contains(why), "{directory}: {error}");
        }
    }

    #[test]
    fn tags_are_links_of_udev() {
        let path = |name: &str| tagged(Path::new(name));
        assert_eq!(
            path("UUID=12-34").as_deref(),
            Some(Path::new("/dev/disk/by-uuid/12-34"))
        );
        assert_eq!(
            path("LABEL=\"my data/x\"").as_deref(),
            Some(Path::new("/dev/disk/by-label/my\\x20data\\x2fx"))
        );
        assert_eq!(path("/dev/vda"), None);
        assert_eq!(path("vda"), None);
    }

    #[test]
    fn numbers_and_nonsense() {
        let id = DevId {
            major: 4095,
            minor: 7,
        };
        assert_eq!(device("4095:7").ok(), Some(id));
        for (name, why) in [
            ("/dev/nonexistent", "No such file"),
            ("nonexistent", "there is no device"),
            ("UUID=nonexistent", "there is no device `UUID="),
            ("/proc/self/exe", "not a block device"),
            ("/proc", "type proc is not on a block device"),
            ("/proc/self", "in the file system on /proc"),
            ("", "there is no device"),
        ] {
            let error = format!("{:#}", device(name).unwrap_err());
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn what_may_be_a_file_is_told_from_devices() {
        let find = |name: &str| device_or_file(Path::new(name));
        let id = DevId { major: 7, minor: 9 };
        assert_eq!(find("7:9").unwrap(), Some(id));
        for file in [
            "7:9.img",
            "./7:9",
            "../7:9",
            "/7:9",
            "x",
            "/proc/self",
            "/etc/passwd",
        ] {
            assert_eq!(find(file).unwrap(), None, "{file}");
        }
        for (name, why) in [
            ("UUID=nonexistent", "there is no device `UUID="),
            ("LABEL=x", "there is no device `LABEL=x`"),
        ] {
            let error = format!("{:#}", find(name).unwrap_err());
            assert!(error.contains(why), "{name}: {error}");
        }
        // A real one, under its names.
        let Some(entry) = fs::read_dir("/sys/class/block").unwrap().flatten().next() else {
            eprintln!("no block device here");
            return;
        };
        let number = fs::read_to_string(entry.path().join("dev")).unwrap();
        let id: DevId = number.trim().parse().unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(find(&name).unwrap(), Some(id));
        assert_eq!(find(&format!("./{name}")).unwrap(), None);
    }

    #[test]
    fn all_devices_of_a_btrfs_are_found() {
        let shown = tempfile::tempdir().unwrap();
        // Any real device will do: its name is looked up.
        let entry = fs::read_dir("/sys/dev/block").unwrap().flatten().next();
        let Some(number) = entry.map(|entry| entry.file_name().into_string().unwrap()) else {
            eprintln!("no block device here");
            return;
        };
        let id: DevId = number.parse().unwrap();
        let name = id.kernel_name().unwrap();
        let make = |path: &str| fs::create_dir_all(shown.path().join(path)).unwrap();
        make("features");
        make("one/devices/other");
        assert_eq!(btrfs_devices(shown.path(), id), None);
        make(&format!("two/devices/{name}"));
        make("two/devices/~second");
        assert_eq!(
            btrfs_devices(shown.path(), id),
            Some(vec![name, "~second".to_owned()])
        );
    }
}
