// SPDX-License-Identifier: GPL-2.0

//! What `/sys/class/blksnap` and the images' own directories show.
//!
//! `Documentation/ABI/testing/sysfs-class-blksnap` describes each file.
//!
//! # Locking
//!
//! Removing a directory waits for those who read its files. That happens with locks of the
//! registry held, so none of the functions here may take these.

use core::fmt::Write;
use kernel::{
    block::bdev::DevId,
    device::class::{
        Class,
        ClassDevice, //
    },
    fmt,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    sysfs::{
        Attribute,
        BinaryAttribute,
        Group,
        Output, //
    }, //
};

use crate::{
    base::units::SECTOR_SHIFT,
    control::front_end::FrontEnd,
    image::Image,
    snapshot::Snapshot,
    tracking::tracker::{
        TrackerRef,
        Tracking, //
    }, //
};

/// A `T` that has a directory.
pub(crate) type Shown<T> = ClassDevice<T, u32>;

/// The file that is polled for events.
const EVENTS: &CStr = c"events";

/// A snapshot and its directory.
pub(crate) struct ShownSnapshot {
    /// The snapshot.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Whose it is.
    pub(crate) front_end: FrontEnd,
    /// Until it is [hidden](Self::hide).
    directory: Option<Shown<Snapshot>>,
}

impl ShownSnapshot {
    /// Announces in sysfs and by uevents which events have come since the last call. May sleep.
    pub(crate) fn announce(&self) {
        self.snapshot.health.tell_lost();
        let Some(directory) = &self.directory else {
            return;
        };
        for news in self.snapshot.events.take_news() {
            directory.notify(EVENTS);
            // Lost if memory is short; the events in the queue are not.
            let _ = directory.changed(news);
        }
    }

    /// Ends showing the snapshot, of which the queue of events has ended. Wakes who polls for
    /// these: they read an error, even if the file is still there. The returned directory is
    /// removed when dropped, which waits for those who read its files.
    pub(crate) fn hide(&mut self) -> Option<Shown<Snapshot>> {
        let directory = self.directory.take()?;
        directory.notify(EVENTS);
        Some(directory)
    }
}

/// The class and what its directories have in them.
pub(crate) struct Sysfs {
    class: Arc<Class<u32>>,
    trackers: Arc<Group<Tracking>>,
    snapshots: Arc<Group<Snapshot>>,
    images: Arc<Group<Image>>,
}

impl Sysfs {
    /// Makes the class. `major` is that of the images.
    pub(crate) fn new(major: u32) -> Result<Self> {
        Ok(Self {
            class: Class::new(c"blksnap", c"major", major, |major, out| value(out, major))?,
            trackers: Group::new(None, &TRACKER, &CBT_MAP)?,
            snapshots: Group::new(None, &SNAPSHOT, &[])?,
            images: Group::new(Some(c"blksnap"), &IMAGE, &[])?,
        })
    }

    /// Shows a tracker. There must be no other one with its device number.
    pub(crate) fn tracker(&self, tracker: TrackerRef) -> Result<Shown<Tracking>> {
        Shown::new(
            &self.class,
            fmt!("tracker-{}", tracker.id()),
            &self.trackers,
            tracker.clone(),
        )
    }

    /// Shows a snapshot.
    pub(crate) fn snapshot(
        &self,
        snapshot: Arc<Snapshot>,
        front_end: FrontEnd,
    ) -> Result<ShownSnapshot> {
        let directory = Shown::new(
            &self.class,
            fmt!("snapshot-{}", snapshot.id()),
            &self.snapshots,
            snapshot.clone(),
        )?;
        Ok(ShownSnapshot {
            snapshot,
            front_end,
            directory: Some(directory),
        })
    }

    /// What images show.
    pub(crate) fn images(&self) -> &Arc<Group<Image>> {
        &self.images
    }
}

/// Writes a value.
fn value(out: &mut Output<'_>, value: impl fmt::Display) -> Result {
    Ok(out.write_fmt(fmt!("{}", value))?)
}

/// Writes a number of sectors in bytes.
fn bytes(out: &mut Output<'_>, sectors: u64) -> Result {
    value(out, sectors << SECTOR_SHIFT)
}

