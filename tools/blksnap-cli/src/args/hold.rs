// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap snapshot` and `blksnap status`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueHint};

use super::StorageArgs;
use super::storage::STORAGE_HELP;

#[derive(Debug, ClapArgs)]
#[command(after_help = format!("Examples:\n  \
    blksnap snapshot /dev/vda --storage /var/tmp -- unshare -m sh -c 'mount -o ro,norecovery,loop $BLKSNAP_IMAGE /mnt && tar cf /backup/vda.tar /mnt'\n  \
    blksnap snapshot vda1 vdb -- sh -c 'for image in $BLKSNAP_IMAGES; do dd if=$image bs=1M | md5sum; done'\n  \
    blksnap snapshot /home --limit 20G\n  \
    blksnap snapshot vda1 --leave-out-unused -- sh -c 'zstd -o /backup/vda1.zst <$BLKSNAP_IMAGE'\n\n\
    (norecovery leaves the journal as it is, and loop has nothing written to the image, not even by ext4, which would \
    delete what was unlinked while open; xfs needs nouuid, too, as long as the original is mounted.)\n\n\
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
    /// Do not keep what the file systems on the devices do not use at the instant, as `blksnap backup` does not: it is
    /// zeros in the images, and writes to it take no difference storage. For a command that copies file systems;
    /// without it, the images are the whole devices, with what was deleted, too
    #[arg(long)]
    pub leave_out_unused: bool,
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

/// A time to wait, in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = text
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|&time| time >= Duration::from_millis(100))
        .ok_or_else(|| format!("`{text}` is not a number of seconds of 0.1 or more"))
}
