// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap backup --all`: which disks make up this machine.
//!
//! ```text
//! file systems and swap in use → the disks below → those of the same volume groups → the disks below
//!                                                  less what is left out, each with the reason
//! ```
//!
//! Whole disks are captured, at the bottom of all stacks, so that the tables of partitions, boot loaders,
//! headers of LUKS, metadata of LVM and of arrays are in the backup, and all of one instant.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use blksnap::DevId;
use blksnap_backup::is_block_device;
use serde::Serialize;

use super::{Given, lvm};
use crate::args;
use crate::disks::{self, Bottom, Stacks};
use crate::names;
use crate::output;
use crate::size::Size;

/// The disks of a machine.
pub struct All {
    /// What is captured, by name.
    disks: Vec<Disk>,
    /// What is not, and why.
    pub left_out: Vec<LeftOut>,
    /// The volume groups of LVM that are on the disks.
    pub groups: Vec<String>,
    /// The devices on them with data of LUKS.
    pub encrypted: Vec<DevId>,
}

/// A disk.
struct Disk {
    id: DevId,
    name: String,
    /// What is in use on it: for people, and the devices that it is on itself.
    uses: Vec<disks::Use>,
}

/// A device that is not captured.
#[derive(Debug, Serialize)]
pub struct LeftOut {
    /// The device.
    pub device: PathBuf,
    /// Why, in words.
    pub why: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is left out: {}", self.device.display(), self.why)
    }
}

/// What would be done, for scripts.
#[derive(Serialize)]
struct Would<'a> {
    devices: Vec<WouldCapture>,
    left_out: &'a [LeftOut],
}

/// One of the devices.
#[derive(Serialize)]
struct WouldCapture {
    device: PathBuf,
    /// Bytes.
    size: u64,
    /// What is in use on it.
    holds: Vec<String>,
}

/// Finds the disks for a backup.
pub fn find(args: &args::Backup) -> Result<All> {
    ensure!(
        args.to != Path::new("-"),
        "--all needs a directory: only one device can be written to standard output"
    );
    let mut all = look()?;
    let mut except = Vec::new();
    for name in &args.except {
        except.extend(Stacks::new().follow(names::device(name)?));
    }
    all.leave_out(|disk| {
        Ok(except.contains(&disk.id).then(|| match disk.holds() {
            holds if holds.is_empty() => "--except names it".to_owned(),
            holds => format!("--except names it; it holds {holds}"),
        }))
    })?;
    let target = Spot::of(&args.to);
    all.leave_out(|disk| match target.stands_to(disk) {
        Stands::Apart => Ok(None),
        Stands::Alone => Ok(Some("the backups are on it".into())),
        Stands::Beside(others) => bail!(
            "the backups in {} are on {}, which also holds {others}: they would be lost with it; name a directory on \
             another disk by --to, or leave this disk out by --except {1}",
            args.to.display(),
            disk.id.path().display()
        ),
    })?;
    if let Some(storage) = &args.storage.storage {
        let spot = Spot::of(storage);
        // Where it is beside something else, both is done, or the take says why not.
        all.leave_out(|disk| {
            let alone = matches!(spot.stands_to(disk), Stands::Alone);
            Ok(alone.then(|| "the difference storage is on it".into()))
        })?;
    }
    ensure!(
        !all.disks.is_empty(),
        "no disk is left to be backed up{}",
        all.left_out
            .iter()
            .map(|one| format!("; {one}"))
            .collect::<String>()
    );
    Ok(all)
}

/// All disks that this machine uses, without those that are none.
fn look() -> Result<All> {
    let mut stacks = Stacks::new();
    let mut disks: Vec<Disk> = Vec::new();
    let mut add = |id: DevId, one: &disks::Use| {
        if let Some(disk) = disks.iter_mut().find(|disk| disk.id == id) {
            disk.uses.push(one.clone());
            return;
        }
        disks.push(Disk {
            id,
            name: id.kernel_name().unwrap_or_else(|| id.to_string()),
            uses: vec![one.clone()],
        });
    };
    for one in disks::in_use()? {
        for device in &one.devices {
            for id in stacks.follow(*device) {
                add(id, &one);
            }
        }
    }
    let mut left_out = Vec::new();
    let mut groups = Vec::new();
    // Others may come to light below a volume.
    let mut at = 0;
    while let Some(group) = stacks.groups.get(at).cloned() {
        at += 1;
        let volumes = lvm::physical_volumes(&group)?;
        for (volume, name) in volumes {
            if !groups.contains(&name) {
                groups.push(name.clone());
            }
            let what = format!("a part of the volume group {name}");
            let Ok(device) = names::device(&volume) else {
                left_out.push(LeftOut {
                    device: volume,
                    why: format!("it is missing, and {what}"),
                });
                continue;
            };
            // Nothing by itself: what is mounted from the group is named as well.
            let one = disks::Use {
                what,
                devices: Vec::new(),
            };
            for id in stacks.follow(device) {
                add(id, &one);
            }
        }
    }
    disks.sort_by_key(|disk| (disk.name.len(), disk.name.clone()));
    groups.sort();
    let mut encrypted = std::mem::take(&mut stacks.encrypted);
    encrypted.sort();
    encrypted.dedup();
    let mut all = All {
        disks,
        left_out,
        groups,
        encrypted,
    };
    all.leave_out(|disk| {
        Ok(match stacks.bottoms.get(&disk.id) {
            Some(Bottom::Other(why)) => Some((*why).to_owned()),
            _ => None,
        })
    })?;
    Ok(all)
}

