// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap init` and `blksnap backup`.

use std::ffi::OsString;
use std::path::PathBuf;

use blksnap_backup::Format;
use clap::{Args as ClapArgs, ValueHint};

use super::StorageArgs;
use super::storage::STORAGE_HELP;
use crate::backup::phases::Shown;
use crate::rate::Rate;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  \
    blksnap init /backup/nightly\n\n\
    `blksnap backup` makes none by itself: if the disk for the backups is not mounted, it fails, and does not fill \
    another one.")]
pub struct Init {
    /// The directory, which is made if it is not there
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = format!("Examples:\n  \
    blksnap backup /dev/vda /dev/vdb --to /backup\n  \
    blksnap backup /dev/vda --to /backup --incremental --verify --storage /var/tmp\n  \
    blksnap backup --all --to /backup\n  \
    blksnap backup /dev/vda --to - --format rbd-diff --state /var/lib/vda.state | rbd import-diff - pool/vda\n  \
    set -o pipefail; blksnap backup /dev/vda --to - --storage /var/tmp | zstd >/backup/vda.zst\n\n\
    Each backup is a directory in DIR, with one file a device, a list of its extents and their checksums, and \
    manifest.json. It is there whole or not at all, and those before it are not changed. An incremental backup holds \
    only what changed since the one before; restore, verify and prune put the chain together. Where it is \
    not known what changed, as after a reboot, or if this machine was brought back to an earlier state and does not \
    remember the one before, all is read, and what differs is stored.\n\n{STORAGE_HELP}"))]
pub struct Backup {
    /// The devices, captured at one instant
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "DEV", value_hint = ValueHint::FilePath)]
    pub devices: Vec<PathBuf>,
    /// All disks of this machine, as a whole: those below each mounted file system and swap area, through
    /// partitions, LVM, LUKS and arrays; not the disk that has only the backups
    #[arg(long)]
    pub all: bool,
    /// With --all: leave out the disks below this device
    #[arg(long, value_name = "DEV", requires = "all", conflicts_with = "devices", value_hint = ValueHint::FilePath)]
    pub except: Vec<PathBuf>,
    /// With --all: only say which disks would be backed up
    #[arg(long, requires = "all", conflicts_with = "devices")]
    pub dry_run: bool,
    /// Directory of the backups, made by `blksnap init`; - writes one device to standard output, all of it
    /// as it is, or as an rbd-diff
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
    /// Make the directory one of backups, if it is none yet
    #[arg(long)]
    pub create: bool,
    /// With --to - --format rbd-diff: the file that keeps what the next incremental backup needs to know
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
    /// How the data is stored; another format than that of the last backup begins with a full one
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// With --format qcow2: compress the data by zstd
    #[arg(long)]
    pub compress: bool,
    /// Copy only what changed since the last backup or, where that is not known, what differs from it; this is the
    /// default
    #[arg(long, conflicts_with = "full")]
    pub incremental: bool,
    /// Copy everything
    #[arg(long)]
    pub full: bool,
    /// Leave out devices that the last backup has. The others are incremental all the same
    #[arg(long)]
    pub change_devices: bool,
    /// Back up a disk with sectors that cannot be read: they are zeros in the backup, and listed as
    /// lost in its manifest; the exit code is 3 then
    #[arg(long)]
    pub skip_unreadable: bool,
    /// Read also what the file system on a device does not use, which is zeros in the backup otherwise,
    /// and have it copied when it is overwritten meanwhile
    #[arg(long)]
    pub all_blocks: bool,
    /// Compare the whole backup with the image, byte for byte, while the snapshot is held
    #[arg(long)]
    pub verify: bool,
    /// Run this with sh while the snapshot is held, after the take, with the variables of `blksnap
    /// snapshot`
    #[arg(long, value_name = "CMD")]
    pub exec_after_take: Option<OsString>,
    /// Read no more than so many bytes a second, of all devices together
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Rate>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub progress: Shown,
    #[command(flatten)]
    pub storage: StorageArgs,
}
