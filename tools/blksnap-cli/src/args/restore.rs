// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands that read backups.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueHint};

use crate::rate::Rate;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap restore /backup --to /dev/vdc\n  \
    blksnap restore /backup --to vda=/dev/vdc --to vdb=/dev/vdd\n  \
    blksnap restore /backup/20261124T201629Z-0a1b2c3d --to vda=/tmp/vda.img\n  \
    blksnap restore /backup --to vda=- | ssh other 'cat >/dev/vdc'\n  \
    blksnap restore --machine /backup --disk vda=/dev/vdc --disk vdb=/dev/vdd --grow\n\n\
    Everything but the data is checked before the first write: the whole chain of backups, the size of each target, \
    that it is not in use, and that nothing is on it (blkid). The data is checked as it is read.")]
pub struct Restore {
    /// Directory of the backups, of which the newest is taken, or of one of them
    #[arg(value_hint = ValueHint::DirPath)]
    pub backup: PathBuf,
    /// Where to write: a block device that is not in use, by any of its names, or a file that does
    /// not exist yet (./vdc is a file); with the name of the device in the backup where it holds
    /// several: the path it was given by, a stable one (by-id, mapper), or the kernel's name. - is
    /// standard output, for one device
    #[arg(long, required_unless_present = "machine", value_name = "[NAME=]TARGET", value_hint = ValueHint::AnyPath)]
    pub to: Vec<String>,
    /// Lay out all disks of the backup on blank ones. On a larger disk, the second header of a GPT goes to the end
    #[arg(long, conflicts_with = "to", requires = "disk")]
    pub machine: bool,
    /// With --machine: where a disk of the backup goes, once for each of them, with names as for --to
    #[arg(long, value_name = "OLD=NEW", requires = "machine", conflicts_with = "to", value_hint = ValueHint::AnyPath)]
    pub disk: Vec<String>,
    /// With --machine: let the last partition of a GPT take what comes after it on a larger disk. What is in it stays as
    /// large as it is; how to grow that is said
    #[arg(long, requires = "machine", conflicts_with = "to")]
    pub grow: bool,
    /// Overwrite what is on a device: a file system, a table of partitions, a volume of LVM. One that
    /// is in use is refused all the same
    #[arg(long)]
    pub force: bool,
    /// Only check, and say, what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Where the backup is damaged, restore all that is good, and list what is not, which reads as
    /// zeros; the exit code is 3 then
    #[arg(long)]
    pub keep_going: bool,
    /// Read no more than so many bytes a second, of all devices together
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Rate>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap verify /backup\n  \
    blksnap verify /backup/20261124T201629Z-0a1b2c3d\n\n\
    Reads all data, and tells of all damage. Exit code 1 if there is any.")]
pub struct Verify {
    /// Directory of the backups, or of one of them, which is checked with all it is based on
    #[arg(value_hint = ValueHint::DirPath)]
    pub backup: PathBuf,
    /// Mark what is damaged, of the newest backup, as changed in the module: the next incremental
    /// backup copies it again
    #[arg(long)]
    pub mark_dirty: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap list /backup\n  \
    blksnap list /backup --json | jq -r '.backups[] | select(.damaged) | .id'")]
pub struct List {
    /// Directory of the backups
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap mount /backup /mnt/backups\n  \
    mount -o ro,norecovery,loop /mnt/backups/20261124T201629Z-0a1b2c3d/vda1 /mnt/then\n  \
    umount /mnt/then /mnt/backups\n\n\
    Each backup is a directory, and in it each device a file of its size, to be read only, by root only. The data is \
    checked as it is read: where a backup is damaged, reading fails, and it is said which file is. Backups that are made \
    meanwhile appear; a prune is refused.\n\n\
    It prints a line when it is mounted, and runs until it is unmounted (exit code 0), or a signal comes, at which it \
    unmounts. While a file is in use, by a loop device for example, it goes on until that is done.")]
pub struct Mount {
    /// Directory of the backups, or of one of them
    #[arg(value_hint = ValueHint::DirPath)]
    pub backup: PathBuf,
    /// Where they are shown: an empty directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub mount_point: PathBuf,
}
