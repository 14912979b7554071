// SPDX-License-Identifier: GPL-2.0-or-later

//! What can be asked for on the command line. The manual pages and the completions of shells are
//! made of these definitions, too.

pub mod legacy;
pub mod second;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use blksnap_backup::Format;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::above;
use crate::backup::phases::Shown;
use crate::prune::policy::{Count, Policy, Within};
use crate::size::Size;
pub use legacy::{Legacy, PlaceArgs};
pub use second::{Abi, AbiArg, Field, Second};

/// Snapshots of block devices, and backups of only what has changed
#[derive(Debug, Parser)]
#[command(name = "blksnap", version, max_term_width = 100)]
#[command(after_help = "Examples:\n  \
    blksnap init /backup\n  \
    blksnap backup /dev/vda /dev/vdb --to /backup\n  \
    blksnap restore /backup --to vda=/dev/vdc\n  \
    blksnap prune /backup --keep 14\n  \
    blksnap snapshot /home -- unshare -m sh -c 'mount -o ro,norecovery $BLKSNAP_IMAGE /mnt && restic backup /mnt'\n  \
    blksnap status --watch\n\n\
    A device is named by its path, or a link to it; the kernel's name (vda1); its number (254:1); UUID=, LABEL=, \
    PARTUUID= or PARTLABEL= as in fstab; or where it is mounted (/home), if that file system is on this device only.\n\n\
    Sizes are in bytes, or with a suffix: 512K, 64M, 1.5G, 2T (powers of 1024).\n\n\
    Exit codes: 0 done; 1 failed or wrongly used; 3 done, but for what is named; 128 + N ended by signal N. `blksnap snapshot` with a command has that \
    of the command.")]
pub struct Args {
    /// Print only results and errors: no progress, no remarks
    #[arg(short, long, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a directory one of backups
    Init(Init),
    /// Back up devices as they are at one instant, while they are in use
    Backup(Backup),
    /// Write a backup to a device or a new file
    Restore(Restore),
    /// Check backups: the chain, every file, every checksum
    Verify(Verify),
    /// Show the backups in a directory
    List(List),
    /// Show the devices of all backups as files, by FUSE
    Mount(Mount),
    /// Keep only some backups: the newest, or one a day, a week, a month
    Prune(Prune),
    /// Hold a snapshot while a command runs
    Snapshot(Snapshot),
    /// Show what is tracked and which snapshots there are
    Status(Status),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Thaw file systems if the process that has frozen them dies
    #[command(hide = true, name = above::watchdog::COMMAND)]
    ThawIfAlone {
        /// The file systems
        paths: Vec<PathBuf>,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Directory to write them to
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    #[command(flatten)]
    Legacy(Legacy),
    #[command(flatten)]
    Second(Second),
}

/// Where the old contents of overwritten blocks go while a snapshot is held.
#[derive(Debug, ClapArgs)]
pub struct StorageArgs {
    /// Directory for the difference storage, on any file system; on a captured one only if that is
    /// ext4 or xfs, where all of it is reserved before. Or a file, or a device, that is used up for it.
    /// With an older module, a directory or the beginning of file names, on ext4 or xfs
    /// [default: the directory of the backups, or else the current one]
    #[arg(long, value_name = "DIR|PREFIX", value_hint = ValueHint::AnyPath)]
    pub storage: Option<PathBuf>,
    /// Give storage in portions of at least this size [default: what the module asks for]; with
    /// the interface of 2022 only
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "0",
        hide_default_value = true
    )]
    pub portion: Size,
    /// Never give more storage than this; the snapshot fails when it is not enough [default: as much
    /// as the devices can need, at most half of the free space; where it is reserved, a fifth of the
    /// devices, at least 1G]
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Size>,
    /// Reserve all of the storage before the take, also where no device of this snapshot is: needed
    /// if another snapshot may capture that file system meanwhile
    #[arg(long)]
    pub reserve: bool,
    /// The control interface of the module: 1 is that of 2022, 2 that of 2025, by which the kernel
    /// holds the storage [default: 2 if the module has it]
    #[arg(long, value_name = "1|2", hide_possible_values = true)]
    pub abi: Option<Abi>,
    /// After the snapshot, trim the file systems on the devices, as fstrim does: what is freed while
    /// it is held is not discarded by itself
    #[arg(long)]
    pub trim: bool,
}

