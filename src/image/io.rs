// SPDX-License-Identifier: GPL-2.0

//! I/O of an image.
//!
//! A bio to an image is split where the places of its sectors differ, and each part is sent, as a
//! clone, to where its data is; nothing is copied. A part about a chunk that is just being copied
//! is parked until that is stored; then it comes to the disk again.
//!
//! Reads of the original are optimistic. No lock keeps the chunks untouched meanwhile: the end of
//! the read checks whether they still are, and whether nothing there has become storage or was
//! said to be unused. If not, what was read may be new data; it is thrown away, and the part comes
//! to the disk again, to read the copy, or zeroes. See
//! [`chunk_map`](crate::copying::chunk_map) for why that is right.
//!
//! Writes go to the difference storage: an untouched chunk is copied there first.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::{
        bio::{
            BioList,
            Op,
            OwnedBio, //
        },
        bio_set::{
            BioSet,
            EndIo,
            NewBio,
            Target,
            TargetRef,
            Wait, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

use crate::{
    base::{
        delays::{
            delay,
            Point, //
        },
        faults::{
            planted,
            Fault, //
        }, //
    },
    copying::{
        chunk_map::Place,
        cow::{
            Blank,
            Cow, //
        },
        inflight::Busy, //
    }, //
};

/// Clones that can be in flight whatever the state of memory.
const RESERVE: u32 = 64;

/// The clones of bios of all images. Made when the module is loaded.
pub(crate) struct Clones(BioSet<CloneIo>);

impl Clones {
    /// Makes the set.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let set = BioSet::new(RESERVE, Wait::ForBio)?;
        Ok(Arc::new(Self(set), GFP_KERNEL)?)
    }
}

/// What the I/O of one image needs.
///
/// The last reference may go in an interrupt, with a clone.
pub(crate) struct ImageIo {
    cow: Arc<Cow>,
    clones: Arc<Clones>,
    /// Reads that were overtaken by a write to the original, and done again.
    retried: Atomic<u64>,
    /// Last, as it keeps all that must not go in an interrupt.
    _busy: Busy,
}

/// The context of a clone.
struct CloneIo {
    image: Arc<ImageIo>,
    /// Where in the difference storage it goes; if nowhere, it reads the original: its chunks have
    /// to be untouched in the end, and not unused.
    stored_on: Option<Target>,
    /// [`Cow::blank`] before the place was found; the same in the end.
    blank: Blank,
    /// It writes to the storage.
    writes: bool,
}

impl EndIo for CloneIo {
    fn set(&self) -> &BioSet<Self> {
        &self.image.clones.0
    }

    fn target(&self) -> TargetRef<'_> {
        match &self.stored_on {
            Some(target) => TargetRef::from(target),
            None => TargetRef::from(self.image.cow.origin()),
        }
    }

    fn end_io(self, cloned: Option<OwnedBio>, result: Result) {
        let Self {
            image,
            stored_on,
            blank,
            writes,
        } = self;
        let reads_original = stored_on.is_none();
        // First, as who is told that nothing is written to the storage may close it.
        drop(stored_on);
        let cow = &image.cow;
        delay(Point::ImageEnded);
        if writes {
            cow.health().end_write();
        }
        if let Some(bio) = cloned {
            let untouched = reads_original.then(|| chunks(cow, bio.sector(), bio.end_sector()));
            let overtaken = !planted(Fault::NoLookAfterRead)
                && untouched.is_some_and(|(from, to)| {
                    cow.map().untouched_until(from, to) != to
                        || cow.blank() != blank
                        || blank.has_unused() && cow.next_unused(from, to) != to
                });
            let lost = untouched.is_some_and(|(_, to)| cow.device_was_too_small(to));
            if lost || cow.image_has_failed() {
                bio.end(Err(EIO));
            } else if result.is_ok() && overtaken {
                image.retry(bio);
            } else {
                bio.end(result);
            }
        }
    }
}

/// Where the next part of an image bio goes.
enum Goal {
    /// Nowhere: it is storage or unused, and reads as zeroes.
    Nothing,
    /// To the original, if its chunks stay untouched and needed.
    Original,
    /// To the difference storage.
    Storage(Target, u64),
    /// It waits for this chunk.
    Wait(u64),
}

