// SPDX-License-Identifier: GPL-2.0-or-later

//! Which backups this machine remembers: those since which its change tracking knows all changes.
//!
//! A virtual machine can be brought back to an earlier state with its memory, and so with its
//! change tracking, while its backups, which are elsewhere, stay as they are. Numbers of
//! snapshots are given a second time then, in the same generation: that the number of a backup is
//! less than the present one does not tell that the changes since that backup are known. They are
//! if its snapshot was taken in the past of this very memory. So that is noted in this memory: in
//! a tmpfs, which goes back together with the change tracking, and ends with the boot, as a
//! generation does.
//!
//! A note is an empty file. Its name has all: the device, the generation, the number, and the id
//! of the snapshot, which is random and so never comes twice. A note is there whole or not at
//! all, two programs that note something at once make two files, and names in a tmpfs are never
//! swapped out.
//!
//! A note is made last, when the backup is complete and can be seen. Without one, after a crash
//! between the two, all is read the next time, which is slow, and right. A note that came first
//! could be wrong: of a machine that is brought back into the middle of a backup, the same
//! snapshot has two futures. The repository may have the backup as it was completed in one of
//! them, with zeros where blocks became difference storage, which only the change tracking of
//! that future has marked. In the other one the backup is not completed again, as its directory
//! has been renamed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use blksnap::DevId;
use blksnap_backup::{Device, Manifest};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::output;

/// Where a system has a tmpfs from its start to its end.
const RUN: &str = "/run";
/// The directory there, which the library makes as well, and that of the notes in it.
const DIRECTORIES: [&str; 2] = ["blksnap", "backups"];
/// File systems that are in memory and nowhere else: tmpfs and ramfs (`linux/magic.h`).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// What others must not do in a directory: write.
const OTHERS: u32 = 0o022;

/// What a backup tells of the take that it was made of.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// The snapshot.
    pub snapshot: Uuid,
    /// The generation of change tracking of the device.
    pub generation: Uuid,
    /// The number of the snapshot in it.
    pub number: u8,
}

impl Take {
    /// That of a device in a backup.
    pub fn of(manifest: &Manifest, device: &Device) -> Self {
        Self {
            snapshot: manifest.snapshot,
            generation: device.generation,
            number: device.number,
        }
    }

    /// The name of its note.
    fn note(&self, device: DevId) -> String {
        let kept = of_generation(device, self.generation);
        format!("{kept}{}.{}", self.number, self.snapshot)
    }
}

/// What names of notes of a device begin with.
fn of_device(device: DevId) -> String {
    format!("{device}.")
}

/// The same for one generation of it.
fn of_generation(device: DevId, generation: Uuid) -> String {
    format!("{}{generation}.", of_device(device))
}

/// The notes; or why there can be none, in words.
pub struct Memory(Result<OwnedFd, String>);

impl Memory {
    /// That of this machine.
    pub fn open() -> Self {
        Self::below(Path::new(RUN))
    }

    /// With the notes below another directory.
    pub fn below(run: &Path) -> Self {
        Self(open(run).map_err(|error| format!("{error:#}")))
    }

    /// Fails, with the reason in words, if a take is not known to be in the past of this memory.
    pub fn has(&self, device: DevId, take: Take) -> Result<(), String> {
        let directory = self.0.as_ref();
        let directory =
            directory.map_err(|why| format!("this machine cannot remember its backups: {why}"))?;
        let note = rustix::fs::statat(directory, take.note(device), AtFlags::SYMLINK_NOFOLLOW);
        match note.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
            true => Ok(()),
            false => Err(
                "this machine does not remember making the last backup (it was brought back to an earlier state, \
                 /run/blksnap was emptied, or an older version of blksnap made it)"
                    .into(),
            ),
        }
    }

    /// Notes a take of which a backup is complete. If that is not possible, the backup is as good,
    /// and the next one is not incremental.
    pub fn remember(&self, device: DevId, path: &Path, take: Take) {
        if let Err(error) = self.note(device, take) {
            output::remark(format!(
                "{}: this machine will not remember this backup, so the next one cannot be incremental: {error:#}",
                path.display()
            ));
        }
    }

    /// The same. Forgets other generations of the device: they do not come again. So there are no
    /// more notes of a device than there are numbers.
    pub fn note(&self, device: DevId, take: Take) -> Result<()> {
        let directory = match &self.0 {
            Ok(directory) => directory,
            Err(why) => bail!("{why}"),
        };
        let name = take.note(device);
        create(directory, &name).with_context(|| format!("cannot make the file {name}"))?;
        // What stays there takes room, and no more.
        let _ = forget(directory, device, take.generation);
        Ok(())
    }
}