/// Why storage is reserved on a captured file system.
const STORAGE_HELP: &str = "\
    Difference storage on a captured device: a file system may give a file that grows after the take blocks of files that \
    were deleted since, and as storage these blocks would be lost for the image. So there, all of the limit is allocated \
    before the take, and nothing is added to it. Elsewhere it grows as it is needed. Nobody can change, move or remove it \
    until the snapshot is destroyed: the kernel holds it, or, with an older module, its files are immutable (chattr +i).\n\n\
    File systems above a device (on its partitions, LVM, LUKS, md) are frozen for the take; what could not be is named.";

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
    blksnap backup /dev/vda --to - --format rbd-diff --state /var/lib/vda.state | rbd import-diff - pool/vda\n\n\
    Each backup is a directory in DIR, with one file a device, a list of its extents and their checksums, and \
    manifest.json. It is there whole or not at all, and those before it are not changed. An incremental backup holds \
    only what changed since the one before; restore, verify and prune put the chain together. Where it is \
    not known what changed, as after a reboot, all is read, and what differs is stored.\n\n{STORAGE_HELP}"))]
pub struct Backup {
    /// The devices, captured at one instant
    #[arg(required = true, value_name = "DEV", value_hint = ValueHint::FilePath)]
    pub devices: Vec<PathBuf>,
    /// Directory of the backups, made by `blksnap init`; - writes one device to standard output, as an rbd-diff
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
    /// Make the directory one of backups, if it is none yet
    #[arg(long)]
    pub create: bool,
    /// With --to -: the file that keeps what the next incremental backup needs to know
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
    /// How the data is stored; another format than that of the last backup begins with a full one
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
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
    /// Read also what the file system on a device does not use, which is zeros in the backup otherwise
    #[arg(long)]
    pub all_blocks: bool,
    /// Compare the whole backup with the image, byte for byte, while the snapshot is held
    #[arg(long)]
    pub verify: bool,
    /// Run this with sh while the snapshot is held, after the take, with the variables of `blksnap
    /// snapshot`
    #[arg(long, value_name = "CMD")]
    pub exec_after_take: Option<OsString>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub progress: Shown,
    #[command(flatten)]
    pub storage: StorageArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap restore /backup --to /dev/vdc\n  \
    blksnap restore /backup --to vda=/dev/vdc --to vdb=/dev/vdd\n  \
    blksnap restore /backup/20261124T201629Z-0a1b2c3d --to vda=/tmp/vda.img\n\n\
    Everything but the data is checked before the first write: the whole chain of backups, the size of each target, \
    that it is not in use, and that nothing is on it (blkid). The data is checked as it is read.")]
pub struct Restore {
    /// Directory of the backups, of which the newest is taken, or of one of them
    #[arg(value_hint = ValueHint::DirPath)]
    pub backup: PathBuf,
    /// Where to write: a block device that is not in use, by any of its names, or a file that does
    /// not exist yet (./vdc is a file); with the name of the device in the backup where it holds
    /// several: the path it was given by, a stable one (by-id, mapper), or the kernel's name
    #[arg(long, required = true, value_name = "[NAME=]TARGET", value_hint = ValueHint::AnyPath)]
    pub to: Vec<String>,
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

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap prune /backup --keep-last 14\n  \
    blksnap prune /backup --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run\n\n\
    A backup that any rule keeps is kept, and the newest in any case. Hours, days and so on are those of local time, and \
    count only if they have a backup; as long as there are fewer than N, the oldest backup is kept, too.\n\n\
    What a kept backup needs of dropped ones is merged into it, in place where the format allows that: little \
    more space is needed. All that is merged is read and checked first: if it is damaged, nothing is dropped. It can be interrupted at any time: the kept backups are good all the time, and the next prune \
    goes on.")]
pub struct Prune {
    /// Directory of the backups
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// How many backups to keep, the newest ones
    #[arg(
        long,
        visible_alias = "keep",
        value_name = "N",
        required_unless_present_any = [
            "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within",
        ]
    )]
    pub keep_last: Option<Count>,
    /// Keep the newest backup of each hour, of so many hours that have one (or `unlimited`)
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<Count>,
    /// Of each day
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<Count>,
    /// Of each week, from Monday
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<Count>,
    /// Of each month
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<Count>,
    /// Of each year
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<Count>,
    /// Keep all that are not so much older than the newest: 2y5m7d3h (years, months, days, hours)
    #[arg(long, value_name = "DURATION")]
    pub keep_within: Option<Within>,
    /// Drop also the last backup of this device; otherwise that is kept
    #[arg(long, value_name = "DEV")]
    pub forget: Vec<String>,
    /// Only say what would be done, and which rules keep a backup, after reading and checking what
    /// would be merged
    #[arg(long)]
    pub dry_run: bool,
    /// Before anything is dropped, read and check all that the kept backups need, not only what is
    /// merged
    #[arg(long)]
    pub verify: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = format!("Examples:\n  \
    blksnap snapshot /dev/vda --storage /var/tmp -- unshare -m sh -c 'mount -o ro,norecovery $BLKSNAP_IMAGE /mnt && tar cf /backup/vda.tar /mnt'\n  \
    blksnap snapshot vda1 vdb -- sh -c 'for image in $BLKSNAP_IMAGES; do dd if=$image bs=1M | md5sum; done'\n  \
    blksnap snapshot /home --limit 20G\n\n\
    (norecovery leaves the journal as it is; xfs needs ro,norecovery,nouuid as long as the original is mounted.)\n\n\
    The command finds the paths of the images in BLKSNAP_IMAGES and those of the devices in BLKSNAP_DEVICES (in the \
    order given), the image of each device in BLKSNAP_IMAGE_<NAME>, such as BLKSNAP_IMAGE_VDA1, and in BLKSNAP_IMAGE if \
    there is one; the snapshot in BLKSNAP_ID. Without a command, the snapshot is held until a signal comes.\n\n\
    The snapshot is destroyed in any case. SIGTERM, SIGINT and SIGHUP are passed on to the command, without a terminal \
    to all of its process group. The exit code is that of the command, or 128 + N if signal N ended it; but 1 if the \
    snapshot was lost meanwhile, since what the command has read may be incomplete.\n\n{STORAGE_HELP}"))]