/// Writes device numbers in one line. Fails with `EFBIG` if they do not fit into a page.
fn list(out: &mut Output<'_>, devices: impl Iterator<Item = DevId>) -> Result {
    for (i, device) in devices.enumerate() {
        let space = if i > 0 { " " } else { "" };
        out.write_fmt(fmt!("{space}{device}")).map_err(|_| EFBIG)?;
    }
    Ok(())
}

static TRACKER: [Attribute<Tracking>; 9] = [
    Attribute::new(c"name", |t, out| value(out, t.name())),
    Attribute::new(c"since", |t, out| value(out, t.since())),
    Attribute::new(c"capacity", |t, out| value(out, t.cbt().capacity())),
    Attribute::new(c"block_size", |t, out| value(out, t.cbt().block_size())),
    Attribute::new(c"block_count", |t, out| value(out, t.cbt().block_count())),
    Attribute::new(c"generation", |t, out| value(out, t.cbt().generation())),
    Attribute::new(c"snap_number", |t, out| value(out, t.cbt().previous())),
    Attribute::new(c"map_memory", |t, out| value(out, t.cbt().memory())),
    Attribute::new(c"snapshot", |t, out| match t.membership() {
        Some(membership) => value(out, membership.snapshot),
        None => value(out, "none"),
    }),
];

static CBT_MAP: [BinaryAttribute<Tracking>; 1] = [BinaryAttribute::new(
    c"cbt_map",
    |tracker, offset, out| match tracker.membership() {
        Some(membership) if membership.taken => match u32::try_from(offset) {
            Ok(offset) => Ok(tracker.cbt().read(offset, out)),
            Err(_) => Ok(0),
        },
        _ => Err(EPERM),
    },
)];

static SNAPSHOT: [Attribute<Snapshot>; 16] = [
    Attribute::new(c"state", |s, out| {
        value(
            out,
            match (s.health.error(), s.is_taken()) {
                (0, false) => "created",
                (0, true) => "taken",
                _ => "corrupted",
            },
        )
    }),
    Attribute::new(c"error", |s, out| value(out, s.health.error())),
    Attribute::new(c"originals", |s, out| list(out, s.originals()?.into_iter())),
    Attribute::new(c"images", |s, out| {
        let mut images = KVVec::with_capacity(s.originals()?.len(), GFP_KERNEL)?;
        s.for_each_captured(|captured| {
            // There is room for all.
            let _ = images.push_within_capacity(captured.image.id());
        });
        list(out, images.into_iter())
    }),
    Attribute::new(EVENTS, |s, out| value(out, s.events.len()?)),
    Attribute::new(c"created", |s, out| value(out, s.created)),
    Attribute::new(c"taken", |s, out| value(out, s.taken.lock().at)),
    Attribute::new(c"stopped_us", |s, out| {
        value(out, s.taken.lock().stopped.as_nanos() / 1000)
    }),
    Attribute::new(c"storage_size", |s, out| {
        bytes(out, s.space.usage().capacity)
    }),
    Attribute::new(c"storage_used", |s, out| bytes(out, s.space.usage().filled)),
    Attribute::new(c"storage_requested", |s, out| {
        bytes(out, s.space.usage().requested)
    }),
    Attribute::new(c"bytes_copied", |s, out| {
        bytes(out, s.space.copied.load(Relaxed))
    }),
    Attribute::new(c"copies_in_flight", |s, out| {
        let mut all = 0;
        s.for_each_captured(|captured| all += captured.engine.cow.usage().0);
        value(out, all)
    }),
    Attribute::new(c"memory", |s, out| {
        let mut all = 0;
        s.for_each_captured(|captured| all += captured.engine.cow.usage().1);
        value(out, all)
    }),
    Attribute::new(c"writes_held", |s, out| {
        let mut all = 0;
        s.for_each_tracker(|tracker| all += u64::from(tracker.held()));
        value(out, all)
    }),
    Attribute::new(c"reads_retried", |s, out| {
        let mut all = 0;
        s.for_each_captured(|captured| all += captured.image.data().io().retried());
        value(out, all)
    }),
];

static IMAGE: [Attribute<Image>; 4] = [
    Attribute::new(c"original", |image, out| {
        value(out, image.cow().origin().bdev().id())
    }),
    Attribute::new(c"snapshot", |image, out| {
        value(out, image.cow().health().snapshot())
    }),
    Attribute::new(c"error", |image, out| value(out, image.cow().error())),
    Attribute::new(c"unused", |image, out| {
        bytes(out, image.cow().unused_sectors())
    }),
];
