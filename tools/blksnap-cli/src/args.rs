// SPDX-License-Identifier: GPL-2.0-or-later

//! What can be asked for on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use blksnap::{SectorRange, SnapshotId};
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::size::Size;

/// Snapshots of block devices, and backups of only what has changed
#[derive(Debug, Parser)]
#[command(name = "blksnap", version, max_term_width = 100)]
#[command(
    after_help = "Sizes are in bytes, or with a suffix: 512K, 64M, 1.5G, 2T (powers of 1024).\n\
    Exit codes: 0 done; 1 failed or wrongly used; 128 + N ended by signal N."
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up devices as they are at one instant, while they are in use
    Backup(Backup),
    /// Write a backup to a device or a new file
    Restore(Restore),
    /// Hold a snapshot while a command runs
    Snapshot(Snapshot),
    /// Show what is tracked and which snapshots there are
    Status(Status),
    #[command(flatten)]
    Legacy(Legacy),
}

/// Where the old contents of overwritten blocks go while a snapshot is held.
#[derive(Debug, ClapArgs)]
pub struct StorageArgs {
    /// Directory, or beginning of file names, for the difference storage; any file system on a
    /// block device of its own, also one that is captured, where all of it is reserved before
    #[arg(long, value_name = "DIR|PREFIX")]
    pub storage: Option<PathBuf>,
    /// Give storage in portions of at least this size [default: what the module asks for]
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "0",
        hide_default_value = true
    )]
    pub portion: Size,
    /// Never give more storage than this; the snapshot fails when it is not enough [default where it
    /// is reserved: a fifth of the devices, at least 1G, at most half of the free space]
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Size>,
    /// Reserve all of the storage before the take, also where no device of this snapshot is: needed
    /// if another snapshot may capture that file system meanwhile
    #[arg(long)]
    pub reserve: bool,
}

/// Why storage is reserved on a captured file system.
const STORAGE_HELP: &str = "\
    Difference storage on a captured device: a file system may give a file that grows after the take blocks of files that \
    were deleted since, and as storage these blocks would be lost for the image. So there, one file of the limit is \
    allocated before the take, and given to the module piece by piece; nothing is added to it. Elsewhere, files are made \
    as they are needed.";

#[derive(Debug, ClapArgs)]
#[command(after_help = format!("Examples:\n  \
    blksnap backup /dev/vda /dev/vdb --to /backup\n  \
    blksnap backup /dev/vda --to /backup --incremental --verify --storage /var/tmp\n\n\
    The directory gets one raw image a device, with holes where there are only zeros, and manifest.json. A full backup \
    becomes valid at its end, all at once, and only then replaces the one before. An incremental one works on a reflinked \
    copy where the file system can do that, and is then as safe; elsewhere it changes the images in place, and the \
    manifest says `updating` meanwhile: if it is interrupted, the next backup is a full one.\n\n{STORAGE_HELP}"))]
pub struct Backup {
    /// The devices, captured at one instant
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<PathBuf>,
    /// Directory of the backup
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Copy only what changed since the last backup, where that is known; this is the default
    #[arg(long, conflicts_with = "full")]
    pub incremental: bool,
    /// Copy everything
    #[arg(long)]
    pub full: bool,
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
    #[command(flatten)]
    pub storage: StorageArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap restore /backup --to /dev/vdc\n  \
    blksnap restore /backup --to vda=/dev/vdc --to vdb=/dev/vdd\n  \
    blksnap restore /backup --to vda=/tmp/vda.img\n\n\
    Everything is checked before the first write: the backup, the size of each target, and that it is not in use.")]
pub struct Restore {
    /// Directory of the backup
    pub backup: PathBuf,
    /// Where to write: a block device that is not in use, or a file that does not exist yet; with
    /// the name of the device in the backup where it holds several
    #[arg(long, required = true, value_name = "[NAME=]TARGET")]
    pub to: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = format!("Example:\n  \
    blksnap snapshot /dev/vda --storage /var/tmp -- sh -c 'mount -o ro,noload $BLKSNAP_IMAGE /mnt && tar c /mnt'\n\n\
    The command finds the paths of the images in BLKSNAP_IMAGES (in the order of the devices), in BLKSNAP_IMAGE_<NAME> \
    for each device, and in BLKSNAP_IMAGE if there is one; the snapshot in BLKSNAP_ID. Without a command, the snapshot \
    is held until a signal comes. It is destroyed in any case.\n\n{STORAGE_HELP}"))]
