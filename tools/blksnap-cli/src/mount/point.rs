// SPDX-License-Identifier: GPL-2.0-or-later

//! The mount: made and undone here, and not by the crate, which would take a second look at a path
//! where something else may be mounted by then, and whose errors say little.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blksnap::DevId;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{getegid, geteuid};

use crate::mounts::{self, Mount};
use crate::output;

/// Where requests come from.
const DEVICE: &str = "/dev/fuse";
/// What the table of mounts calls it.
const KIND: &str = "fuse.blksnap";

/// Gives the path of a directory that can be mounted on.
pub fn check(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let failed = || format!("cannot mount on {shown}");
    let path = path.canonicalize().with_context(failed)?;
    if let Some(mount) = top(&path)? {
        let dead = fs::metadata(&path).is_err_and(|error| is(&error, Errno::NOTCONN));
        ensure!(
            dead && mount.kind == KIND,
            "{} is mounted on {shown} already ({}): unmount that, or name another directory",
            mount.source,
            mount.kind
        );
        // Who uses it has had only errors since.
        unmount(&path, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount what a killed blksnap has left on {shown}"))?;
        output::remark(format!(
            "what a killed `blksnap mount` had left on {shown} is unmounted"
        ));
        return check(&path);
    }
    ensure!(
        fs::metadata(&path).with_context(failed)?.is_dir(),
        "cannot mount on {shown}: it is no directory"
    );
    let mut entries = fs::read_dir(&path).with_context(failed)?;
    ensure!(
        entries.next().is_none(),
        "cannot mount on {shown}: it is not empty"
    );
    Ok(path)
}

/// What is mounted on a path, and seen there.
fn top(path: &Path) -> Result<Option<Mount>> {
    let all = mounts::table()?.into_iter();
    Ok(all.rev().find(|mount| mount.point == path))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// How an attempt to unmount went.
#[derive(Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is not there any more.
    Done,
    /// Somebody uses it.
    Busy,
}

/// What was mounted. It is not there any more when this is dropped: what is not unmounted then was
/// given up, after an error, or since the connection to the kernel was cut.
pub struct Point {
    path: PathBuf,
    /// The number of the file system, by which it is told from another one on the same path.
    device: DevId,
}

impl Point {
    /// Mounts on a directory, and gives the file that requests come from.
    pub fn mount(path: PathBuf, source: &Path) -> Result<(Self, OwnedFd)> {
        let fuse = File::options().read(true).write(true).open(DEVICE);
        let fuse = OwnedFd::from(fuse.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => no_fuse(),
            _ => anyhow!(error).context(format!("cannot open {DEVICE}")),
        })?);
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let options = format!(
            "fd={},rootmode=40500,user_id={user},group_id={group},default_permissions",
            fuse.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).context("the options of the mount")?;
        let flags = MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC
            | MountFlags::NOATIME;
        let done = mount(source, &path, KIND, flags, &*options);
        let shown = path.display();
        match done {
            Err(Errno::NODEV) => return Err(no_fuse()),
            Err(Errno::PERM) => bail!("cannot mount on {shown}: only root may mount"),
            done => done.with_context(|| format!("cannot mount on {shown}"))?,
        }
        match top(&path) {
            Ok(Some(Mount { device, .. })) => Ok((Self { path, device }, fuse)),
            table => {
                let _ = unmount(&path, UnmountFlags::DETACH);
                table?;
                bail!("{} is not in the table of mounts", path.display());
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is still there, and seen: whoever may have unmounted it, or mounted something over it.
    fn is_seen(&self) -> Result<bool> {
        let top = top(&self.path)?;
        Ok(top.is_some_and(|top| top.device == self.device && top.kind == KIND))
    }

    /// Unmounts it, if nobody uses it.
    pub fn unmount(&self) -> Result<Unmounted> {
        let all = mounts::table()?;
        let is_this = |mount: &Mount| mount.device == self.device && mount.point == self.path;
        if !all.iter().any(is_this) {
            return Ok(Unmounted::Done);
        }
        if !self.is_seen()? {
            return Ok(Unmounted::Busy);
        }
        match unmount(&self.path, UnmountFlags::empty()) {
            Err(Errno::BUSY) => Ok(Unmounted::Busy),
            done => {
                done.with_context(|| format!("cannot unmount {}", self.path.display()))?;
                Ok(Unmounted::Done)
            }
        }
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        // Nothing can be read there any more.
        if self.is_seen().unwrap_or(false) {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

fn no_fuse() -> anyhow::Error {
    anyhow!(
        "this kernel has no FUSE: `modprobe fuse` loads it, if it has the module (CONFIG_FUSE_FS); a container needs \
         {DEVICE}, too"
    )
}
