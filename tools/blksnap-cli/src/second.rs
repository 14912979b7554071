// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands of the tool of 2025: the same standard output and exit codes, for the scripts that
//! call it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use blksnap::v2::{Control, Device, EventKind};
use blksnap::{Sectors, SnapshotId};
use rustix::io::Errno;

use crate::args::{Field, PlaceArgs, Second};
use crate::legacy::extents;
use crate::names;
use crate::output::print;
use crate::signals::Signals;
use crate::size::Size;

/// How long one wait of the watcher is.
const WATCH: Duration = Duration::from_millis(1000);
/// What is read of a change map at a time.
const PIECE: usize = 1 << 20;

/// Does one of those that only this tool has.
pub fn run(command: Second) -> Result<()> {
    match command {
        Second::Attach { device } => print(match open(&device)?.attach()? {
            true => "Attached successfully",
            false => "Already was attached",
        }),
        Second::Detach { device } => Ok(open(&device)?.detach()?),
        Second::CbtInfo { device } => cbt_info(&device),
        Second::ReadCbtMap { device, file } => read_cbt_map(&device, &file),
        Second::MarkDirtyBlock(place) => mark_dirty(&place),
        Second::SnapshotInfo { device, field } => snapshot_info(&device, field),
        Second::SnapshotAdd { id, device } => Ok(open(&device)?.snapshot_add(id)?),
        Second::SnapshotWatcher { id } => watch(id),
    }
}

/// The control device, if one of its snapshots has this id.
pub fn control_of(id: SnapshotId) -> Result<Option<Control>> {
    let Some(control) = Control::open_if_there()? else {
        return Ok(None);
    };
    let known = control.snapshots()?.contains(&id);
    Ok(known.then_some(control))
}

/// Opens a device by any of its names.
fn open(name: &Path) -> Result<Device> {
    Ok(Device::of(names::device(name)?)?)
}

/// What is known of a device that must be tracked.
fn info_of(device: &Device, name: &Path) -> Result<blksnap::CbtInfo> {
    let info = device.cbt_info()?;
    info.with_context(|| {
        format!(
            "{} is not tracked: `blksnap attach --device={0}` begins with it",
            name.display()
        )
    })
}

fn cbt_info(name: &Path) -> Result<()> {
    let info = info_of(&open(name)?, name)?;
    let lines = [
        format!("block_size={}", info.block_size),
        format!("device_capacity={}", info.capacity),
        format!("block_count={}", info.block_count),
        format!("generation_id={}", info.generation),
        format!("changes_number={}", info.number),
    ];
    print(lines.join("\n"))
}

/// Writes the raw map to a file, which is made only when there is a map to read.
fn read_cbt_map(name: &Path, path: &Path) -> Result<()> {
    let device = open(name)?;
    let info = info_of(&device, name)?;
    let failed = || format!("cannot write {}", path.display());
    let mut file = File::create(path).with_context(failed)?;
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < info.block_count {
        let left = (info.block_count - offset) as usize;
        let piece = &mut buffer[..left.min(PIECE)];
        device.read_cbt_map(offset, piece)?;
        file.write_all(piece).with_context(failed)?;
        // No more than was left, a u32.
        offset += piece.len() as u32;
    }
    Ok(())
}

fn mark_dirty(place: &PlaceArgs) -> Result<()> {
    let found = extents(place, |device| {
        print(format!("device path: '/dev/block/{device}'"))
    })?;
    Ok(Device::of(found.device)?.mark_dirty(&found.ranges)?)
}

fn snapshot_info(name: &Path, field: Option<Field>) -> Result<()> {
    let info = open(name)?.snapshot_info()?;
    let error = info.error.map_or(0, |errno| -errno.raw_os_error());
    let image = info.image.unwrap_or_default();
    print(match field {
        None => format!("error_code={error}\nimage={}", image.display()),
        Some(Field::Image) => image.display().to_string(),
        Some(Field::ErrorCode) => error.to_string(),
    })
}

/// Waits until there is no good snapshot any more. That it is lost is said, but no failure of ours.
fn watch(id: SnapshotId) -> Result<()> {
    let control = Control::open()?;
    let signals = Signals::catch()?;
    loop {
        signals.check()?;
        match control.wait_event(id, WATCH) {
            Ok(None) => {}
            Ok(Some(event)) => match event.kind {
                EventKind::Corrupted { device, errno } => {
                    let device = device.describe();
                    eprintln!("blksnap: {id}: the snapshot of {device} is lost: {errno}");
                    return Ok(());
                }
                EventKind::NoSpace { reached } => eprintln!(
                    "blksnap: {id}: its storage has {}, and may not become larger",
                    Size(reached.bytes())
                ),
                other => eprintln!("blksnap: {id}: {other:?}"),
            },
            Err(error) => match error.errno() {
                Some(Errno::INTR) => {}
                Some(Errno::SRCH) => return Ok(()),
                _ => return Err(error.into()),
            },
        }
    }
}

/// `version`.
pub fn version() -> Result<()> {
    print(Control::open()?.version()?.to_string())
}

/// `snapshot_create`: the id is printed before devices are added, so that whoever reads it can destroy
/// the snapshot if one cannot.
pub fn create(devices: &[PathBuf], storage: &Path, limit: Size) -> Result<()> {
    // Names that are wrong leave nothing behind.
    let devices = names::devices(devices)?;
    let opened: Vec<_> = devices
        .into_iter()
        .map(Device::of)
        .collect::<Result<_, _>>()?;
    let control = Control::open()?;
    let id = control.snapshot_create(storage, Sectors::floor(limit.0))?;
    print(id.to_string())?;
    for device in &opened {
        device.snapshot_add(id)?;
    }
    Ok(())
}

/// `snapshot_waitevent`: whatever comes, it is a result.
pub fn wait_event(control: &Control, id: SnapshotId, timeout_ms: u32) -> Result<()> {
    let timeout = Duration::from_millis(timeout_ms.into());
    let event = match control.wait_event(id, timeout) {
        Ok(Some(event)) => event,
        Ok(None) => return print("result=timeout"),
        Err(error) => match error.errno() {
            Some(Errno::INTR) => return print("result=interrupted"),
            Some(Errno::SRCH) => return print("result=not found"),
            _ => return Err(error.into()),
        },
    };
    let name = match event.kind {
        EventKind::Corrupted { .. } => "corrupted".to_owned(),
        EventKind::NoSpace { .. } => "no_space".to_owned(),
        EventKind::Other { code } => code.to_string(),
        other => format!("{other:?}"),
    };
    print(format!("result=ok\ntime={}\nevent={name}", event.time_ns))
}

/// `snapshot_collect`: each line ends with a space, and the last one is empty.
pub fn collect() -> Result<()> {
    let ids = Control::open()?.snapshots()?;
    let lines: Vec<_> = ids.iter().map(|id| format!("{id} \n")).collect();
    print(lines.concat())
}