impl All {
    /// Leaves out those for which there is a reason.
    fn leave_out(&mut self, why: impl Fn(&Disk) -> Result<Option<String>>) -> Result<()> {
        let mut kept = Vec::new();
        for disk in self.disks.drain(..) {
            match why(&disk)? {
                None => kept.push(disk),
                Some(why) => self.left_out.push(LeftOut {
                    device: disk.id.path(),
                    why,
                }),
            }
        }
        self.disks = kept;
        Ok(())
    }

    /// The disks, as if they had been named.
    pub fn given(&self) -> Vec<Given> {
        let given = |disk: &Disk| Given {
            path: disk.id.path(),
            id: disk.id,
            name: disk.name.clone(),
        };
        self.disks.iter().map(given).collect()
    }

    /// Says what would be done.
    pub fn show(&self, json: bool) -> Result<()> {
        if json {
            let capture = |disk: &Disk| WouldCapture {
                device: disk.id.path(),
                size: disk.id.size().unwrap_or(0),
                holds: disk.what(),
            };
            return output::print_json(&Would {
                devices: self.disks.iter().map(capture).collect(),
                left_out: &self.left_out,
            });
        }
        for disk in &self.disks {
            output::print(format!(
                "{}: {}, {}",
                disk.id.path().display(),
                Size(disk.id.size().unwrap_or(0)),
                disk.holds()
            ))?;
        }
        let mut left_out = self.left_out.iter();
        left_out.try_for_each(|one| output::print(one.to_string()))
    }
}

impl Disk {
    /// What is in use on it, each once.
    fn what(&self) -> Vec<String> {
        let mut what: Vec<String> = Vec::new();
        for one in &self.uses {
            if !what.contains(&one.what) {
                what.push(one.what.clone());
            }
        }
        what
    }

    /// The same, for people.
    fn holds(&self) -> String {
        self.what().join(", ")
    }
}

/// Where backups or difference storage are.
struct Spot {
    /// The devices of the file system, or the one that was named.
    devices: Vec<DevId>,
    /// The disks below.
    disks: Vec<DevId>,
}

/// How something stands to a disk.
enum Stands {
    /// It is not on it.
    Apart,
    /// It is, and nothing else is in use there.
    Alone,
    /// It is, and there is more, in words.
    Beside(String),
}

impl Spot {
    /// Of a device, or a directory that need not be there yet.
    fn of(path: &Path) -> Self {
        let devices = match is_block_device(path) {
            true => DevId::resolve(path).into_iter().collect(),
            false => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                let there = path.ancestors().find(|path| path.exists());
                there.map(names::devices_under).unwrap_or_default()
            }
        };
        let mut stacks = Stacks::new();
        let below = devices.iter().flat_map(|&device| stacks.follow(device));
        Self {
            disks: below.collect(),
            devices,
        }
    }

    fn stands_to(&self, disk: &Disk) -> Stands {
        if !self.disks.contains(&disk.id) {
            return Stands::Apart;
        }
        let own = |one: &&disks::Use| {
            let mut devices = one.devices.iter();
            devices.all(|device| self.disks.contains(device) || self.devices.contains(device))
        };
        let others: Vec<_> = disk.uses.iter().filter(|one| !own(one)).collect();
        match others.is_empty() {
            true => Stands::Alone,
            false => {
                let mut words: Vec<_> = others.iter().map(|one| one.what.as_str()).collect();
                words.dedup();
                Stands::Beside(words.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_beside_others_is_told_from_one_alone() {
        let id = |minor| DevId { major: 4095, minor };
        let one = |what: &str, minor| disks::Use {
            what: what.into(),
            devices: vec![id(minor)],
        };
        let disk = |uses: Vec<disks::Use>| Disk {
            id: id(0),
            name: "x".into(),
            uses,
        };
        let spot = Spot {
            devices: vec![id(1)],
            disks: vec![id(0)],
        };
        let stands = |uses| spot.stands_to(&disk(uses));
        assert!(matches!(
            stands(vec![one("ext4 on /backup", 1)]),
            Stands::Alone
        ));
        let beside = stands(vec![one("ext4 on /backup", 1), one("ext4 on /", 2)]);
        assert!(matches!(beside, Stands::Beside(others) if others == "ext4 on /"));
        let elsewhere = Disk {
            id: id(9),
            ..disk(vec![one("ext4 on /", 2)])
        };
        assert!(matches!(spot.stands_to(&elsewhere), Stands::Apart));
    }
}
