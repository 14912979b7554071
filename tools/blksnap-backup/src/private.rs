// SPDX-License-Identifier: GPL-2.0-or-later

//! Files and directories for the owner alone. A backup has all that its device has: what only root
//! may read there, nobody else may read here, whatever the umask is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What others may do: nothing.
const FILE: u32 = 0o600;
const DIR: u32 = 0o700;
const OTHERS: u32 = 0o077;

/// Makes a file that is not there yet, to read and write it.
pub fn create_new(path: &Path) -> io::Result<File> {
    create(path, OpenOptions::new().create_new(true))
}

/// Makes a file, or empties one that is there.
pub fn replace(path: &Path) -> io::Result<File> {
    create(path, OpenOptions::new().create(true).truncate(true))
}

/// Opens a file that may have to be made.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // One that is there keeps its rights.
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create(true).truncate(false).mode(FILE).open(path)
        }
        opened => opened,
    }
}

fn create(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // The mode keeps it from others from the beginning; a umask may have taken more.
    let file = options.read(true).write(true).mode(FILE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE))?;
    Ok(file)
}

/// Makes a directory.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIR))
}

/// Makes a directory, and those above it, if it is not there.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR).create(path)
}

/// Takes all rights from others.
pub fn close(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(FILE))
}

/// Whether others have any right.
pub fn is_open(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.permissions().mode() & OTHERS != 0)
}