impl ImageIo {
    /// What the I/O of the image of `cow`'s device needs. May sleep.
    pub(crate) fn new(cow: &Arc<Cow>, clones: &Arc<Clones>) -> Result<Arc<Self>> {
        let this = Self {
            cow: cow.clone(),
            clones: clones.clone(),
            retried: Atomic::new(0),
            _busy: cow.busy(),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// The copy engine.
    pub(crate) fn cow(&self) -> &Cow {
        &self.cow
    }

    /// How many reads were overtaken by a write to the original, and done again.
    pub(crate) fn retried(&self) -> u64 {
        self.retried.load(Relaxed)
    }

    /// Has a read done again. For any context.
    fn retry(&self, bio: OwnedBio) {
        self.retried.fetch_add(1, Relaxed);
        let mut bios = BioList::new();
        bios.push(bio);
        self.cow.requeue(bios);
    }

    /// Serves a bio of the image: a read or a write. What does not go where its first sectors go
    /// comes here again, by way of the disk.
    pub(crate) fn submit(self: &Arc<Self>, mut bio: OwnedBio) {
        let cow = &self.cow;
        let write = match bio.op() {
            Op::Read => false,
            Op::Write => true,
            _ => return bio.end(Err(EOPNOTSUPP)),
        };
        if bio.sectors() == 0 {
            return bio.end(Ok(()));
        }
        loop {
            if cow.image_has_failed() {
                cow.tell_of_medium();
                return bio.end(Err(EIO));
            }
            let blank = cow.blank();
            let Some((goal, sectors)) = find(cow, bio.sector(), bio.sectors(), write, blank) else {
                return bio.end(Err(EIO));
            };
            let Some(part) = bio.split(sectors) else {
                return;
            };
            delay(Point::Found);
            match self.send(part, goal, blank, write) {
                Some(part) => bio = part,
                None => return,
            }
        }
    }

    /// Sends a part on its way. Gives it back if its place has changed.
    fn send(
        self: &Arc<Self>,
        mut bio: OwnedBio,
        goal: Goal,
        blank: Blank,
        write: bool,
    ) -> Option<OwnedBio> {
        let cow = &self.cow;
        let (stored_on, sector) = match goal {
            Goal::Nothing if write => {
                bio.end(Err(EIO));
                return None;
            }
            Goal::Nothing => {
                bio.zero_fill();
                bio.end(Ok(()));
                return None;
            }
            Goal::Wait(chunk) => return cow.park(bio, chunk, write),
            Goal::Original => (None, bio.sector()),
            Goal::Storage(target, sector) => (Some(target), sector),
        };
        if write && !cow.health().begin_write() {
            bio.end(Err(EIO));
            return None;
        }
        let context = CloneIo {
            image: self.clone(),
            stored_on,
            blank,
            writes: write,
        };
        match NewBio::clone_of(bio, sector, context) {
            Ok(clone) => clone.submit(),
            Err(bio) => {
                if write {
                    cow.health().end_write();
                }
                bio.end(Err(ENOMEM));
            }
        }
        None
    }
}

/// The chunks, from the first to before the last, that have sectors from `sector` to before `end`,
/// of which there is one at least.
fn chunks(cow: &Cow, sector: u64, end: u64) -> (u64, u64) {
    let geometry = cow.geometry();
    (geometry.chunk(sector), geometry.chunk(end - 1) + 1)
}

/// Where the sectors from `sector` on are, and how many of them, at most `most`, are there.
fn find(cow: &Cow, sector: u64, most: u32, write: bool, blank: Blank) -> Option<(Goal, u32)> {
    let geometry = cow.geometry();
    let mut end = sector.checked_add(u64::from(most))?;
    if end > geometry.sectors {
        return None;
    }
    let excluded = blank
        .has_excluded()
        .then(|| cow.next_excluded(sector))
        .flatten();
    if let Some((from, to)) = excluded {
        if from <= sector {
            // CAST: Not more than `most`.
            return Some((Goal::Nothing, (to.min(end) - sector) as u32));
        }
        end = end.min(from);
    }

    let map = cow.map();
    let (first, last) = chunks(cow, sector, end);
    // Before the places: see `cow::unused`.
    let unused = match blank.has_unused() {
        true => cow.unused_until(first, last),
        false => first,
    };
    let (goal, until) = match map.get(first) {
        Place::Untouched if !write && unused != first => {
            let to = map.untouched_until(first + 1, unused);
            (Goal::Nothing, geometry.sector(to))
        }
        Place::Untouched if !write => {
            // Most small reads are about one chunk.
            let to = if first + 1 == last {
                last
            } else {
                map.untouched_until(first + 1, cow.next_unused(first + 1, last))
            };
            (Goal::Original, geometry.sector(to))
        }
        Place::Untouched | Place::Reading | Place::InMemory => {
            (Goal::Wait(first), geometry.sector(first + 1))
        }
        Place::Stored(unit) => {
            let step = geometry.units_per_chunk();
            // CAST: The storage ends before `u32` does.
            let to = map.stored_until(first + 1, last, unit + step as u32, step);
            let until = geometry.sector(to).min(end);
            let skip = sector - geometry.sector(first);
            let extent = cow.space().locate(unit, skip, until - sector)?;
            let until = sector + extent.sectors;
            (Goal::Storage(extent.target, extent.sector), until)
        }
    };
    // CAST: Not more than `most`.
    Some((goal, (until.min(end) - sector) as u32))
}
