// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap restore`: a backup written to devices or new files.
//!
//! Everything is looked at before the first byte is written: the manifest, each file, each target.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use blksnap::DevId;
use rustix::fs::{OFlags, SeekFrom, fsync, seek};
use rustix::io::Errno;
use serde::Serialize;

use crate::args;
use crate::copy::{Copied, Source, Target, Zeros, copy};
use crate::device::{is_block_device, size_of};
use crate::manifest::{Device, Manifest, State};
use crate::mounts::user_of;
use crate::output;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::size::Size;

/// Restores what was asked for.
pub fn run(args: &args::Restore) -> Result<()> {
    let signals = Signals::catch()?;
    let manifest = Manifest::read(&args.backup)?
        .with_context(|| format!("there is no backup in {}", args.backup.display()))?;
    if manifest.state != State::Complete {
        bail!(
            "the backup in {} was being updated and is not whole: make a new one",
            args.backup.display()
        );
    }
    let pairs = pair(&manifest, &args.to)?;
    let jobs = pairs
        .into_iter()
        .map(|(device, target)| Job::check(&args.backup, device, target))
        .collect::<Result<Vec<_>>>()?;
    let jobs = jobs
        .into_iter()
        .map(Job::open)
        .collect::<Result<Vec<_>>>()?;
    let mut reports = Vec::new();
    for job in jobs {
        reports.push(job.run(&signals)?);
    }
    if args.json {
        return output::print_json(&reports);
    }
    for report in reports {
        output::print(format!(
            "{}: {} restored to {}, {} written",
            report.name,
            Size(report.size),
            report.target.display(),
            Size(report.bytes_written)
        ))?;
    }
    Ok(())
}

/// What was done with one device.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    target: PathBuf,
    size: u64,
    bytes_written: u64,
    seconds: f64,
}

/// Finds which device goes where.
fn pair<'a>(manifest: &'a Manifest, targets: &[String]) -> Result<Vec<(&'a Device, PathBuf)>> {
    let names = || {
        let names: Vec<_> = manifest.devices.iter().map(|d| d.name.as_str()).collect();
        names.join(", ")
    };
    let mut pairs: Vec<(&Device, PathBuf)> = Vec::new();
    for text in targets {
        let named = text.split_once('=').and_then(|(name, target)| {
            let mut devices = manifest.devices.iter();
            let device = devices.find(|d| d.name == name || d.path == Path::new(name))?;
            Some((device, target))
        });
        let (device, target) = match (named, manifest.devices.as_slice()) {
            (Some(pair), _) => pair,
            (None, [device]) => (device, text.as_str()),
            (None, _) => bail!(
                "which device goes to `{text}`? Write NAME=TARGET; the backup has {}",
                names()
            ),
        };
        if pairs.iter().any(|(other, _)| other.name == device.name) {
            bail!("{} is given two targets", device.name);
        }
        pairs.push((device, target.into()));
    }
    for (index, (_, target)) in pairs.iter().enumerate() {
        let id = |path: &PathBuf| DevId::resolve(path).ok();
        let same =
            |other: &PathBuf| other == target || (id(other).is_some() && id(other) == id(target));
        if pairs[..index].iter().any(|(_, other)| same(other)) {
            bail!("{} is the target of two devices", target.display());
        }
    }
    Ok(pairs)
}

/// One device to be restored, after everything that can be seen without opening the target for
/// writing was checked.
struct Job {
    name: String,
    size: u64,
    from: PathBuf,
    to: PathBuf,
    to_device: bool,
}

impl Job {
    /// Checks the file of the backup and the target.
    fn check(dir: &Path, device: &Device, to: PathBuf) -> Result<Self> {
        let from = dir.join(&device.file);
        let file = File::open(&from)
            .with_context(|| format!("the backup is damaged: cannot open {}", from.display()))?;
        let found = size_of(&file, &from)?;
        if found != device.size {
            bail!(
                "the backup is damaged: {} has {found} bytes in place of {}",
                from.display(),
                device.size
            );
        }
        let to_device = is_block_device(&to);
        if to_device {
            let id = DevId::resolve(&to)?;
            if let Some(user) = user_of(id) {
                bail!("cannot restore to {}: {user}", to.display());
            }
            let target =
                File::open(&to).with_context(|| format!("cannot open {}", to.display()))?;
            let size = size_of(&target, &to)?;
            if size < device.size {
                bail!(
                    "cannot restore to {}: it has {} ({size} bytes), {} needs {} ({} bytes)",
                    to.display(),
                    Size(size),
                    device.name,
                    Size(device.size),
                    device.size
                );
            }
        } else if to.symlink_metadata().is_ok() {
            bail!(
                "cannot restore to {}: it exists and is not a block device; name a device, or a file that does not exist",
                to.display()
            );
        } else if to.starts_with("/dev") {
            bail!(
                "cannot restore to {}: there is no such device",
                to.display()
            );
        }
        Ok(Self {
            name: device.name.clone(),
            size: device.size,
            from,
            to,
            to_device,
        })
    }

