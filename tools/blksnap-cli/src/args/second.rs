// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands of the tool of 2025, for the scripts that call it, as far as that of 2022 has none of
//! the same name; and how those with the same name are told apart.

use std::path::PathBuf;

use blksnap::{Interface, SnapshotId};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::legacy::PlaceArgs;

/// A control interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Abi {
    /// That of 2022, /dev/blksnap
    #[value(name = "1")]
    First,
    /// That of 2025, /dev/blksnap-control
    #[value(name = "2")]
    Second,
}

impl From<Abi> for Interface {
    fn from(abi: Abi) -> Self {
        match abi {
            Abi::First => Self::First,
            Abi::Second => Self::Second,
        }
    }
}

/// Which of two commands with one name is meant.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct AbiArg {
    /// The tool whose command is meant: 1 is that of 2022, 2 that of 2025 [default: as the other
    /// options, or the snapshot, tell; else 1]
    #[arg(long, value_name = "1|2", hide_possible_values = true)]
    pub abi: Option<Abi>,
}

/// The commands of the tool of 2025 alone.
#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Second {
    /// Begin to track a device
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap attach --device=/dev/vda"
    )]
    Attach {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
    },
    /// Stop tracking a device
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap detach --device=/dev/vda"
    )]
    Detach {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
    },
    /// Print what is known of the changes of a device
    #[command(
        name = "cbtinfo",
        infer_long_args = true,
        after_help = "Example:\n  blksnap cbtinfo --device=/dev/vda"
    )]
    CbtInfo {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
    },
    /// Write the change map of a device to a file
    #[command(
        name = "readcbtmap",
        infer_long_args = true,
        after_help = "Example:\n  blksnap readcbtmap --device=/dev/vda --file=/tmp/vda.map"
    )]
    ReadCbtMap {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
        /// The file
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Mark blocks as changed: those of a file, or ranges of a device
    #[command(
        name = "markdirtyblock",
        infer_long_args = true,
        after_help = "Examples:\n  blksnap markdirtyblock --file=/var/lib/app/scratch\n  blksnap markdirtyblock --device=/dev/vda --ranges 2048:8 4096:16"
    )]
    MarkDirtyBlock(PlaceArgs),
    /// Print the image of a device, and whether that is good
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  mount -o ro,norecovery,loop $(blksnap snapshot_info --device=/dev/vda --field=image) /mnt"
    )]
    SnapshotInfo {
        /// The device
        #[arg(short, long)]
        device: PathBuf,
        /// Print only the value of this
        #[arg(short, long)]
        field: Option<Field>,
    },
    /// Add a device to a snapshot
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap snapshot_add --id=$id --device=/dev/vda"
    )]
    SnapshotAdd {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
        /// The device, which is tracked from now on if it was not
        #[arg(short, long)]
        device: PathBuf,
    },
    /// Wait until a snapshot is lost, or ends
    #[command(
        infer_long_args = true,
        after_help = "Example:\n  blksnap snapshot_watcher --id=$id &"
    )]
    SnapshotWatcher {
        /// The snapshot
        #[arg(short, long)]
        id: SnapshotId,
    },
}

/// A line of `snapshot_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Field {
    /// The path of the image
    Image,
    /// 0, or a negative errno
    ErrorCode,
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::super::{Command, Legacy};

    const ID: &str = "00112233-4455-4677-8899-aabbccddeeff";

    #[test]
    fn the_options_of_2025_are_taken_in_both_forms() {
        for line in [
            "blksnap attach --device=/dev/sda".to_owned(),
            "blksnap detach -d /dev/sda".into(),
            "blksnap cbtinfo --device /dev/sda".into(),
            "blksnap readcbtmap -d /dev/sda -f /tmp/map".into(),
            "blksnap markdirtyblock --file=/tmp/x".into(),
            "blksnap markdirtyblock -d /dev/sda -r 0:8 16:8".into(),
            "blksnap markdirtyblock --device=/dev/sda --ranges=0:8 16:8".into(),
            "blksnap snapshot_info --device=/dev/sda".into(),
            "blksnap snapshot_info --device=/dev/sda --field error_code".into(),
            "blksnap snapshot_info -d /dev/sda --field=image".into(),
            format!("blksnap snapshot_add --id={ID} --device=/dev/sda"),
            format!("blksnap snapshot_watcher -i {ID}"),
        ] {
            let parsed = parse(&line);
            assert!(
                matches!(parsed, Ok(Command::Second(_))),
                "{line}: {parsed:?}"
            );
        }
        for line in [
            "blksnap attach".to_owned(),
            "blksnap attach --device=/dev/sda --json".into(),
            "blksnap snapshot_info --device=/dev/sda --field=size".into(),
            "blksnap markdirtyblock -d /dev/sda".into(),
            "blksnap snapshot_create --file=/tmp -d /dev/sda".into(),
            "blksnap snapshot_create --limit=1G -d /dev/sda".into(),
            "blksnap snapshot_create --file=/tmp --limit=much".into(),
            "blksnap version --abi=3".into(),
            format!("blksnap snapshot_add --id={ID}"),
        ] {
            assert!(parse(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn storage_is_given_to_a_snapshot_of_2025() {
        let parsed = parse("blksnap snapshot_create --file=/tmp -l 2G --device=/dev/a -d /dev/b");
        let Ok(Command::Legacy(Legacy::SnapshotCreate {
            device,
            file,
            limit,
            abi,
        })) = parsed
        else {
            panic!("not parsed");
        };
        assert_eq!(device.len(), 2);
        assert_eq!(file, Some("/tmp".into()));
        assert_eq!(limit.map(|limit| limit.0), Some(2 << 30));
        assert_eq!(abi.abi, None);
        assert!(parse("blksnap snapshot_create -f /tmp -l 64M").is_ok());
        assert!(parse("blksnap version --abi=2").is_ok());
        assert!(parse(&format!("blksnap snapshot_take -i {ID} --abi 2")).is_ok());
    }
}
