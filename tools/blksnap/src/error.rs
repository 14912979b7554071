// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can go wrong, said so that a person knows what failed, on what, why, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::id::{DevId, SnapshotId};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The control device can't be opened.
    #[error("cannot open {}: {errno}: {}", path.display(), open_advice(*errno))]
    Open {
        /// The control device.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// The module refused a command.
    #[error("{command} {subject}: {}{errno}", meaning(*command, *errno))]
    Command {
        /// Which.
        command: Command,
        /// On what.
        subject: String,
        /// The module's answer.
        errno: Errno,
    },
    /// The module told of an event this crate does not know.
    #[error("the module sent an event with the unknown code {0}: it is newer than this program")]
    UnknownEvent(u32),
    /// Something else was named where a block device is needed.
    #[error("{}: not a block device", .0.display())]
    NotBlockDevice(PathBuf),
    /// A file can't serve as difference storage.
    #[error("{}: cannot be difference storage: {reason}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An operation on a file failed.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// The snapshot of a session was destroyed by somebody else.
    #[error("the snapshot {0} is gone: somebody else has destroyed it, or unloaded the module")]
    Gone(SnapshotId),
    /// The snapshot no longer shows the instant it was taken at.
    #[error(
        "the snapshot of {} is lost: {}{}",
        device.describe(),
        corruption(*errno),
        trouble.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
    )]
    Corrupted {
        /// The original device.
        device: DevId,
        /// The module's reason.
        errno: Errno,
        /// What went wrong when storage was appended, if that is why.
        trouble: Option<String>,
    },
}

impl Error {
    /// Wraps the error of an operation on a file.
    pub(crate) fn file(
        action: &'static str,
        path: impl AsRef<Path>,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            action,
            path: path.as_ref().to_owned(),
            cause: cause.into(),
        }
    }

    /// The module's answer, if it was the module that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open { errno, .. }
            | Self::Command { errno, .. }
            | Self::Corrupted { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The commands of the control interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is the method of Control or v2::Device with its name; SnapshotCreateAt is v2::Control's"
)]
pub enum Command {
    Version,
    TrackerRemove,
    TrackerCollect,
    TrackerReadCbtMap,
    TrackerMarkDirtyBlocks,
    SnapshotCreate,
    SnapshotDestroy,
    SnapshotAppendStorage,
    SnapshotTake,
    SnapshotCollect,
    SnapshotCollectImages,
    SnapshotWaitEvent,
    SnapshotUnused,
    Bind,
    SnapshotCreateAt,
    Attach,
    Detach,
    CbtInfo,
    CbtMap,
    CbtDirty,
    SnapshotAdd,
    SnapshotInfo,
    Stat,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "cannot get the version of the module",
            Self::TrackerRemove => "cannot stop tracking",
            Self::TrackerCollect => "cannot list the trackers",
            Self::TrackerReadCbtMap => "cannot read the change map of",
            Self::TrackerMarkDirtyBlocks => "cannot mark changed blocks of",
            Self::SnapshotCreate => "cannot create a snapshot of",
            Self::SnapshotDestroy => "cannot destroy the snapshot",
            Self::SnapshotAppendStorage => "cannot append storage to the snapshot",
            Self::SnapshotTake => "cannot take the snapshot",
            Self::SnapshotCollect => "cannot list the snapshots",
            Self::SnapshotCollectImages => "cannot list the images of the snapshot",
            Self::SnapshotWaitEvent => "cannot wait for an event of the snapshot",
            Self::SnapshotUnused => "cannot tell what was not used to the snapshot",
            Self::Bind => "cannot bind snapshots to this process",
            Self::SnapshotCreateAt => "cannot create a snapshot with its storage at",
            Self::Attach => "cannot begin to track",
            Self::Detach => "cannot stop tracking",
            Self::CbtInfo => "cannot tell what is known of the changes of",
            Self::CbtMap => "cannot read the change map of",
            Self::CbtDirty => "cannot mark changed blocks of",
            Self::SnapshotAdd => "cannot add to the snapshot:",
            Self::SnapshotInfo => "cannot tell of the image of",
            Self::Stat => "cannot tell the counters of",
        })
    }
}

/// What to do when the control device can't be opened.
fn open_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            "the blksnap module is not loaded; load it with `modprobe blksnap`"
        }
        Errno::ACCESS | Errno::PERM => "only root may control snapshots",
        _ => "is the blksnap module loaded?",
    }
}

