// SPDX-License-Identifier: GPL-2.0-or-later

//! Full, incremental or compared: what is known decides.

use std::path::PathBuf;

use anyhow::Result;
use blksnap::{ByteSet, CbtInfo};
use blksnap_backup::{Chain, Device, Format, Hardware, Layer, Manifest, Repository, format, parts};

use super::Given;
use crate::remembered::{Memory, Take};

/// How a device is copied.
pub enum Plan {
    /// All of it.
    Full {
        /// Why, in words.
        reason: String,
    },
    /// What was written since an earlier snapshot.
    Incremental {
        /// Its number.
        since: u8,
        /// Where the rest is: the newest part of the device first.
        parts: Vec<(PathBuf, Device)>,
    },
    /// All of it is read, and what differs from the last backup is stored.
    Compared {
        /// Why, in words.
        reason: String,
        /// The last backup: the newest part of the device first.
        parts: Vec<(PathBuf, Device)>,
        /// The same with its lists of extents, until it is compared.
        chain: Option<Chain>,
    },
}

impl Plan {
    /// The number of the snapshot since which changes are copied.
    pub fn since(&self) -> Option<u8> {
        match self {
            Self::Full { .. } | Self::Compared { .. } => None,
            Self::Incremental { since, .. } => Some(*since),
        }
    }

    /// Where the rest is, the newest part first.
    pub fn parts(&self) -> &[(PathBuf, Device)] {
        match self {
            Self::Full { .. } => &[],
            Self::Incremental { parts, .. } | Self::Compared { parts, .. } => parts,
        }
    }

    /// Where the backups that an incremental one is based on have zeros, as nothing was used there.
    pub fn left_out(&self) -> Result<ByteSet> {
        let Self::Incremental { parts, .. } = self else {
            return Ok(ByteSet::default());
        };
        let listed = parts.first().map(|(_, base)| &base.unused);
        let mut found: ByteSet = listed
            .into_iter()
            .flatten()
            .map(|&[start, length]| start..start + length)
            .collect();
        // Earlier versions made no list.
        if found.is_empty() {
            for (dir, device) in parts.iter().filter(|(_, device)| device.unused_bytes > 0) {
                let layer = Layer::open(dir.clone(), device)?;
                for extent in layer.extents.iter() {
                    let extent = extent?;
                    if extent.hash.is_none() {
                        found.insert(extent.range());
                    }
                }
            }
        }
        Ok(found)
    }

    /// The newest part, as the files of the new backup name it.
    pub fn base(&self) -> Option<format::Base> {
        let (dir, device) = self.parts().first()?;
        Some(format::Base::new(dir, &device.file))
    }

    /// Decides for a device.
    pub fn new(
        repository: &Repository,
        base: &Base,
        device: &Given,
        info: &CbtInfo,
        format: Format,
        memory: &Memory,
    ) -> Self {
        let find = || {
            let base = base.as_ref().map_err(Clone::clone)?;
            let old = same(base, device).ok_or("it was not backed up before")?;
            let since = since(old, Take::of(base, old), info, format, memory)?;
            let broken = |error: anyhow::Error| format!("{error:#}");
            let parts = parts(repository, base, old).map_err(broken)?;
            // With a damaged list nothing of the device can be restored: nothing new is based on that.
            let chain = Chain::open(repository, base, old).map_err(broken)?;
            let reason = match since {
                Ok(since) => return Ok(Self::Incremental { since, parts }),
                Err(reason) => reason,
            };
            Ok(Self::Compared {
                reason,
                parts,
                chain: Some(chain),
            })
        };
        find().unwrap_or_else(|reason| Self::Full { reason })
    }
}

/// The backup that an incremental one would be based on, or why there is none.
pub type Base = Result<Manifest, String>;

/// The newest backup, if it may be the base.
pub fn base(repository: &Repository, full: bool) -> Result<Base> {
    if full {
        return Ok(Err("asked for".into()));
    }
    Ok(match repository.newest() {
        Err(error) => Err(format!("{error:#}")),
        Ok(None) => Err("there is no earlier backup here".into()),
        Ok(Some(manifest)) => Ok(manifest),
    })
}

/// A device in the base.
pub fn same<'a>(base: &'a Manifest, device: &Given) -> Option<&'a Device> {
    let mut devices = base.devices.iter();
    devices.find(|old| is_same(old, device))
}

/// Whether a device that was backed up is the one that was named.
pub fn is_same(old: &Device, device: &Given) -> bool {
    old.path == device.path || old.name == device.name
}

/// The number since which changes are wanted, or why they are not known; or why the backup is of no
/// use for this.
fn since(
    old: &Device,
    then: Take,
    info: &CbtInfo,
    format: Format,
    memory: &Memory,
) -> Result<Result<u8, String>, String> {
    if old.file_format != format {
        return Err(format!(
            "the last backup has the format {}, and {format} is asked for",
            old.file_format
        ));
    }
    same_size(old.size, info)?;
    // The names of disks may change when a machine is booted.
    let now = Hardware::of(info.device);
    if let (Some(then), Some(now)) = (&old.hardware.serial, &now.serial) {
        if then != now {
            return Err(format!(
                "the disk at the last backup had the serial number {then}, this one has {now}"
            ));
        }
    }
    Ok(tracked(then, info, memory))
}

/// The same for what was kept of a device: its size, and the take.
pub fn continued(size: u64, then: Take, info: &CbtInfo, memory: &Memory) -> Result<u8, String> {
    same_size(size, info)?;
    tracked(then, info, memory)
}

fn same_size(size: u64, info: &CbtInfo) -> Result<(), String> {
    match size == info.capacity {
        true => Ok(()),
        false => Err(format!(
            "the device had {size} bytes at the last backup, and has {} now",
            info.capacity
        )),
    }
}

