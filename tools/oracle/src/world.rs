// SPDX-License-Identifier: GPL-2.0-or-later

//! One run: the originals under load, and the steps of up to two snapshots at once.
//!
//! Each step has a number of its own from which all its choices follow, and does nothing where it
//! makes no sense. So any part of a list of steps is one, too, which is what shrinking needs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blksnap::{Control, DevId, EventKind, GenerationId, SectorRange, Sectors, SnapshotId, v2};

use crate::{
    disk::{Buffer, Node, Original},
    journal::{self, Found, Known},
    load::{self, FILLER, ImageUse, Shared},
    stamp::{SECTOR, Tag},
};

/// Snapshots at one time.
const SLOTS: usize = 2;

/// How long all writers together may take for one write.
const STUCK: Duration = Duration::from_secs(120);

/// A kind of step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Creates a snapshot of some originals.
    Create,
    /// Appends storage in odd pieces.
    Append,
    /// Takes a snapshot and checks the images.
    Take,
    /// Says of parts of a device that they were not used at the instant.
    Unused,
    /// Lets writers and users go on.
    Load,
    /// Ends a snapshot.
    Destroy,
}

/// A step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// All its choices.
    pub seed: u64,
}

/// The steps of a seed.
pub fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    let step = |_| Step {
        kind: match random.u8(..12) {
            0..2 => Kind::Create,
            2 => Kind::Append,
            3..6 => Kind::Take,
            6..8 => Kind::Load,
            10.. => Kind::Unused,
            _ => Kind::Destroy,
        },
        seed: random.u64(..),
    };
    (0..count).map(step).collect()
}

/// The user of one image.
struct User {
    usage: Arc<ImageUse>,
    thread: JoinHandle<()>,
}

/// A snapshot.
struct Held {
    id: SnapshotId,
    devices: Vec<usize>,
    /// The kernel holds its storage, which is made by the interface of 2025.
    held: bool,
    /// It gets too little storage, or may get it too late.
    lean: bool,
    /// The next sector of the slot's storage.
    storage: u64,
    users: Vec<User>,
    taken: bool,
}

/// What the last image of an original was like.
struct Last {
    generation: GenerationId,
    number: u8,
    tags: Vec<Tag>,
}

/// What a run counts.
#[derive(Default, Debug)]
pub struct Counts {
    /// Snapshots that were taken.
    pub takes: u64,
    /// Images that were checked.
    pub images: u64,
    /// Change maps that were compared with two images.
    pub maps: u64,
    /// How often it was said what was not used.
    pub unused: u64,
    /// Snapshots that failed for lack of storage.
    pub overflows: u64,
    /// Writes to the originals.
    pub writes: u64,
    /// Reads and writes of images.
    pub uses: u64,
}

/// A run.
pub struct World {
    shared: Arc<Shared>,
    control: Control,
    ids: Vec<DevId>,
    known: Vec<Known>,
    last: Vec<Option<Last>>,
    storage: DevId,
    storage_node: Node,
    /// Where the kernel may hold storage, and by what it is told.
    second: Option<(v2::Control, PathBuf)>,
    slots: [Option<Held>; SLOTS],
    writers: Vec<JoinHandle<()>>,
    users: usize,
    /// What has happened.
    pub counts: Counts,
}