/// What an answer means for a command; ends with a separator, or is empty.
fn meaning(command: Command, errno: Errno) -> &'static str {
    use Command as C;
    match (command, errno) {
        (_, Errno::NOTTY) => "the module does not know this command: ",
        (C::TrackerRemove | C::TrackerReadCbtMap, Errno::NODATA) => "the device is not tracked: ",
        (C::TrackerRemove | C::Detach, Errno::BUSY) => {
            "it is part of a snapshot, which must be destroyed first: "
        }
        (C::TrackerReadCbtMap, Errno::PERM) => {
            "the map can be read only while a snapshot of the device is held: "
        }
        (C::TrackerMarkDirtyBlocks, Errno::NODEV) => "neither a tracked device nor an image: ",
        (C::TrackerMarkDirtyBlocks | C::CbtDirty, Errno::INVAL) => {
            "a range is empty or not inside the device; none was marked: "
        }
        (C::SnapshotCreate, Errno::BUSY) => {
            "a device is already in a snapshot (`blksnap status` shows which): "
        }
        (C::SnapshotCreate | C::SnapshotTake | C::SnapshotAdd | C::Attach, Errno::OPNOTSUPP) => {
            "not all that is written to a device can be seen, or it is an image (`dmesg` tells): "
        }
        (C::SnapshotCreate, Errno::INVAL) => "no device, or one of them twice: ",
        (C::SnapshotDestroy, Errno::NODEV) => "there is no such snapshot: ",
        (
            C::SnapshotAppendStorage
            | C::SnapshotTake
            | C::SnapshotCollectImages
            | C::SnapshotWaitEvent
            | C::SnapshotUnused,
            Errno::SRCH,
        ) => "there is no such snapshot: ",
        (C::SnapshotAppendStorage, Errno::INVAL) => {
            "a range is empty, not inside the device, not in its blocks, or given before, or the blocks are larger \
             than those of a captured device (`dmesg` tells); none was used: "
        }
        (C::SnapshotAppendStorage, Errno::ROFS) => "the device is read-only: ",
        (C::SnapshotTake, Errno::ALREADY) => "it was taken before: ",
        (C::SnapshotTake, Errno::FAULT) => "it has no difference storage yet: ",
        (C::SnapshotTake, Errno::NODEV) => "it has no devices: ",
        (C::SnapshotTake, Errno::TIMEDOUT) => {
            "the writes of a device do not come to an end (`dmesg` tells of which): "
        }
        (C::SnapshotCollectImages | C::SnapshotUnused, Errno::NODEV) => "it has not been taken: ",
        (C::SnapshotUnused, Errno::NOENT) => "the device is not in it: ",
        (C::SnapshotUnused, Errno::PERM) => "it belongs to another process: ",
        (C::SnapshotUnused, Errno::IO) => "it is lost: ",
        (C::SnapshotUnused, Errno::INVAL) => {
            "a range is empty or not inside the device; none was used: "
        }
        (_, errno) => meaning_v2(command, errno),
    }
}

/// The same for the commands that only the second interface has.
fn meaning_v2(command: Command, errno: Errno) -> &'static str {
    use Command as C;
    match (command, errno) {
        (C::Attach, Errno::NOENT) => {
            "the blksnap module is not loaded; load it with `modprobe blksnap`: "
        }
        (
            C::Detach | C::CbtInfo | C::CbtMap | C::CbtDirty | C::SnapshotInfo | C::Stat,
            Errno::NOENT,
        ) => "the device is not tracked: ",
        (C::CbtMap, Errno::NODATA) => "its map ends before: ",
        (C::SnapshotAdd, Errno::SRCH) => "there is no such snapshot: ",
        (C::SnapshotAdd, Errno::ALREADY) => "it is in this snapshot already: ",
        (C::SnapshotAdd, Errno::BUSY) => {
            "it is in another snapshot (`blksnap status` shows which), the snapshot was taken before, or the difference \
             storage is on it in a way that does not allow it (`dmesg` tells): choose another file system for that: "
        }
        (C::SnapshotCreateAt, Errno::INVAL) => "neither a directory nor a file nor a device: ",
        (C::SnapshotCreateAt, Errno::BUSY) => "it is in use: ",
        (C::SnapshotCreateAt, Errno::OPNOTSUPP | Errno::ISDIR) => {
            "its file system has no unnamed files (O_TMPFILE), or cannot allocate space for a file; name a file there, \
             or another file system: "
        }
        (C::SnapshotCreateAt, Errno::NOSPC) => {
            "there is too little space, or it is too small and may not become larger: "
        }
        _ => "",
    }
}

/// Why a snapshot was lost.
fn corruption(errno: Errno) -> String {
    match errno {
        Errno::NOSPC => "its difference storage is full; give it more, or destroy it sooner".into(),
        Errno::NOMEM => "the kernel had no memory to save old data".into(),
        errno => format!("{errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_on_what_and_why() {
        let error = Error::Command {
            command: Command::SnapshotCreate,
            subject: "/dev/vda".into(),
            errno: Errno::BUSY,
        };
        let text = error.to_string();
        assert!(text.starts_with("cannot create a snapshot of /dev/vda: a device is already"));
        assert!(text.contains("busy"), "{text}");

        for command in [
            Command::SnapshotCreate,
            Command::SnapshotAdd,
            Command::Attach,
        ] {
            let error = Error::Command {
                command,
                subject: "/dev/sda".into(),
                errno: Errno::OPNOTSUPP,
            };
            assert!(error.to_string().contains("`dmesg` tells"), "{error}");
        }

        let lost = Error::Corrupted {
            device: DevId { major: 8, minor: 0 },
            errno: Errno::NOSPC,
            trouble: Some("the limit of 64 MiB is reached".into()),
        };
        assert!(
            lost.to_string()
                .contains("storage is full; give it more, or destroy it sooner (the limit")
        );
    }
}