/// Removes the notes of other generations of a device.
fn forget(directory: &OwnedFd, device: DevId, kept: Uuid) -> rustix::io::Result<()> {
    let kept = of_generation(device, kept);
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.starts_with(of_device(device).as_bytes()) && !name.starts_with(kept.as_bytes()) {
            rustix::fs::unlinkat(directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn create(directory: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(directory, name, flags, mode).map(drop)
}

/// The directory of the notes: in memory, and of nobody else's making.
fn open(run: &Path) -> Result<OwnedFd> {
    let mut path = run.to_owned();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |path: &Path| format!("cannot open the directory {}", path.display());
    let opened = rustix::fs::openat(CWD, run, flags, Mode::empty());
    let mut directory = opened.with_context(|| failed(&path))?;
    for name in DIRECTORIES {
        path.push(name);
        match rustix::fs::mkdirat(&directory, name, Mode::RWXU) {
            Err(error) if error != Errno::EXIST => Err(error)
                .with_context(|| format!("cannot make the directory {}", path.display()))?,
            _ => {}
        }
        let opened = rustix::fs::openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty());
        directory = opened.with_context(|| failed(&path))?;
        let stat = rustix::fs::fstat(&directory).with_context(|| failed(&path))?;
        ensure!(
            stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & OTHERS == 0,
            "others may write to {}: remove it",
            path.display()
        );
    }
    ensure!(
        is_in_memory(&directory).with_context(|| failed(&path))?,
        "{} is on a disk, and not in a tmpfs",
        path.display()
    );
    Ok(directory)
}

/// Whether what is in a directory goes back and ends with the memory of the machine.
fn is_in_memory(directory: impl AsFd) -> rustix::io::Result<bool> {
    let kind = rustix::fs::fstatfs(directory)?.f_type;
    Ok(IN_MEMORY.contains(&(kind as u32)))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use blksnap_backup::testing::test_dir;

    use super::*;

    const DEVICE: DevId = DevId { major: 8, minor: 1 };

    fn take(generation: u128, number: u8) -> Take {
        Take {
            snapshot: Uuid::from_u128(generation << 8 | u128::from(number)),
            generation: Uuid::from_u128(generation),
            number,
        }
    }

    #[test]
    fn only_what_was_noted_is_remembered() {
        let run = test_dir();
        let memory = Memory::below(run.path());
        let why = memory.has(DEVICE, take(1, 7)).unwrap_err();
        assert!(why.contains("does not remember"), "{why}");
        memory.note(DEVICE, take(1, 7)).unwrap();
        memory.note(DEVICE, take(1, 8)).unwrap();
        let memory = Memory::below(run.path());
        assert_eq!(memory.has(DEVICE, take(1, 7)), Ok(()));
        assert_eq!(memory.has(DEVICE, take(1, 8)), Ok(()));
        // The same number, of a time that is lost.
        let lost = Take {
            snapshot: Uuid::from_u128(99),
            ..take(1, 7)
        };
        memory.has(DEVICE, lost).unwrap_err();
        let renumbered = Take {
            number: 6,
            ..take(1, 7)
        };
        memory.has(DEVICE, renumbered).unwrap_err();
        memory.has(DEVICE, take(2, 7)).unwrap_err();
        let other = DevId {
            major: 8,
            minor: 11,
        };
        memory.has(other, take(1, 7)).unwrap_err();
        let notes = run.path().join("blksnap/backups");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&notes), 0o700);
        for entry in fs::read_dir(&notes).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        // Something else with that name is no note.
        let note = notes.join(take(1, 9).note(DEVICE));
        fs::create_dir(&note).unwrap();
        memory.has(DEVICE, take(1, 9)).unwrap_err();
        fs::remove_dir(&note).unwrap();
        symlink(notes.join(take(1, 7).note(DEVICE)), &note).unwrap();
        memory.has(DEVICE, take(1, 9)).unwrap_err();
        memory.note(DEVICE, take(1, 9)).unwrap_err();
    }

    #[test]
    fn what_cannot_come_again_is_forgotten() {
        let run = test_dir();
        let memory = Memory::below(run.path());
        let other = DevId {
            major: 8,
            minor: 11,
        };
        for number in 1..=254 {
            memory.note(DEVICE, take(1, number)).unwrap();
        }
        memory.note(other, take(2, 5)).unwrap();
        assert_eq!(
            memory.has(DEVICE, take(1, 1)),
            Ok(()),
            "of many repositories"
        );
        memory.note(DEVICE, take(3, 1)).unwrap();
        assert_eq!(memory.has(DEVICE, take(3, 1)), Ok(()));
        assert_eq!(memory.has(other, take(2, 5)), Ok(()));
        let notes = fs::read_dir(run.path().join("blksnap/backups")).unwrap();
        assert_eq!(notes.count(), 2);
    }

    #[test]
    fn those_who_note_at_once_lose_nothing() {
        let run = test_dir();
        let device = |minor| DevId { major: 8, minor };
        std::thread::scope(|scope| {
            for minor in 0..8 {
                let run = run.path();
                scope.spawn(move || {
                    let memory = Memory::below(run);
                    for generation in 1..=20 {
                        memory.note(device(minor), take(generation, 1)).unwrap();
                    }
                });
            }
        });
        let memory = Memory::below(run.path());
        for minor in 0..8 {
            assert_eq!(memory.has(device(minor), take(20, 1)), Ok(()));
        }
    }

    #[test]
    fn what_others_could_have_made_is_not_believed() {
        let why = |run: &Path| {
            let memory = Memory::below(run);
            let noted = memory.note(DEVICE, take(1, 7)).unwrap_err();
            let why = memory.has(DEVICE, take(1, 7)).unwrap_err();
            let because = why.strip_prefix("this machine cannot remember its backups: ");
            assert_eq!(because, Some(&*noted.to_string()));
            why
        };
        let run = test_dir();
        assert!(why(&run.path().join("none")).contains("cannot open the directory"));
        // Notes that are good, where a link leads.
        let elsewhere = test_dir();
        Memory::below(elsewhere.path())
            .note(DEVICE, take(1, 7))
            .unwrap();
        let path = run.path().join("blksnap");
        symlink(elsewhere.path().join("blksnap"), &path).unwrap();
        assert!(why(run.path()).contains("blksnap: "));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        symlink(
            elsewhere.path().join("blksnap/backups"),
            path.join("backups"),
        )
        .unwrap();
        assert!(why(run.path()).contains("blksnap/backups: "));
        fs::remove_file(path.join("backups")).unwrap();
        File::create(path.join("backups")).unwrap();
        assert!(why(run.path()).contains("blksnap/backups: "));
        fs::remove_file(path.join("backups")).unwrap();
        let memory = Memory::below(run.path());
        memory.note(DEVICE, take(1, 7)).unwrap();
        for open in [path.clone(), path.join("backups")] {
            fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
            assert!(why(run.path()).contains("others may write"));
            fs::set_permissions(&open, Permissions::from_mode(0o700)).unwrap();
        }
        let memory = Memory::below(run.path());
        assert_eq!(memory.has(DEVICE, take(1, 7)), Ok(()));
        fs::remove_dir_all(&path).unwrap();
        assert!(memory.note(DEVICE, take(1, 8)).is_err(), "it was removed");
        memory.has(DEVICE, take(1, 7)).unwrap_err();
    }

    #[test]
    fn a_disk_is_no_memory() {
        let is_in_memory = |path: &str| is_in_memory(File::open(path).unwrap()).unwrap();
        assert!(!is_in_memory("/proc"));
        assert!(is_in_memory("/dev/shm"));
    }
}
