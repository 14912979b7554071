// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands of the tool of 2022, the older one: the same standard output and exit codes, for the scripts that
//! call it.

mod stretch;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use blksnap::storage::{Extents, extents_of};
use blksnap::{Control, DevId, EventKind, SectorRange, SnapshotId, v2};
use rustix::io::Errno;

use crate::args::{Abi, AbiArg, Legacy, PlaceArgs};
use crate::names;
use crate::output::print;
use crate::second;

/// Does one of them; or what the tool of 2025 does by the same name, if that is meant.
pub fn run(command: Legacy) -> Result<()> {
    let Some(command) = by_second(command)? else {
        return Ok(());
    };
    let control = Control::open()?;
    match command {
        Legacy::Version { .. } => print(control.version()?.to_string()),
        Legacy::TrackerRemove { device } => Ok(control.tracker_remove(names::device(device)?)?),
        Legacy::TrackerCollect => tracker_collect(&control),
        Legacy::TrackerReadCbtMap { device, file } => {
            read_cbt_map(&control, names::device(device)?, &file)
        }
        Legacy::TrackerMarkDirtyBlock(place) => {
            let extents = extents(&place, |_| Ok(()))?;
            Ok(control.mark_dirty(extents.device, &extents.ranges)?)
        }
        Legacy::SnapshotCreate { device, .. } => {
            let devices = names::devices(&device)?;
            print(control.snapshot_create(&devices)?.to_string())
        }
        Legacy::SnapshotAppendStorage { id, place } => {
            let extents = extents(&place, |_| Ok(()))?;
            Ok(control.snapshot_append_storage(id, extents.device, &extents.ranges)?)
        }
        Legacy::SnapshotTake { id, .. } => Ok(control.snapshot_take(id)?),
        Legacy::SnapshotDestroy { id, .. } => Ok(control.snapshot_destroy(id)?),
        Legacy::SnapshotWaitEvent { id, timeout, .. } => wait_event(&control, id, timeout),
        Legacy::SnapshotCollect { id, .. } => snapshot_collect(&control, id),
        Legacy::StretchSnapshot { id, path, limit } => stretch::run(&control, id, &path, limit),
    }
}

/// Does what the tool of 2025 does, if that is meant; else gives the command back. What tells is
/// `--abi`; or its options; or whose snapshot it is.
fn by_second(command: Legacy) -> Result<Option<Legacy>> {
    let asked = |abi: AbiArg| abi.abi == Some(Abi::Second);
    let of = |id: SnapshotId, abi: AbiArg| match abi.abi {
        Some(Abi::First) => Ok(None),
        Some(Abi::Second) => Ok(Some(v2::Control::open()?)),
        None => second::control_of(id),
    };
    match command {
        Legacy::Version { abi } if asked(abi) => second::version()?,
        Legacy::SnapshotCreate {
            device,
            file,
            limit,
            abi,
        } if asked(abi) || file.is_some() => {
            ensure!(
                abi.abi != Some(Abi::First),
                "--file and --limit are for the interface of 2025: leave out --abi=1, or give the storage by \
                 snapshot_appendstorage"
            );
            let (Some(file), Some(limit)) = (file, limit) else {
                bail!("the interface of 2025 needs to know the storage: give --file and --limit");
            };
            second::create(&device, &file, limit)?;
        }
        Legacy::SnapshotTake { id, abi } => match of(id, abi)? {
            Some(control) => control.snapshot_take(id)?,
            None => return Ok(Some(command)),
        },
        Legacy::SnapshotDestroy { id, abi } => match of(id, abi)? {
            Some(control) => control.snapshot_destroy(id)?,
            None => return Ok(Some(command)),
        },
        Legacy::SnapshotWaitEvent { id, timeout, abi } => match of(id, abi)? {
            Some(control) => second::wait_event(&control, id, timeout)?,
            None => return Ok(Some(command)),
        },
        Legacy::SnapshotCollect { id, abi } if asked(abi) => {
            ensure!(
                id.is_none(),
                "snapshot_collect of the interface of 2025 takes no --id: snapshot_info tells the image of a device"
            );
            second::collect()?;
        }
        command => return Ok(Some(command)),
    }
    Ok(None)
}

