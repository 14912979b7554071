// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands of the tool of 2022, the older one: scripts call them, so their names and options stay
//! as they are. Where that of 2025 has one of the same name, its options are here, too.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use blksnap::{SectorRange, SnapshotId};
use clap::{Args as ClapArgs, Subcommand};

use super::second::{AbiArg, Second};
use crate::size::Size;

/// The commands of the older tool, one for each command of the module.
#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Legacy {
    /// Print the version of the module
    #[command(
        infer_long_args = true,
        after_help = "Examples:\n  blksnap version\n  blksnap version --abi=2"
    )]
    Version {
        #[command(flatten)]
        abi: AbiArg,
    },
    /// Stop tracking a device
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap tracker_remove --device=/dev/vda"
    )]
    TrackerRemove {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
    },
    /// List the tracked devices
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap tracker_collect"
    )]
    TrackerCollect,
    /// Write the change map of a device to a file
    #[command(
        name = "tracker_readcbtmap",
        infer_long_args = true,
        after_help = "Example:\n  blksnap tracker_readcbtmap --device=/dev/vda --file=/tmp/vda.map"
    )]
    TrackerReadCbtMap {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
        /// The file
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Mark blocks as changed: those of a file, or ranges of a device
    #[command(
        name = "tracker_markdirtyblock",
        infer_long_args = true,
        after_help = "Examples:\n  blksnap tracker_markdirtyblock --file=/var/lib/app/scratch\n  blksnap tracker_markdirtyblock --device=/dev/vda --ranges 2048:8 4096:16"
    )]
    TrackerMarkDirtyBlock(PlaceArgs),
    /// Prepare a snapshot, and print its id
    #[command(
        infer_long_args = true,
        after_help = "Examples:\n  id=$(blksnap snapshot_create --device=/dev/vda --device=/dev/vdb)\n  id=$(blksnap snapshot_create --device=/dev/vda --file=/var/tmp --limit=8G)\n\nWith --file and --limit, it is that of the tool of 2025."
    )]
    SnapshotCreate {
        /// A device; give one option for each
        #[arg(short, long, required_unless_present = "file", num_args = 1..)]
        device: Vec<PathBuf>,
        /// The storage, which the kernel is to hold: a directory, a file, or a device
        #[arg(short, long, requires = "limit")]
        file: Option<PathBuf>,
        /// No more storage than this, in bytes, or with K, M or G
        #[arg(short, long, requires = "file")]
        limit: Option<Size>,
        #[command(flatten)]
        abi: AbiArg,
    },
    /// Give a snapshot storage: the blocks of a file, or ranges of a device
    #[command(
        name = "snapshot_appendstorage",
        infer_long_args = true,
        after_help = "Examples:\n  fallocate -l 1G /var/tmp/storage\n  blksnap snapshot_appendstorage --id=$id --file=/var/tmp/storage\n  blksnap snapshot_appendstorage --id=$id --device=/dev/vdc --range=0:2097152"
    )]
    SnapshotAppendStorage {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Capture the devices of a snapshot
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap snapshot_take --id=$id"
    )]
    SnapshotTake {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
        #[command(flatten)]
        abi: AbiArg,
    },
    /// End a snapshot
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap snapshot_destroy --id=$id"
    )]
    SnapshotDestroy {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
        #[command(flatten)]
        abi: AbiArg,
    },
    /// Wait for an event of a snapshot, and print it
    #[command(
        name = "snapshot_waitevent",
        infer_long_args = true,
        after_help = "Example:\n  blksnap snapshot_waitevent --id=$id --timeout=1000"
    )]
    SnapshotWaitEvent {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
        /// How long to wait, in milliseconds
        #[arg(short, long)]
        timeout: u32,
        #[command(flatten)]
        abi: AbiArg,
    },
    /// List the snapshots and their images
    #[command(
        infer_long_args = true,
        after_help = "Examples:\n  blksnap snapshot_collect\n  blksnap snapshot_collect --id=$id\n  blksnap snapshot_collect --abi=2"
    )]
    SnapshotCollect {
        /// Only this snapshot; not with --abi=2
        #[arg(short, long)]
        id: Option<SnapshotId>,
        #[command(flatten)]
        abi: AbiArg,
    },
    /// Give a snapshot storage whenever it asks, until it ends
    ///
    /// Each file is allocated when it is asked for. Do not use this with a path on a captured
    /// device: after the take, a new file may get blocks of files that were deleted since, which
    /// are then lost for the image. `blksnap snapshot` and `blksnap backup` reserve the storage
    /// before instead.
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap stretch_snapshot --id=$id --path=/var/tmp/ --limit=4096 &"
    )]
    StretchSnapshot {
        /// The snapshot
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

/// Makes `--x v` of each `--x=v` for these commands: to them both were the same, and in both more
/// values could follow.
pub fn split_values(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let words: Vec<_> = words.collect();
    let named = words
        .iter()
        .skip(1)
        .find(|word| !word.as_bytes().starts_with(b"-"));
    let is_legacy = named
        .and_then(|word| word.to_str())
        .is_some_and(|name| Legacy::has_subcommand(name) || Second::has_subcommand(name));
    if !is_legacy {
        return words;
    }
    let split = |word: OsString| match word.to_str().and_then(|word| word.split_once('=')) {
        Some((option, value)) if option.starts_with("--") && !value.starts_with('-') => {
            vec![option.into(), value.into()]
        }
        _ => vec![word],
    };
    words.into_iter().flat_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

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
            "blksnap tracker_markdirtyblock -d /dev/sda --ranges=0:8 16:8".into(),
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
        let Ok(Command::Legacy(Legacy::SnapshotCreate { device, .. })) =
            parse("blksnap snapshot_create --device=/b /d -d /a --device=/c")
        else {
            panic!("not parsed");
        };
        assert_eq!(device, ["/b", "/d", "/a", "/c"].map(PathBuf::from));
    }
}
