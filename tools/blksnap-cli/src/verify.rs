// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap verify`: whether backups can be restored, found out by reading all of them.

mod mark;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use blksnap_backup::format::Reader;
use blksnap_backup::{
    BUFFER_SIZE, Buffer, Chain, Checked, Extent, Format, Layer, Manifest, Repository, Seen,
    Verified, Watch, is_zero, no_work, parts, read, unix_s,
};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::Serialize;

use crate::args;
use crate::opened;
use crate::output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::size::Size;

/// Checks what was asked for.
pub fn run(args: &args::Verify) -> Result<()> {
    let signals = Signals::catch()?;
    let mut report = verify(&args.backup, &signals)?;
    if args.mark_dirty && !report.damage.is_empty() {
        report.marked = mark::dirty(&args.backup, &report.damage)?;
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        for damage in &report.damage {
            output::print(format!("{}: {}", damage.backup, damage.what))?;
        }
        for marked in &report.marked {
            output::print(format!(
                "{}: {} marked as changed: the next incremental backup copies that again",
                marked.device,
                Size(marked.bytes)
            ))?;
        }
        if report.damage.is_empty() {
            output::print(format!(
                "{} backups checked, {} of data read: all good",
                report.backups.len(),
                Size(report.bytes_read)
            ))?;
        }
    }
    match report.damage.len() {
        0 => Ok(()),
        count => bail!(
            "{}: damage in {count} places; what is not damaged can be restored",
            args.backup.display()
        ),
    }
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The backups that were checked, with all they are based on.
    pub backups: Vec<String>,
    /// Bytes of data that were read and compared with their checksums.
    pub bytes_read: u64,
    /// All that is wrong.
    pub damage: Vec<Damage>,
    /// What was marked as changed.
    pub marked: Vec<mark::Marked>,
}

/// Something wrong.
#[derive(Debug, Serialize)]
pub struct Damage {
    /// The backup whose files are concerned.
    pub backup: String,
    /// The device, where it is one.
    pub device: Option<String>,
    /// The first byte of the device that is concerned, where it is data.
    pub start: Option<u64>,
    /// How many bytes.
    pub length: Option<u64>,
    /// In words.
    pub what: String,
}

/// Checks all backups in a directory, or the one whose directory is given.
pub fn verify(path: &Path, signals: &Signals) -> Result<Report> {
    let (repository, id) = Repository::read(path)?;
    opened::remark(&repository)?;
    let mut report = Report::default();
    let mut once = Once::default();
    let (all, began) = (id.is_none(), unix_s(SystemTime::now()));
    let backups = match id {
        Some(id) => {
            let manifest = repository.find(Some(&id));
            vec![(id, manifest)]
        }
        None => repository.backups()?,
    };
    if backups.is_empty() {
        bail!("there is no backup in {}", path.display());
    }
    for (id, manifest) in backups {
        report.backups.push(id.clone());
        match manifest {
            Ok(manifest) => check(&repository, &manifest, &mut once, &mut report, signals)?,
            Err(error) => report.add(&id, None, format!("{error:#}")),
        }
    }
    if all {
        note(&repository, began, &report);
    }
    Ok(report)
}

/// Notes that all was checked, for `blksnap check-health`. Where nothing can be written, it is not known.
fn note(repository: &Repository, began: u64, report: &Report) {
    let verified = Verified {
        unix_s: began,
        newest: report.backups.last().cloned().unwrap_or_default(),
        damaged: report.damage.len() as u64,
    };
    if let Err(error) = repository.note_verified(&verified) {
        let io = error.downcast_ref().map(io::Error::kind);
        if io != Some(io::ErrorKind::ReadOnlyFilesystem) {
            output::remark(format!("it is not noted that all was verified: {error:#}"));
        }
    }
}

/// What several backups need, and is read once.
#[derive(Default)]
pub struct Once {
    files: BTreeSet<PathBuf>,
    lists: Checked,
}