/// The number, if all changes since are known.
fn tracked(then: Take, info: &CbtInfo, memory: &Memory) -> Result<u8, String> {
    if then.generation != info.generation.0 {
        return Err(
            "its changes were not tracked all the time since the last backup (a reboot, the module reloaded, or \
             255 snapshots)"
                .into(),
        );
    }
    // Numbers are given again when the memory of a machine goes back to an earlier state.
    memory.has(info.device, then)?;
    if then.number >= info.number {
        return Err(format!(
            "the last backup has the number {}, the snapshot {}",
            then.number, info.number
        ));
    }
    Ok(then.number)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blksnap::{DevId, GenerationId};
    use blksnap_backup::testing::{Store, device, test_dir};
    use uuid::Uuid;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn info() -> CbtInfo {
        CbtInfo {
            device: DevId { major: 8, minor: 0 },
            block_size: 65536,
            capacity: SIZE,
            block_count: 16,
            generation: GenerationId(device("vda").generation),
            number: 4,
        }
    }

    #[test]
    fn only_a_known_past_is_continued() {
        let old = Device {
            size: SIZE,
            ..device("vda")
        };
        let then = Take {
            snapshot: Uuid::from_u128(5),
            generation: old.generation,
            number: old.number,
        };
        let run = test_dir();
        let memory = Memory::below(run.path());
        let since = |info| since(&old, then, &info, Format::Raw, &memory);
        let not_noted = since(info()).unwrap().unwrap_err();
        assert!(not_noted.contains("remember"), "{not_noted}");
        memory.note(info().device, then).unwrap();
        assert_eq!(since(info()), Ok(Ok(3)));
        let number = CbtInfo {
            number: 3,
            ..info()
        };
        assert!(since(number).unwrap().unwrap_err().contains("number"));
        let capacity = CbtInfo {
            capacity: 2 << 20,
            ..info()
        };
        assert!(since(capacity).unwrap_err().contains("bytes"));
        let generation = CbtInfo {
            generation: GenerationId(Uuid::from_u128(7)),
            ..info()
        };
        assert!(since(generation).unwrap().unwrap_err().contains("tracked"));
    }

    #[test]
    fn without_a_good_base_it_is_full_and_why_is_said() {
        let store = Store::new(SIZE);
        let given = |name: &str| Given {
            path: format!("/dev/{name}").into(),
            id: info().device,
            name: name.into(),
        };
        let run = test_dir();
        let plan_in = |run: &Path, name: &str, full: bool| {
            let repository = Repository::create(store.path()).unwrap();
            let base = base(&repository, full).unwrap();
            let memory = Memory::below(run);
            match Plan::new(
                &repository,
                &base,
                &given(name),
                &info(),
                Format::Raw,
                &memory,
            ) {
                Plan::Full { reason } => reason,
                Plan::Incremental { since, parts } => format!("{since}, {} parts", parts.len()),
                Plan::Compared { reason, parts, .. } => format!("{reason}, {} parts", parts.len()),
            }
        };
        let plan = |name: &str, full: bool| plan_in(run.path(), name, full);
        // As the command does when a backup is complete.
        let noted = |id: String| {
            let manifest = Manifest::read(&store.path().join(&id)).unwrap();
            let then = Take::of(&manifest, &manifest.devices[0]);
            let noted = Memory::below(run.path()).note(info().device, then);
            noted.map(|()| id).unwrap()
        };
        assert_eq!(plan("vda", false), "there is no earlier backup here");
        let data = vec![1; SIZE as usize];
        let full = noted(store.full(&data));
        assert_eq!(plan("vda", false), "1, 1 parts");
        let next = noted(store.incremental(&full, &data, &[]));
        assert_eq!(plan("vda", false), "2, 2 parts");
        // Another memory: that of an earlier time, or where it is not known whether it is one.
        let earlier = test_dir();
        let compared = plan_in(earlier.path(), "vda", false);
        assert!(
            compared.contains("brought back to an earlier state")
                && compared.ends_with(", 2 parts"),
            "{compared}"
        );
        let compared = plan_in(&earlier.path().join("none"), "vda", false);
        assert!(
            compared.contains("cannot remember") && compared.ends_with(", 2 parts"),
            "{compared}"
        );
        let list = store.path().join(&full).join("vda.extents.jsonl");
        let text = std::fs::read_to_string(&list).unwrap();
        for damaged in ["", &text[1..], &text.replacen("[0,", "[1,", 1)] {
            std::fs::write(&list, damaged).unwrap();
            let reason = plan("vda", false);
            assert!(reason.contains("vda.extents.jsonl"), "{reason}");
        }
        std::fs::write(&list, text).unwrap();
        assert_eq!(plan("vda", false), "2, 2 parts");
        let anew = store.compared(&next, &data, &[]);
        assert!(plan("vda", false).ends_with("255 snapshots), 3 parts"));
        std::fs::remove_dir_all(store.path().join(anew)).unwrap();
        assert_eq!(plan("vda", true), "asked for");
        assert_eq!(plan("vdb", false), "it was not backed up before");
        let file = store.path().join(&full).join("vda.raw");
        std::fs::write(&file, "short").unwrap();
        assert!(plan("vda", false).contains("has 5 bytes in place of 1048576"));
        std::fs::remove_dir_all(store.path().join(&full)).unwrap();
        assert!(plan("vda", false).contains(&format!("its base {full} is missing")));
        std::fs::write(store.path().join(next).join("manifest.json"), "{").unwrap();
        assert!(plan("vda", false).contains("is damaged"));
    }
}