impl World {
    /// Fills the originals and begins to write to them.
    pub fn new(
        originals: &[Original],
        storage: &str,
        held: Option<&Path>,
        writers: usize,
        seed: u64,
    ) -> Result<Self> {
        let shared = Shared::new(
            originals,
            writers,
            seed ^ u64::from(std::process::id()) << 32,
        );
        let filler = Tag::new(FILLER, 0);
        let mut buffer = Buffer::new(1024);
        for (device, original) in originals.iter().enumerate() {
            let nodes = original.open()?;
            for first in (0..original.sectors).step_by(1024) {
                let bytes = buffer.sectors(1024.min(original.sectors - first));
                shared.stamps(device).fill(bytes, first, filler);
                nodes[0]
                    .write(first, bytes)?
                    .context("filling an original")?;
            }
        }
        let known = |original: &Original| Known::filled(original.sectors, writers, filler);
        let ids = originals.iter().map(|o| DevId::resolve(&o.nodes[0].0));
        let mut this = Self {
            control: Control::open()?,
            ids: ids.collect::<Result<_, _>>()?,
            known: originals.iter().map(known).collect(),
            last: originals.iter().map(|_| None).collect(),
            storage: DevId::resolve(storage)?,
            storage_node: Node::open(storage, 0)?,
            second: match held {
                Some(path) => Some((v2::Control::open()?, path.to_owned())),
                None => None,
            },
            slots: [const { None }; SLOTS],
            writers: Vec::new(),
            users: 0,
            counts: Counts::default(),
            shared,
        };
        let mut random = fastrand::Rng::with_seed(seed);
        for writer in 0..writers {
            let (shared, random) = (this.shared.clone(), random.fork());
            this.writers.push(thread::spawn(move || {
                shared.note(load::write_originals(&shared, writer, random));
            }));
        }
        Ok(this)
    }