/// Checks one backup, but for what was read already.
pub fn check(
    repository: &Repository,
    manifest: &Manifest,
    once: &mut Once,
    report: &mut Report,
    signals: &Signals,
) -> Result<()> {
    for device in &manifest.devices {
        // The chain first: it says more of what is missing.
        let chain = Chain::open_checked(repository, manifest, device, &mut once.lists);
        if let Err(error) = chain {
            report.add(&manifest.id, Some(&device.name), format!("{error:#}"));
        }
        let parts = parts(repository, manifest, device);
        // With a broken chain, the file of this backup is looked at all the same.
        let parts = parts.unwrap_or_else(|_| vec![(repository.dir(&manifest.id), device.clone())]);
        for (dir, device) in parts {
            if let (true, Ok(layer)) = (
                once.files.insert(dir.join(&device.file)),
                once.lists.layer(dir, &device),
            ) {
                check_data(&layer, report, signals)?;
            }
        }
    }
    Ok(())
}

/// Reads all data of a layer.
fn check_data(layer: &Layer, report: &mut Report, signals: &Signals) -> Result<()> {
    let id = layer.dir.file_name().unwrap_or_default().to_string_lossy();
    let what = format!("{id}: checking {}", layer.device.name);
    if let Err(error) = layer.reader() {
        report.add(&id, Some(&layer.device.name), format!("{error:#}"));
        return Ok(());
    }
    let progress = Progress::start(what, layer.extents.totals().0, signals);
    let data = layer
        .extents
        .iter()
        .filter(|extent| !extent.as_ref().is_ok_and(|extent| extent.hash.is_none()));
    let data = data.map(|extent| extent.map(|extent| Seen::all(0, extent)));
    let layers = std::slice::from_ref(layer);
    let wanted = |_: &Seen| true;
    read(layers, data, wanted, &progress, no_work, |seen, _, good| {
        progress.advance(seen.extent.length);
        report.bytes_read += seen.extent.length;
        if let Err(error) = good {
            report.add_data(layer, &seen.extent, format!("{error:#}"));
        }
        Ok(())
    })?;
    progress.finish();
    // A raw file may be used as an image, so what is no data must be zeros.
    if layer.device.file_format == Format::Raw {
        let mut holes = Holes::open(layer)?;
        for extent in layer.extents.iter() {
            let extent = extent?;
            signals.check()?;
            if extent.hash.is_some() {
                continue;
            }
            let what = match holes.first_not_zero(&extent) {
                Ok(None) => continue,
                Ok(Some(at)) => format!(
                    "{} is damaged: there is data at byte {at}, where all was zero",
                    layer.file().display()
                ),
                Err(error) => format!("{error:#}"),
            };
            report.add_data(layer, &extent, what);
        }
    }
    Ok(())
}

/// A raw file in which zeros are looked for.
struct Holes {
    path: PathBuf,
    file: File,
    reader: Box<dyn Reader>,
    buffer: Buffer,
    /// All before, and behind the place before, is a hole.
    data: u64,
}

impl Holes {
    fn open(layer: &Layer) -> Result<Self> {
        let path = layer.file();
        let file = File::open(&path);
        Ok(Self {
            file: file.with_context(|| format!("cannot read {}", path.display()))?,
            reader: layer.reader()?,
            buffer: Buffer::new(),
            data: 0,
            path,
        })
    }

    /// Where about something else than zeros is in a range that should have none. Holes are not read.
    /// Ranges ascend.
    fn first_not_zero(&mut self, extent: &Extent) -> Result<Option<u64>> {
        let end = extent.start + extent.length;
        let mut at = extent.start;
        while at < end {
            if at > self.data || self.data == 0 {
                self.data = match seek(&self.file, SeekFrom::Data(at)) {
                    Ok(data) => data,
                    // No data follows.
                    Err(Errno::NXIO) => u64::MAX,
                    // It cannot tell: all is read.
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                    Err(errno) => {
                        let failed = || format!("cannot read {}", self.path.display());
                        return Err(errno).with_context(failed);
                    }
                };
            }
            at = at.max(self.data);
            let length = end.saturating_sub(at).min(BUFFER_SIZE as u64);
            // No more than is in the buffer.
            let bytes = &mut self.buffer.bytes_mut()[..length as usize];
            self.reader.read(at, bytes)?;
            if !is_zero(bytes) {
                return Ok(Some(at));
            }
            at += length;
        }
        Ok(None)
    }
}

