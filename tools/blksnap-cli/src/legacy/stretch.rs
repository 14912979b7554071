// SPDX-License-Identifier: GPL-2.0-or-later

//! `stretch_snapshot`: a service that gives a snapshot storage whenever it asks, until it ends.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use blksnap::storage::StorageFile;
use blksnap::{Control, Error, EventKind, Sectors, SnapshotId};
use rustix::io::Errno;

use super::allocated;
use crate::output::print;
use crate::signals::Signals;
use crate::size::Size;

/// How long one wait is; a bound on how late a signal is seen.
const WAIT: Duration = Duration::from_millis(500);

/// Serves a snapshot. The files are removed when it has ended; when the service is ended before,
/// they stay.
pub fn run(control: &Control, id: SnapshotId, prefix: &Path, limit_mib: Option<u64>) -> Result<()> {
    let signals = Signals::catch()?;
    let mut storage = Storage {
        prefix,
        next: 0,
        left: limit_mib.map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20)),
        files: Vec::new(),
    };
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
            // What fails now may be mended before the next event: the service goes on.
            EventKind::LowFreeSpace { requested } => match storage.give(control, id, requested) {
                Err(error) if error.errno() == Some(Errno::SRCH) => break,
                Err(error) => eprintln!("blksnap: {error}"),
                Ok(lines) => lines.iter().try_for_each(print)?,
            },
            EventKind::Corrupted { device, errno } => {
                let device = device.describe();
                eprintln!("blksnap: {id}: the snapshot of {device} is lost: {errno}");
            }
        }
    }
    storage.remove()
}

/// The files given to a snapshot.
struct Storage<'a> {
    prefix: &'a Path,
    /// The number of the next file.
    next: usize,
    /// Bytes that may still be given.
    left: u64,
    files: Vec<StorageFile>,
}

impl Storage<'_> {
    /// Makes and appends a file of the size asked for, or of what the limit leaves. Gives what the
    /// older tool prints.
    fn give(
        &mut self,
        control: &Control,
        id: SnapshotId,
        requested: Sectors,
    ) -> blksnap::Result<Vec<String>> {
        let bytes = requested.bytes().min(self.left);
        if bytes < requested.bytes() {
            eprintln!(
                "blksnap: {id} asks for {}, and the limit leaves {}",
                Size(requested.bytes()),
                Size(bytes)
            );
        }
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let file = self.create(bytes)?;
        let extents = file.extents().clone();
        // Before the module knows of it, so that it is removed after the snapshot only.
        self.files.push(file);
        self.left -= bytes;
        control.snapshot_append_storage(id, extents.device, &extents.ranges)?;
        Ok(extents.ranges.iter().map(allocated).collect())
    }

    /// Makes the next file. A number whose file is there, of a service that was killed or of another
    /// snapshot, is passed over.
    fn create(&mut self, bytes: u64) -> blksnap::Result<StorageFile> {
        loop {
            let path = file_name(self.prefix, self.next);
            let created = StorageFile::create(&path, bytes);
            let exists = matches!(&created, Err(Error::File { cause, .. })
                if cause.kind() == ErrorKind::AlreadyExists);
            if exists || created.is_ok() {
                self.next += 1;
            }
            if !exists {
                return created;
            }
        }
    }

    /// Removes the files, of a snapshot that has ended.
    fn remove(mut self) -> Result<()> {
        let files = std::mem::take(&mut self.files);
        let results: Vec<_> = files.into_iter().map(StorageFile::remove).collect();
        Ok(results.into_iter().collect::<blksnap::Result<()>>()?)
    }
}

impl Drop for Storage<'_> {
    /// Files that stay are removed by scripts with `rm`, as those of the older tool were.
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = file.make_changeable() {
                eprintln!("blksnap: {error}");
            }
        }
    }
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