    /// Performs a step.
    pub fn step(&mut self, step: Step) -> Result<()> {
        let random = &mut fastrand::Rng::with_seed(step.seed);
        let slot = random.usize(..SLOTS);
        match step.kind {
            Kind::Create => self.create(slot, random)?,
            Kind::Append => {
                if let Some(held) = &self.slots[slot] {
                    if !held.lean {
                        let sectors = random.u64(1..2048);
                        self.append(slot, sectors, random)?;
                    }
                }
            }
            Kind::Take => self.take(slot, random)?,
            Kind::Unused => self.give_unused(slot, random)?,
            Kind::Load => self.load(random.usize(1..100))?,
            Kind::Destroy => self.destroy(slot)?,
        }
        match self.shared.failure() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn done(&self) -> usize {
        self.shared
            .journals
            .iter()
            .map(|journal| journal.done())
            .sum()
    }

    /// Waits until the writers have done so much more.
    fn load(&self, writes: usize) -> Result<()> {
        let goal = self.done() + writes;
        let mut last = (self.done(), Instant::now());
        while self.done() < goal && !self.shared.stops() {
            thread::sleep(Duration::from_millis(2));
            if self.done() > last.0 {
                last = (self.done(), Instant::now());
            }
            ensure!(
                last.1.elapsed() < STUCK,
                "the writers of the originals hang"
            );
        }
        Ok(())
    }

    fn create(&mut self, slot: usize, random: &mut fastrand::Rng) -> Result<()> {
        if self.slots[slot].is_some() {
            return Ok(());
        }
        let held = |device: &usize| {
            self.slots
                .iter()
                .flatten()
                .any(|h| h.devices.contains(device))
        };
        let mut free: Vec<_> = (0..self.ids.len()).filter(|device| !held(device)).collect();
        if free.is_empty() {
            return Ok(());
        }
        random.shuffle(&mut free);
        free.truncate(random.usize(1..=free.len()));
        let ids: Vec<_> = free.iter().map(|&device| self.ids[device]).collect();
        let sectors: u64 = free.iter().map(|&d| self.shared.originals[d].sectors).sum();
        let lean = random.u8(..6) == 0;
        let wanted = if lean {
            sectors / 20
        } else {
            sectors + sectors / 8 + 4096
        };
        let second = self.second.as_ref().filter(|_| random.bool());
        if let Some((control, path)) = second {
            let id = control.snapshot_create(path, Sectors(wanted))?;
            self.slots[slot] = Some(Held {
                id,
                devices: free,
                held: true,
                // What writes faster than a file grows may overflow at any time.
                lean: true,
                storage: 0,
                users: Vec::new(),
                taken: false,
            });
            for id_of_device in ids {
                v2::Device::of(id_of_device)?.snapshot_add(id)?;
            }
            return Ok(());
        }
        let id = self.control.snapshot_create(&ids)?;
        let size = self.storage_node.size() / SLOTS as u64;
        self.slots[slot] = Some(Held {
            id,
            devices: free,
            held: false,
            lean,
            storage: slot as u64 * size,
            users: Vec::new(),
            taken: false,
        });
        self.append(slot, wanted, random)
    }

    fn append(&mut self, slot: usize, sectors: u64, random: &mut fastrand::Rng) -> Result<()> {
        let end = (slot as u64 + 1) * (self.storage_node.size() / SLOTS as u64);
        let Some(held) = &mut self.slots[slot] else {
            return Ok(());
        };
        let mut ranges = Vec::new();
        let mut left = sectors;
        while left > 0 && held.storage < end {
            let pieces = [1, 7, 8, 13, 64, 1000, 1001, 4096, 16384];
            let length = pieces[random.usize(..pieces.len())].min(end - held.storage);
            ranges.push(SectorRange::new(held.storage, length));
            held.storage += length + random.u64(..3) * 4;
            // What a piece has beyond whole units cannot be used.
            left = left.saturating_sub(length & !7);
        }
        ensure!(
            left == 0,
            "the storage device is too small for these originals"
        );
        self.control
            .snapshot_append_storage(held.id, self.storage, &ranges)?;
        Ok(())
    }

    fn take(&mut self, slot: usize, random: &mut fastrand::Rng) -> Result<()> {
        let Some(held) = &mut self.slots[slot] else {
            return Ok(());
        };
        if held.taken {
            return Ok(());
        }
        let journals = &self.shared.journals;
        let done: Vec<_> = journals.iter().map(|journal| journal.done()).collect();
        match &self.second {
            Some((control, _)) if held.held => control.snapshot_take(held.id)?,
            _ => self.control.snapshot_take(held.id)?,
        }
        let begun: Vec<_> = journals.iter().map(|journal| journal.begun()).collect();
        held.taken = true;
        self.counts.takes += 1;

        let Some(held) = &self.slots[slot] else {
            return Ok(());
        };
        let mut images = Vec::new();
        for (&device, path) in held.devices.iter().zip(self.images(held)?) {
            let node = Node::open(&path, 0)?;
            let sectors = self.shared.originals[device].sectors;
            let size = node.size();
            ensure!(
                size == sectors,
                "the image of device {device} has {size} sectors"
            );
            match load::read_image(&node, self.shared.stamps(device), sectors)? {
                Ok(tags) => images.push((device, path, tags)),
                Err(errno) if held.lean => {
                    self.counts.overflows += 1;
                    return self
                        .check_failed(held, errno.raw_os_error())
                        .and_then(|()| self.check_storage_rests(slot, held));
                }
                Err(errno) => bail!("the image of device {device} cannot be read: {errno}"),
            }
        }
        let mut known: Vec<_> = self.known.iter_mut().map(Some).collect();
        let mut found: Vec<_> = images
            .iter()
            .filter_map(|(device, _, tags)| {
                Some(Found {
                    device: *device,
                    known: known[*device].take()?,
                    tags,
                })
            })
            .collect();
        journal::check(&mut found, journals, &done, &begun)?;
        self.counts.images += images.len() as u64;
        for (device, _, tags) in &images {
            self.compare_map(*device, tags)?;
        }

        let Some(held) = &mut self.slots[slot] else {
            return Ok(());
        };
        for (device, path, tags) in images {
            let usage = Arc::new(ImageUse::new());
            self.users += 1;
            let writer = self.users + FILLER;
            let (shared, mine, random) = (self.shared.clone(), usage.clone(), random.fork());
            let thread = thread::spawn(move || {
                let result = load::use_image(&shared, &mine, &path, device, (tags, writer), random);
                shared.note(result);
            });
            held.users.push(User { usage, thread });
        }
        Ok(())
    }

    /// Says of parts of a device of a taken snapshot, while it is written and its image is used, that they
    /// were not used.
    fn give_unused(&mut self, slot: usize, random: &mut fastrand::Rng) -> Result<()> {
        let Some(held) = &self.slots[slot] else {
            return Ok(());
        };
        let at = random.usize(..held.devices.len());
        // Not taken yet, or lost.
        let Some(user) = held.users.get(at) else {
            return Ok(());
        };
        let device = held.devices[at];
        let sectors = self.shared.originals[device].sectors;
        let most = if random.bool() { 64 } else { sectors / 2 };
        let ranges: Vec<_> = (0..random.usize(1..20))
            .map(|_| {
                let count = random.u64(1..=most.max(1));
                SectorRange::new(random.u64(..=sectors - count), count)
            })
            .collect();
        let bounds = ranges
            .iter()
            .map(|range| (range.start.0, range.start.0 + range.count.0));
        user.usage.unused.lock().unwrap().extend(bounds);
        let id = self.ids[device];
        let told = match &self.second {
            Some((control, _)) if held.held => control.snapshot_unused(held.id, id, &ranges),
            _ => self.control.snapshot_unused(held.id, id, &ranges),
        };
        match told {
            Ok(true) => self.counts.unused += 1,
            Ok(false) => bail!("the module does not want to know what was not used"),
            Err(error) if held.lean && error.errno() == Some(rustix::io::Errno::IO) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What differs from the image before must be marked in the change map.
    fn compare_map(&mut self, device: usize, tags: &[Tag]) -> Result<()> {
        let info = self.control.tracker(self.ids[device])?;
        let info = info.with_context(|| format!("device {device} has no tracker"))?;
        let map = self.control.cbt_map(&info)?;
        let last = self.last[device].replace(Last {
            generation: info.generation,
            number: info.number,
            tags: tags.to_vec(),
        });
        let Some(last) = last.filter(|last| last.generation == info.generation) else {
            return Ok(());
        };
        let block = info.block_size as usize / SECTOR;
        for (sector, (now, before)) in tags.iter().zip(&last.tags).enumerate() {
            let number = map.as_bytes()[sector / block];
            ensure!(
                now == before || number > last.number,
                "the change map of device {device} is incomplete: sector {sector} has changed \
                 since snapshot {}, from {before} to {now}, and block {} has number {number}",
                last.number,
                sector / block
            );
        }
        self.counts.maps += 1;
        Ok(())
    }

    fn destroy(&mut self, slot: usize) -> Result<()> {
        let Some(mut held) = self.slots[slot].take() else {
            return Ok(());
        };
        // So that what is checked in the end has seen some writes.
        self.load(10)?;
        let mut failed = 0;
        let mut full = false;
        for user in std::mem::take(&mut held.users) {
            user.usage.stop.store(true, Ordering::SeqCst);
            user.thread
                .join()
                .map_err(|_| anyhow!("a user of an image panicked"))?;
            self.counts.uses += user.usage.done.load(Ordering::SeqCst) as u64;
            failed = failed.max(user.usage.failed.load(Ordering::SeqCst));
            full |= user.usage.full.load(Ordering::SeqCst);
        }
        let result = if full && !held.lean {
            Err(anyhow!(
                "a write to an image found no storage, and there is enough"
            ))
        } else if failed == 0 {
            Ok(())
        } else if held.lean {
            self.counts.overflows += 1;
            self.check_failed(&held, failed as i32)
                .and_then(|()| self.check_storage_rests(slot, &held))
        } else {
            Err(anyhow!(
                "an image failed with errno {failed}, and there is storage enough"
            ))
        };
        self.end_snapshot(&held)?;
        result
    }

    /// The images of a snapshot, in the order of its devices.
    fn images(&self, held: &Held) -> Result<Vec<PathBuf>> {
        if !held.held {
            let images = self.control.images(held.id)?;
            return Ok(images.into_iter().map(|image| image.path).collect());
        }
        let path = |&device: &usize| {
            let device = v2::Device::of(self.ids[device])?;
            let stat = device.stat()?.context("the module has no counters")?;
            ensure!(
                0 < stat.storage_size && stat.storage_used <= stat.storage_size,
                "impossible counters: {stat:?}"
            );
            let info = device.snapshot_info()?;
            info.image.context("a device has no image")
        };
        held.devices.iter().map(path).collect()
    }

    fn end_snapshot(&self, held: &Held) -> Result<()> {
        match &self.second {
            Some((control, _)) if held.held => control.snapshot_destroy(held.id)?,
            _ => self.control.snapshot_destroy(held.id)?,
        }
        Ok(())
    }

    /// An image has failed with this errno: the snapshot must say so, for want of storage.
    fn check_failed(&self, held: &Held, errno: i32) -> Result<()> {
        ensure!(
            errno == 5,
            "an image failed with errno {errno}, not with EIO"
        );
        // It comes when the last write to the storage has ended.
        let patience = Duration::from_secs(60);
        match &self.second {
            Some((control, _)) if held.held => {
                while let Some(event) = control.wait_event(held.id, patience)? {
                    if let v2::EventKind::Corrupted { .. } = event.kind {
                        return Ok(());
                    }
                }
            }
            _ => {
                while let Some(event) = self.control.wait_event(held.id, patience)? {
                    if let EventKind::Corrupted { .. } = event.kind {
                        return Ok(());
                    }
                }
            }
        }
        bail!("an image failed, and no event tells of it")
    }

    /// After a failure nothing more is stored, once what was under way has ended: even if there is
    /// room again.
    fn check_storage_rests(&self, slot: usize, held: &Held) -> Result<()> {
        if held.held {
            // Nobody can look at it.
            return Ok(());
        }
        let size = self.storage_node.size() / SLOTS as u64;
        let start = slot as u64 * size;
        let more = SectorRange::new(held.storage, 4096.min(start + size - held.storage));
        let read = || -> Result<Vec<u8>> {
            let sectors = more.start.0 + more.count.0 - start;
            let mut buffer = Buffer::new(sectors as usize);
            let bytes = buffer.sectors(sectors);
            let done = self.storage_node.read(start, bytes)?;
            done.context("read of the storage")?;
            Ok(bytes.to_vec())
        };
        self.load(50)?;
        let before = read()?;
        self.control
            .snapshot_append_storage(held.id, self.storage, &[more])?;
        self.load(100)?;
        let rests = read()? == before;
        ensure!(rests, "something was stored after the snapshot had failed");
        Ok(())
    }

    /// Ends all: destroys what there is and stops the writers. To be called whatever happened.
    pub fn end(mut self, mut result: Result<()>) -> Result<Counts> {
        if result.is_ok() {
            for slot in 0..SLOTS {
                result = result.and_then(|()| self.destroy(slot));
            }
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            let joined = writer.join().map_err(|_| anyhow!("a writer panicked"));
            result = result.and(joined);
        }
        for slot in 0..SLOTS {
            let Some(mut held) = self.slots[slot].take() else {
                continue;
            };
            for user in std::mem::take(&mut held.users) {
                let joined = user.thread.join().map_err(|_| anyhow!("a user panicked"));
                result = result.and(joined);
            }
            result = result.and(self.end_snapshot(&held));
        }
        for &id in &self.ids {
            if self.control.tracker(id)?.is_some() {
                result = result.and(self.control.tracker_remove(id).map_err(Into::into));
            }
        }
        result = result.and(self.shared.failure().map_or(Ok(()), Err));
        self.counts.writes = self.done() as u64;
        result.map(|()| self.counts)
    }
}