/// Lists the trackers.
fn tracker_collect(control: &Control) -> Result<()> {
    let trackers = control.trackers()?;
    let mut lines = vec![format!("count={}", trackers.len())];
    for info in trackers {
        lines.extend([
            ",".to_owned(),
            format!("device={}", info.device),
            format!("blk_size={}", info.block_size),
            format!("device_capacity={}", info.capacity),
            format!("blk_count={}", info.block_count),
            format!("generationId={}", info.generation),
            format!("snap_number={}", info.number),
        ]);
    }
    lines.push(".".to_owned());
    print(lines.join("\n"))
}

/// Writes the raw map to a file, which is made only when there is a map to read.
fn read_cbt_map(control: &Control, device: DevId, path: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut buffer = vec![0; 1 << 20];
    let mut count = control.read_cbt_map(device, 0, &mut buffer)?;
    let mut file = File::create(path).with_context(failed)?;
    let mut offset = 0;
    while count > 0 {
        file.write_all(&buffer[..count]).with_context(failed)?;
        // A map is no longer than a u32 says.
        offset += count as u32;
        count = control.read_cbt_map(device, offset, &mut buffer)?;
    }
    Ok(())
}

/// The blocks that are meant. Those of a file are printed, after what `announce` prints of its device.
pub fn extents(place: &PlaceArgs, announce: impl FnOnce(DevId) -> Result<()>) -> Result<Extents> {
    match (&place.file, &place.device) {
        (Some(path), _) => {
            let file =
                File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            let extents = extents_of(&file, path)?;
            announce(extents.device)?;
            for range in &extents.ranges {
                print(allocated(range))?;
            }
            Ok(extents)
        }
        (None, Some(device)) => Ok(Extents {
            device: names::device(device)?,
            ranges: place.ranges.clone(),
        }),
        // The definitions of the arguments ask for one of them.
        (None, None) => bail!("neither a file nor a device is given"),
    }
}

/// How the older tool writes an extent.
fn allocated(range: &SectorRange) -> String {
    format!(
        "allocate range: ofs={} cnt={}",
        range.start.0, range.count.0
    )
}

/// Waits for one event.
fn wait_event(control: &Control, id: SnapshotId, timeout_ms: u32) -> Result<()> {
    let timeout = Duration::from_millis(timeout_ms.into());
    let event = match control.wait_event(id, timeout) {
        Ok(None) => return print("result=timeout"),
        Err(error) if error.errno() == Some(Errno::INTR) => return print("result=interrupted"),
        Ok(Some(event)) => event,
        Err(error) => return Err(error.into()),
    };
    let mut lines = vec!["result=ok".to_owned(), format!("time={}", event.time_ns)];
    match event.kind {
        EventKind::LowFreeSpace { requested } => lines.extend([
            "event=low_free_space".to_owned(),
            format!("requested_nr_sect={}", requested.0),
        ]),
        EventKind::Corrupted { .. } => lines.push("event=corrupted".to_owned()),
    }
    print(lines.join("\n"))
}

/// Lists the images of one snapshot, or of all.
fn snapshot_collect(control: &Control, id: Option<SnapshotId>) -> Result<()> {
    let ids = match id {
        Some(id) => vec![id],
        None => control.snapshots()?,
    };
    for one in ids {
        let images = match control.images(one) {
            // In the list of all, one that was not taken has no images.
            Err(error) if id.is_none() && error.errno() == Some(Errno::NODEV) => Vec::new(),
            other => other?,
        };
        let mut lines = vec![format!("snapshot={one}"), format!("count={}", images.len())];
        for image in images {
            lines.extend([
                ",".to_owned(),
                format!("orig_dev_id={}", image.original),
                format!("image_dev_id={}", image.device),
            ]);
        }
        lines.push(".".to_owned());
        print(lines.join("\n"))?;
    }
    Ok(())
}
