// SPDX-License-Identifier: GPL-2.0-or-later

//! File systems that are not on a captured device itself but above it: on its partitions, on LVM, LUKS
//! or md, on loop devices.
//!
//! The module freezes what is mounted from the captured device. Of what is above, it knows nothing: a
//! file that was closed just before the take may be in the page cache only. So these file systems are
//! written back, and frozen (`FIFREEZE`) for the time of the take. (Those on partitions of a captured
//! disk the module freezes as well: freezing twice does no harm, and who cannot be frozen is named.)
//!
//! ```text
//! write all back → start the watchdog → freeze, the uppermost first → take → thaw, in reverse
//! ```
//!
//! Between the first freeze and the last thaw nothing is written, not even a message: standard error
//! may be a file on what is frozen. The thread that gives storage allocates none then, as storage on or
//! above what is captured was allocated before. The [watchdog] thaws if this process dies, or hangs.

pub mod watchdog;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result};
use blksnap::{DevId, Relation, Session, Taken};
use rustix::fs::{OFlags, syncfs};
use rustix::io::Errno;
use rustix::ioctl::{self, NoArg, Opcode};

use crate::mounts::{self, Mount};
use crate::names;
use crate::output;
use crate::signals::Signals;
use watchdog::Watchdog;

/// Takes the snapshot, with all that is above its devices frozen, and names what could not be.
pub fn take(session: &mut Session, devices: &[DevId], signals: &Signals) -> Result<Taken> {
    let mut remarks = Vec::new();
    // The module freezes what is on a captured device itself.
    let by_module = |one: &Above| one.devices.iter().any(|device| devices.contains(device));
    let found = mounts::table().map(|table| {
        let mut found = find(&table, devices);
        found.retain(|one| !by_module(one));
        found
    });
    let found = found.unwrap_or_else(|error| {
        remarks.push(format!(
            "what is mounted above the devices is not known: {error:#}"
        ));
        Vec::new()
    });
    let mut open = Vec::new();
    for above in found {
        signals.check()?;
        // Written back, so that the freeze is short.
        let opened = above.open().and_then(|file| {
            syncfs(&file).context("cannot write it back")?;
            Ok(file)
        });
        match opened {
            Ok(file) => match above.below(devices) {
                None => open.push((above, file)),
                // The module could not write back what is in the cache of that one.
                Some(upper) => remarks.push(format!(
                    "{above} was written back before the take, but not frozen: {} is on it, and captured",
                    upper.path().display()
                )),
            },
            Err(error) => remarks.push(format!(
                "{above} cannot be frozen or written back: {error:#}"
            )),
        }
    }
    signals.check()?;
    let taken = match open.is_empty() {
        true => session.take().map_err(Into::into),
        false => take_frozen(session, open, &mut remarks, signals),
    };
    remarks.iter().for_each(output::remark);
    taken
}

/// Takes the snapshot between freezing and thawing. All that could not be done is in the remarks.
fn take_frozen(
    session: &mut Session,
    open: Vec<(Above, File)>,
    remarks: &mut Vec<String>,
    signals: &Signals,
) -> Result<Taken> {
    let watchdog = match Watchdog::start(open.iter().map(|(_, file)| file)) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            let all: Vec<_> = open.iter().map(|(above, _)| above.to_string()).collect();
            remarks.push(format!(
                "{} was written back before the take, but not frozen, as nobody would thaw it if this process died: {error:#}",
                all.join(", ")
            ));
            return Ok(session.take()?);
        }
    };
    let mut frozen = Frozen {
        watchdog,
        held: Vec::new(),
    };
    for (index, (above, file)) in open.into_iter().enumerate() {
        if let Err(why) = frozen.freeze(index, &above, file) {
            remarks.push(why);
        }
    }
    // From here on, whatever fails thaws: `frozen` is dropped.
    signals.check()?;
    if frozen.watchdog.is_late() {
        remarks.push("freezing took too long, and was undone: files written just before the take may be missing".into());
        frozen.thaw(&mut Vec::new());
    }
    let taken = session.take();
    frozen.thaw(remarks);
    Ok(taken?)
}

/// A mounted file system on or above a captured device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    /// Its number, which tells file systems apart.
    number: DevId,
    devices: Vec<DevId>,
    kind: String,
    /// All the places where it is mounted.
    points: Vec<PathBuf>,
}

impl std::fmt::Display for Above {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let point = self.points.first().map(|point| point.display());
        write!(f, "the {} on ", self.kind)?;
        point.map_or(Ok(()), |point| write!(f, "{point}"))
    }
}

impl Above {
    /// Opens it where it is not hidden by another mount.
    pub fn open(&self) -> Result<File> {
        let found = self.points.iter().find_map(|point| {
            let mut options = OpenOptions::new();
            options.custom_flags(OFlags::NONBLOCK.bits() as i32);
            let file = options.read(true).open(point).ok()?;
            let number = DevId::from_raw(file.metadata().ok()?.dev());
            // A subvolume of btrfs has a number of its own.
            (number == self.number || self.number.major == 0).then_some(file)
        });
        found.context("another one is mounted over it, or it cannot be opened")
    }

