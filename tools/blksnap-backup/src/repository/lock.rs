// SPDX-License-Identifier: GPL-2.0-or-later

//! The locks of a directory of backups: `.lock` is held by who changes it, `.readers` by those who
//! read from it, and by a prune alone.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::private;

/// How often a lock is tried again.
const LOCK_TRIES: u32 = 20;

/// How long is waited before that.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Takes a lock that is kept until the file is closed.
pub fn lock(dir: &Path, name: &str, exclusive: bool) -> Result<File> {
    let path = dir.join(name);
    let failed = || format!("cannot lock {}", path.display());
    // A lock that is there already can be shared without a right to write.
    let file = match private::open_or_create(&path) {
        Err(_) if !exclusive => File::open(&path),
        file => file,
    };
    let file = file.with_context(failed)?;
    let how = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    let mut locked = flock(&file, how);
    for _ in 0..LOCK_TRIES {
        if locked != Err(Errno::WOULDBLOCK) {
            break;
        }
        // Who holds it may be about to end; or has a child that has not executed its program yet,
        // and so has the lock, too.
        std::thread::sleep(LOCK_PAUSE);
        locked = flock(&file, how);
    }
    match locked {
        Err(Errno::WOULDBLOCK) if name == ".readers" && exclusive => bail!(
            "the backups in {} are being read; try again when that is done",
            dir.display()
        ),
        Err(Errno::WOULDBLOCK) if exclusive => bail!(
            "another backup to {} is running, or a prune of it",
            dir.display()
        ),
        Err(Errno::WOULDBLOCK) => bail!(
            "the backups in {} are being pruned; try again when that is done",
            dir.display()
        ),
        locked => locked.with_context(failed)?,
    }
    Ok(file)
}

/// Whether somebody has a lock that only one can have.
pub fn is_held(path: &Path) -> bool {
    // Whoever tries to get it meanwhile tries again.
    File::open(path).is_ok_and(|file| {
        flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    })
}

/// Whether an error says that a directory can't be written to.
pub fn is_readonly(error: &anyhow::Error) -> bool {
    let kind = error
        .downcast_ref::<std::io::Error>()
        .map(|error| error.kind());
    use std::io::ErrorKind::*;
    matches!(kind, Some(ReadOnlyFilesystem | PermissionDenied | NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Repository;

    #[test]
    fn who_is_in_the_way_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let fails = |result: Result<Repository>, why: &str| {
            let error = result.map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(why), "{error:#}");
        };
        {
            let _backup = Repository::create(dir.path()).unwrap();
            fails(Repository::create(dir.path()), "another backup");
            fails(Repository::change(dir.path()), "another backup");
            let _reader = Repository::read(dir.path()).unwrap();
        }
        {
            let _reader = Repository::read(dir.path()).unwrap();
            let _other = Repository::read(dir.path()).unwrap();
            fails(Repository::change(dir.path()), "being read");
        }
        let _prune = Repository::change(dir.path()).unwrap();
        fails(
            Repository::read(dir.path()).map(|(one, _)| one),
            "being pruned",
        );
    }
}
