// SPDX-License-Identifier: GPL-2.0-or-later

//! What all commands take that hold a snapshot.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueHint};

use super::Abi;
use crate::size::Size;

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
pub const STORAGE_HELP: &str = "\
    Difference storage on a captured device: a file system may give a file that grows after the take blocks of files that \
    were deleted since, and as storage these blocks would be lost for the image. So there, all of the limit is allocated \
    before the take, and nothing is added to it. Elsewhere it grows as it is needed. Nobody can change, move or remove it \
    until the snapshot is destroyed: the kernel holds it, or, with an older module, its files are immutable (chattr +i).\n\n\
    File systems above a device (on its partitions, LVM, LUKS, md) are frozen for the take; what could not be is named.";
