// SPDX-License-Identifier: GPL-2.0-or-later

//! `stretch_snapshot`: a service that gives a snapshot storage whenever it asks, until it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use blksnap::storage::StorageFile;
use blksnap::{Control, EventKind, Sectors, SnapshotId};
use rustix::io::Errno;

use super::allocated;
use crate::output::print;
use crate::signals::Signals;

/// How long one wait is; a bound on how late a signal is seen.
const WAIT: Duration = Duration::from_millis(500);

/// Serves a snapshot. The files are removed when it has ended; when the service is ended before,
/// they stay.
pub fn run(control: &Control, id: SnapshotId, prefix: &Path, limit_mib: Option<u64>) -> Result<()> {
    let signals = Signals::catch()?;
    let limit = limit_mib.map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20));
    let mut files: Vec<StorageFile> = Vec::new();
    let mut given = Sectors(0);
    loop {
        signals.check()?;
        let event = match control.wait_event(id, WAIT) {
            Ok(Some(event)) => event,
            Ok(None) => continue,
            Err(error) => match error.errno() {
                Some(Errno::INTR) => continue,
                Some(Errno::SRCH) => break,
                _ => return Err(error.into()),
            },
        };
        match event.kind {
            EventKind::LowFreeSpace { requested } => {
                if given.bytes().saturating_add(requested.bytes()) > limit {
                    eprintln!("blksnap: {id} asks for {requested} more, which is past the limit");
                    continue;
                }
                let path = file_name(prefix, files.len());
                let file = match StorageFile::create(&path, requested.bytes()) {
                    Ok(file) => file,
                    Err(error) => {
                        eprintln!("blksnap: {error}");
                        continue;
                    }
                };
                let extents = file.extents().clone();
                files.push(file);
                control.snapshot_append_storage(id, extents.device, &extents.ranges)?;
                given.0 += requested.0;
                for range in &extents.ranges {
                    print(allocated(range))?;
                }
            }
            EventKind::Corrupted { device, errno } => {
                eprintln!("blksnap: {id}: the snapshot of {device} is lost: {errno}");
            }
        }
    }
    for file in files {
        file.remove()?;
    }
    Ok(())
}

/// The path of the file number `index`.
fn file_name(prefix: &Path, index: usize) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("diff_storage#{index}"));
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_prefix() {
        assert_eq!(
            file_name(Path::new("/a/"), 0),
            Path::new("/a/diff_storage#0")
        );
        assert_eq!(
            file_name(Path::new("/a/b."), 12),
            Path::new("/a/b.diff_storage#12")
        );
    }
}