pub struct Snapshot {
    /// The devices, captured at one instant
    #[arg(required = true, value_name = "DEV", value_hint = ValueHint::FilePath)]
    pub devices: Vec<PathBuf>,
    /// Describe the snapshot as JSON, in one line; without a command only, whose the output is
    #[arg(long, conflicts_with = "command")]
    pub json: bool,
    #[command(flatten)]
    pub storage: StorageArgs,
    /// What to run, and its arguments
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap status\n  \
    blksnap status --watch 5\n  \
    blksnap status --json | jq -r '.snapshots[] | select(.error) | .id'\n\n\
    `Documentation/admin-guide/blksnap-command.rst` describes the members of the JSON object.")]
pub struct Status {
    /// Print as JSON; with --watch, each time in one line
    #[arg(long)]
    pub json: bool,
    /// Show it again after so many seconds, until a signal comes
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
}

impl Prune {
    /// The rules by which backups are kept.
    pub fn policy(&self) -> Policy {
        Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
        }
    }
}

/// A time to wait, in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|&time| time >= Duration::from_millis(100))
        .ok_or_else(|| format!("`{text}` is not a number of seconds of 0.1 or more"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    pub fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = line.split_whitespace().map(OsString::from);
        Args::try_parse_from(legacy::split_values(words)).map(|args| args.command)
    }

    #[test]
    fn the_definitions_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "blksnap",
            "blksnap frobnicate",
            "blksnap snapshot_create",
            "blksnap snapshot_take",
            "blksnap snapshot_take --id 1234",
            "blksnap snapshot_appendstorage -i 00112233-4455-4677-8899-aabbccddeeff",
            "blksnap tracker_markdirtyblock -d /dev/sda",
            "blksnap tracker_markdirtyblock -f /tmp/x -r 0:8",
            "blksnap tracker_markdirtyblock -d /dev/sda -r 0-8",
            "blksnap backup --to /tmp",
            "blksnap backup /dev/sda --to /tmp --full --incremental",
            "blksnap restore /tmp",
            "blksnap backup /dev/sda --to /tmp --format tar",
            "blksnap verify",
            "blksnap mount /tmp",
            "blksnap prune /tmp",
            "blksnap prune /tmp --keep 0",
            "blksnap prune /tmp --keep 3 --keep-last 3",
            "blksnap prune /tmp --keep-within 3",
            "blksnap status --watch 0",
            "blksnap status --watch x",
            "blksnap snapshot /dev/sda --json -- true",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_command_follows_the_dashes() {
        let Ok(Command::Snapshot(args)) = parse("blksnap snapshot /dev/a /dev/b -- ls -l") else {
            panic!("not parsed");
        };
        assert_eq!(args.devices.len(), 2);
        assert_eq!(args.command, ["ls", "-l"]);
    }

    #[test]
    fn a_watch_needs_no_number() {
        for (line, seconds) in [
            ("blksnap status --watch", Some(2.0)),
            ("blksnap status --watch 0.5 --json", Some(0.5)),
            ("blksnap status --watch=7", Some(7.0)),
            ("blksnap -q status", None),
        ] {
            let Ok(Command::Status(args)) = parse(line) else {
                panic!("not parsed: {line}");
            };
            assert_eq!(args.watch.map(|time| time.as_secs_f64()), seconds, "{line}");
        }
    }
}
