// SPDX-License-Identifier: GPL-2.0-or-later

//! What can be asked for on the command line. The manual pages and the completions of shells are
//! made of these definitions, too.

mod backup;
mod health;
mod hold;
pub mod legacy;
mod prune;
mod restore;
pub mod second;
mod storage;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::above;
pub use backup::{Backup, Init};
pub use health::CheckHealth;
pub use hold::{Snapshot, Status};
pub use legacy::{Legacy, PlaceArgs};
pub use prune::Prune;
pub use restore::{List, Mount, Restore, Verify};
pub use second::{Abi, AbiArg, Field, Second};
pub use storage::StorageArgs;

/// Snapshots of block devices, and backups of only what has changed
#[derive(Debug, Parser)]
#[command(name = "blksnap", version, max_term_width = 100)]
#[command(after_help = "Examples:\n  \
    blksnap init /backup\n  \
    blksnap backup /dev/vda /dev/vdb --to /backup\n  \
    blksnap restore /backup --to vda=/dev/vdc\n  \
    blksnap prune /backup --keep 14\n  \
    blksnap snapshot /home -- unshare -m sh -c 'mount -o ro,norecovery,loop $BLKSNAP_IMAGE /mnt && restic backup /mnt'\n  \
    blksnap status --watch\n\n\
    A device is named by its path, or a link to it; the kernel's name (vda1); its number (254:1); UUID=, LABEL=, \
    PARTUUID= or PARTLABEL= as in fstab; or where it is mounted (/home), if that file system is on this device only.\n\n\
    Sizes are in bytes, or with a suffix: 512K, 64M, 1.5G, 2T (powers of 1024).\n\n\
    Exit codes: 0 done; 1 failed or wrongly used; 3 done, but for what is named; 128 + N ended by signal N. `blksnap snapshot` with a command has that \
    of the command; `blksnap check-health` those of monitoring plugins.")]
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
    /// Tell whether all is well, for monitoring
    CheckHealth(CheckHealth),
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

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
            "blksnap backup /dev/sda --all --to /tmp",
            "blksnap backup /dev/sda --except /dev/sdb --to /tmp",
            "blksnap backup /dev/sda --dry-run --to /tmp",
            "blksnap restore /tmp",
            "blksnap restore /tmp --machine",
            "blksnap restore /tmp --disk vda=/dev/vdb",
            "blksnap restore /tmp --to /dev/vdb --grow",
            "blksnap restore /tmp --machine --disk vda=/dev/vdb --to /dev/vdb",
            "blksnap backup /dev/sda --to /tmp --format tar",
            "blksnap verify",
            "blksnap mount /tmp",
            "blksnap prune /tmp",
            "blksnap prune /tmp --keep 0",
            "blksnap prune /tmp --keep 3 --keep-last 3",
            "blksnap prune /tmp --keep-within 3",
            "blksnap check-health /tmp --max-age 3",
            "blksnap check-health /tmp --min-free 101%",
            "blksnap backup /dev/sda --to /tmp --rate 0",
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