impl Report {
    fn add(&mut self, backup: &str, device: Option<&str>, what: String) {
        self.damage.push(Damage {
            backup: backup.into(),
            device: device.map(str::to_owned),
            start: None,
            length: None,
            what,
        });
    }

    fn add_data(&mut self, layer: &Layer, extent: &Extent, what: String) {
        let id = layer.dir.file_name().unwrap_or_default().to_string_lossy();
        self.damage.push(Damage {
            backup: id.into_owned(),
            device: Some(layer.device.name.clone()),
            start: Some(extent.start),
            length: Some(extent.length),
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use blksnap_backup::testing::Store;

    use super::*;

    #[test]
    fn data_where_all_was_zero_is_found() {
        let store = Store::new(9 << 20);
        let mut data = vec![3; 9 << 20];
        data[2 << 20..7 << 20].fill(0);
        let full = store.full(&data);
        let signals = Signals::catch().unwrap();
        assert!(verify(store.path(), &signals).unwrap().damage.is_empty());
        let path = store.path().join(&full).join("vda.raw");
        let raw = File::options().write(true).open(&path).unwrap();
        // Zeros that are no hole are fine.
        raw.write_all_at(&[0; 4096], 3 << 20).unwrap();
        assert!(verify(store.path(), &signals).unwrap().damage.is_empty());
        raw.write_all_at(&[0, 1], 6 << 20).unwrap();
        let report = verify(store.path(), &signals).unwrap();
        assert_eq!(report.damage.len(), 1);
        assert!(report.damage[0].what.contains("where all was zero"));
        assert_eq!(report.damage[0].start, Some(2 << 20));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_damage() {
        let store = Store::with(1 << 20, Format::Qcow2);
        let all = [store.full(&[5; 1 << 20]), store.full(&[6; 1 << 20])];
        let first = store.path().join(&all[0]).join("vda.qcow2");
        let mut bytes = std::fs::read(&first).unwrap();
        bytes[7] ^= 0x40;
        std::fs::write(&first, bytes).unwrap();
        let report = verify(store.path(), &Signals::catch().unwrap()).unwrap();
        let damaged: Vec<_> = report.damage.iter().map(|d| &d.backup).collect();
        assert_eq!(damaged, [&all[0]], "{report:?}");
        assert_eq!(report.backups.len(), 2);
        assert_eq!(report.bytes_read, 1 << 20);
    }

    #[test]
    fn all_damage_is_found() {
        let store = Store::new(16 << 20);
        let data = vec![5; 16 << 20];
        let full = store.full(&data);
        let next = store.incremental(&full, &data, std::slice::from_ref(&(0..65536)));
        let last = store.incremental(&next, &data, std::slice::from_ref(&(0..65536)));
        let signals = Signals::catch().unwrap();
        let check = |path: &Path| verify(path, &signals).unwrap();
        let good = check(store.path());
        assert!(good.damage.is_empty(), "{good:?}");
        assert_eq!(good.backups.len(), 3);
        assert_eq!(good.bytes_read, (16 << 20) + 2 * 65536);
        assert_eq!(
            check(&store.path().join(&next)).bytes_read,
            (16 << 20) + 65536
        );

        let raw = store.path().join(&full).join("vda.raw");
        let mut bytes = std::fs::read(&raw).unwrap();
        bytes[5 << 20] ^= 1;
        bytes[13 << 20] ^= 0x80;
        std::fs::write(&raw, &bytes).unwrap();
        let extents = store.path().join(&last).join("vda.extents.jsonl");
        std::fs::write(&extents, "[0,1,null]\n").unwrap();
        let report = check(store.path());
        let places: Vec<_> = report
            .damage
            .iter()
            .map(|d| (d.backup.as_str(), d.start))
            .collect();
        assert_eq!(
            places,
            [
                (&*full, Some(5 << 20)),
                (&*full, Some(13 << 20)),
                (&*last, None)
            ]
        );
        std::fs::write(&raw, "short").unwrap();
        let report = check(&store.path().join(&next));
        assert!(
            report.damage[0].what.contains("has 5 bytes in place of"),
            "{report:?}"
        );
        std::fs::remove_dir_all(store.path().join(&full)).unwrap();
        let report = check(&store.path().join(&next));
        assert!(report.damage[0].what.contains("its base"), "{report:?}");
    }
}