    /// A device that is built on it.
    fn below(&self, devices: &[DevId]) -> Option<DevId> {
        let relation = |device| Relation::of(device, &self.devices);
        let mut devices = devices.iter().copied();
        devices.find(|&device| matches!(relation(device), Relation::Above(_)))
    }

    /// Whether it is built on a device of the other.
    fn is_above(&self, other: &Self) -> bool {
        let relation = |&device| Relation::of(device, &other.devices);
        let mut relations = self.devices.iter().map(relation);
        relations.any(|relation| matches!(relation, Relation::Above(_)))
    }
}

/// What is mounted on or above devices and may be written to, the uppermost first: what is on a file of another
/// file system cannot be frozen after that one.
pub fn find(table: &[Mount], devices: &[DevId]) -> Vec<Above> {
    let mut found: Vec<Above> = Vec::new();
    for mount in table {
        if let Some(known) = found.iter_mut().find(|known| known.number == mount.device) {
            known.points.push(mount.point.clone());
            continue;
        }
        let own = names::devices_of(mount);
        let above = |&device| Relation::of(device, devices) != Relation::Separate;
        let read_only = mount.options.split(',').any(|option| option == "ro");
        if read_only || !own.iter().any(above) {
            continue;
        }
        found.push(Above {
            number: mount.device,
            devices: own,
            kind: mount.kind.clone(),
            points: vec![mount.point.clone()],
        });
    }
    let height = |one: &Above| found.iter().filter(|other| one.is_above(other)).count();
    let mut sorted: Vec<_> = found.iter().map(|one| (height(one), one.clone())).collect();
    sorted.sort_by_key(|(height, _)| std::cmp::Reverse(*height));
    sorted.into_iter().map(|(_, one)| one).collect()
}

/// File systems that this process has frozen. Thawed when dropped, and by the watchdog.
struct Frozen {
    watchdog: Watchdog,
    held: Vec<(String, File)>,
}

impl Frozen {
    /// Freezes one; says why it could not.
    fn freeze(&mut self, index: usize, above: &Above, file: File) -> Result<(), String> {
        let failed = |why: String| {
            format!("{above} was written back before the take, but not frozen: {why}")
        };
        // First: it must know when this process is killed just after.
        self.watchdog
            .holds(index)
            .map_err(|error| failed(format!("{error:#}")))?;
        freeze(&file).map_err(|errno| {
            self.watchdog.lets_go(index);
            failed(match errno {
                Errno::BUSY => "somebody else has frozen it".into(),
                errno => errno.to_string(),
            })
        })?;
        self.held.push((above.to_string(), file));
        Ok(())
    }

    /// Thaws all, the last one first; adds what went wrong.
    fn thaw(&mut self, remarks: &mut Vec<String>) {
        while let Some((what, file)) = self.held.pop() {
            match thaw(&file) {
                Err(Errno::INVAL) => remarks.push(format!(
                    "{what} was thawed by somebody else during the take: files written just before it may be missing"
                )),
                Err(errno) => remarks.push(format!("{what} cannot be thawed: {errno}; use `fsfreeze --unfreeze`")),
                Ok(()) => {}
            }
        }
        self.watchdog.end();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw(&mut Vec::new());
    }
}

const FIFREEZE: Opcode = ioctl::opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = ioctl::opcode::read_write::<i32>(b'X', 120);

/// Lets no write to a file system begin, and what was written be on the device.
fn freeze(file: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: FIFREEZE ignores its argument.
    unsafe { ioctl::ioctl(file, NoArg::<FIFREEZE>::new()) }
}

/// Undoes it.
fn thaw(file: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: FITHAW ignores its argument.
    unsafe { ioctl::ioctl(file, NoArg::<FITHAW>::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_elsewhere_is_left_alone() {
        let line = |number: &str, options: &str| {
            let line = format!("30 22 {number} / /mnt rw - ext4 /dev/x {options}");
            Mount::parse(&line).unwrap()
        };
        let id = |minor| DevId { major: 4095, minor };
        let table = [
            line("4095:1", "rw"),
            line("4095:2", "ro"),
            line("4095:1", "rw"),
            line("0:9", "rw"),
        ];
        let found = find(&table, &[id(1)]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, found[0].points.len()), (id(1), 2));
        for other in [id(2), id(3)] {
            assert!(find(&table, &[other]).is_empty());
        }
    }

    #[test]
    fn what_is_on_partitions_of_a_captured_disk_is_found() {
        let table = mounts::table().unwrap();
        let on_partition = table.iter().find_map(|mount| {
            let writable = !mount.options.split(',').any(|option| option == "ro");
            Some((mount, mount.device.partition_of()?.0)).filter(|_| writable)
        });
        let Some((mount, disk)) = on_partition else {
            eprintln!("nothing is mounted from a partition here");
            return;
        };
        let found = find(&table, &[disk]);
        let found = found.iter().find(|one| one.number == mount.device).unwrap();
        assert!(found.points.contains(&mount.point));
    }
}