pub struct Snapshot {
    /// The devices, captured at one instant
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<PathBuf>,
    #[command(flatten)]
    pub storage: StorageArgs,
    /// What to run, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub struct Status {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands of the older tool, one for each command of the module.
#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Legacy {
    /// Print the version of the module
    #[command(infer_long_args = true)]
    Version,
    /// Stop tracking a device
    #[command(infer_long_args = true)]
    TrackerRemove {
        #[arg(short, long)]
        device: PathBuf,
    },
    /// List the tracked devices
    #[command(infer_long_args = true)]
    TrackerCollect,
    /// Write the change map of a device to a file
    #[command(name = "tracker_readcbtmap", infer_long_args = true)]
    TrackerReadCbtMap {
        #[arg(short, long)]
        device: PathBuf,
        /// The file
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Mark blocks as changed: those of a file, or ranges of a device
    #[command(name = "tracker_markdirtyblock", infer_long_args = true)]
    TrackerMarkDirtyBlock(PlaceArgs),
    /// Prepare a snapshot, and print its id
    #[command(infer_long_args = true)]
    SnapshotCreate {
        /// A device; give one option for each
        #[arg(short, long, required = true, num_args = 1..)]
        device: Vec<PathBuf>,
    },
    /// Give a snapshot storage: the blocks of a file, or ranges of a device
    #[command(name = "snapshot_appendstorage", infer_long_args = true)]
    SnapshotAppendStorage {
        #[arg(short, long)]
        id: SnapshotId,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Capture the devices of a snapshot
    #[command(infer_long_args = true)]
    SnapshotTake {
        #[arg(short, long)]
        id: SnapshotId,
    },
    /// End a snapshot
    #[command(infer_long_args = true)]
    SnapshotDestroy {
        #[arg(short, long)]
        id: SnapshotId,
    },
    /// Wait for an event of a snapshot, and print it
    #[command(name = "snapshot_waitevent", infer_long_args = true)]
    SnapshotWaitEvent {
        #[arg(short, long)]
        id: SnapshotId,
        /// How long to wait, in milliseconds
        #[arg(short, long)]
        timeout: u32,
    },
    /// List the snapshots and their images
    #[command(infer_long_args = true)]
    SnapshotCollect {
        /// Only this one
        #[arg(short, long)]
        id: Option<SnapshotId>,
    },
    /// Give a snapshot storage whenever it asks, until it ends
    ///
    /// Each file is allocated when it is asked for. Do not use this with a path on a captured
    /// device: after the take, a new file may get blocks of files that were deleted since, which
    /// are then lost for the image. `blksnap snapshot` and `blksnap backup` reserve the storage
    /// before instead.
    #[command(infer_long_args = true)]
    StretchSnapshot {
        #[arg(short, long)]
        id: SnapshotId,
        /// Beginning of the file names; usually a directory and a slash
        #[arg(short, long)]
        path: PathBuf,
        /// No more storage than this, in MiB
        #[arg(short, long)]
        limit: Option<u64>,
    },
}

/// Blocks of a device: those of a file on it, or ranges.
#[derive(Debug, ClapArgs)]
#[group(id = "place")]
pub struct PlaceArgs {
    /// A file, whose extents are meant, on its device
    #[arg(short, long, required_unless_present = "device", conflicts_with_all = ["device", "ranges"])]
    pub file: Option<PathBuf>,
    /// A device
    #[arg(short, long, requires = "ranges")]
    pub device: Option<PathBuf>,
    /// Ranges of the device in sectors of 512 bytes, as START:COUNT
    #[arg(short, long, alias = "range", num_args = 1.., requires = "device", value_name = "S:N")]
    pub ranges: Vec<SectorRange>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Args::try_parse_from(line.split_whitespace()).map(|args| args.command)
    }

    #[test]
    fn the_definitions_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_older_options_are_taken_in_both_forms() {
        let id = "00112233-4455-4677-8899-aabbccddeeff";
        for line in [
            "blksnap version".to_owned(),
            "blksnap tracker_remove --device=/dev/sda".into(),
            "blksnap tracker_remove -d /dev/sda".into(),
            "blksnap tracker_collect".into(),
            "blksnap tracker_readcbtmap -d /dev/sda --file /tmp/map".into(),
            "blksnap tracker_markdirtyblock --file=/tmp/x".into(),
            "blksnap tracker_markdirtyblock -d /dev/sda -r 0:8 16:8".into(),
            "blksnap tracker_markdirtyblock -d /dev/sda --ranges 0:8 --ranges=16:8".into(),
            "blksnap snapshot_create -d /dev/sda --device=/dev/sdb --device /dev/sdc".into(),
            format!("blksnap snapshot_appendstorage -i {id} -f /tmp/x"),
            format!("blksnap snapshot_appendstorage --id={id} -d /dev/sda --range=0:8"),
            format!("blksnap snapshot_take --id={id}"),
            format!("blksnap snapshot_destroy -i {id}"),
            format!("blksnap snapshot_waitevent -i {id} -t 100"),
            "blksnap snapshot_collect".into(),
            format!("blksnap snapshot_collect --id {id}"),
            format!("blksnap stretch_snapshot --id={id} --path=/tmp/ --limit=1024"),
        ] {
            let parsed = parse(&line);
            assert!(
                matches!(parsed, Ok(Command::Legacy(_))),
                "{line}: {parsed:?}"
            );
        }
    }

    #[test]
    fn the_order_of_devices_is_kept() {
        let Ok(Command::Legacy(Legacy::SnapshotCreate { device })) =
            parse("blksnap snapshot_create --device /b -d /a --device=/c")
        else {
            panic!("not parsed");
        };
        assert_eq!(device, ["/b", "/a", "/c"].map(PathBuf::from));
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
}