    /// Opens the target. Nothing is written to a device by this, and the kernel keeps others from
    /// using it.
    fn open(self) -> Result<OpenJob> {
        let mut options = File::options();
        options.read(true).write(true);
        if self.to_device {
            // For a block device this means: not while it is mounted or otherwise claimed.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        } else {
            options.create_new(true);
        }
        let file = options.open(&self.to).map_err(|error| {
            let busy = error.raw_os_error() == Some(Errno::BUSY.raw_os_error());
            let why = if busy { " (it is in use)" } else { "" };
            anyhow!(error).context(format!("cannot restore to {}{why}", self.to.display()))
        })?;
        Ok(OpenJob {
            created: !self.to_device,
            job: self,
            file,
        })
    }
}

/// A job whose target is open. A file that was made for it is removed if it does not become whole.
struct OpenJob {
    job: Job,
    file: File,
    created: bool,
}

impl OpenJob {
    /// Writes.
    fn run(mut self, signals: &Signals) -> Result<Report> {
        let Job {
            name,
            size,
            from,
            to,
            to_device,
        } = &self.job;
        let source = Source::open(from)?;
        let zeros = if *to_device {
            Zeros::ZeroRange
        } else {
            self.file
                .set_len(*size)
                .with_context(|| format!("cannot make {} so large", to.display()))?;
            Zeros::Skip
        };
        let mut target = Target::new(to, &self.file, zeros);
        let data = data_of(from, *size)?;
        let mut at = 0;
        for range in data.iter().cloned().chain([*size..*size]) {
            signals.check()?;
            target.clear(at..range.start)?;
            at = range.end;
        }
        let bytes = data.iter().map(|range| range.end - range.start).sum();
        let mut progress = Progress::start(format!("{name}: restoring to {}", to.display()), bytes);
        let Copied { written, .. } = copy(
            &source,
            &mut target,
            data.into_iter(),
            signals,
            &mut progress,
        )?;
        fsync(&self.file).with_context(|| format!("cannot write back {}", to.display()))?;
        self.created = false;
        Ok(Report {
            name: name.clone(),
            target: to.clone(),
            size: *size,
            bytes_written: written,
            seconds: progress.finish(),
        })
    }
}

impl Drop for OpenJob {
    fn drop(&mut self) {
        if self.created {
            let _ = std::fs::remove_file(&self.job.to);
        }
    }
}

/// The parts of a file that are no holes.
fn data_of(path: &Path, size: u64) -> Result<Vec<Range<u64>>> {
    let failed = || format!("cannot find the holes of {}", path.display());
    let file = File::open(path).with_context(failed)?;
    let mut data = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno).with_context(failed),
        };
        at = seek(&file, SeekFrom::Hole(start))
            .with_context(failed)?
            .min(size);
        data.push(start..at);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use uuid::Uuid;

    use super::*;

    fn backup(dir: &Path, names: &[&str]) -> Manifest {
        let devices = names.iter().map(|name| {
            let file = format!("{name}.raw");
            let raw = File::create(dir.join(&file)).unwrap();
            raw.set_len(1 << 20).unwrap();
            raw.write_all_at(name.as_bytes(), 300_000).unwrap();
            Device {
                name: (*name).into(),
                path: format!("/dev/{name}").into(),
                file,
                size: 1 << 20,
                generation: Uuid::nil(),
                number: 1,
                block_size: 65536,
            }
        });
        let manifest = Manifest::new(Uuid::nil(), [0, 0], devices.collect());
        manifest.write(dir).unwrap();
        manifest
    }

    fn restore(dir: &Path, to: &[String]) -> Result<()> {
        run(&args::Restore {
            backup: dir.to_owned(),
            to: to.to_vec(),
            json: true,
        })
    }

    #[test]
    fn files_are_restored_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        backup(dir.path(), &["vda", "vdb"]);
        let target = |name: &str| dir.path().join(name).display().to_string();
        restore(
            dir.path(),
            &[
                format!("vda={}", target("a")),
                format!("/dev/vdb={}", target("b")),
            ],
        )
        .unwrap();
        for (file, name) in [("a", "vda"), ("b", "vdb")] {
            let read = |name: String| std::fs::read(dir.path().join(name)).unwrap();
            assert!(read(file.into()) == read(format!("{name}.raw")));
        }
        // A file that exists is not overwritten, and the other is not made.
        let to = [
            format!("vda={}", target("new")),
            format!("vdb={}", target("b")),
        ];
        let error = restore(dir.path(), &to).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error:#}");
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let empty = tempfile::tempdir().unwrap();
        let mut manifest = backup(dir.path(), &["vda", "vdb"]);
        let fails = |to: &[&str], why: &str| {
            let to: Vec<_> = to.iter().map(|to| (*to).to_owned()).collect();
            let error = restore(dir.path(), &to).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        };
        fails(&["/tmp/x"], "the backup has vda, vdb");
        fails(&["vda=/tmp/x-1", "vda=/tmp/x-2"], "two targets");
        fails(&["vda=/tmp/x-1", "vdb=/tmp/x-1"], "target of two");
        fails(&["vda=/dev/nonexistent"], "no such device");
        fails(&["vda=/etc/passwd"], "exists");
        std::fs::write(dir.path().join("vda.raw"), "short").unwrap();
        fails(&["vda=/tmp/x-1"], "5 bytes in place of 1048576");
        std::fs::remove_file(dir.path().join("vda.raw")).unwrap();
        fails(&["vda=/tmp/x-1"], "damaged");
        manifest.state = State::Updating;
        manifest.write(dir.path()).unwrap();
        fails(&["vda=/tmp/x-1"], "not whole");
        assert!(restore(empty.path(), &["/tmp/x".into()]).is_err());
    }
}
