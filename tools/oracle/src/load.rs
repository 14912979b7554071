// SPDX-License-Identifier: GPL-2.0-or-later

//! The writers of the originals, and the user of an image.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use crate::{
    disk::{Buffer, Node, Original},
    journal::{Entry, Journal, Kind, REGION, Wanted},
    stamp::{Stamps, Tag},
};

/// The writer that every sector has at first.
pub const FILLER: usize = 1 << 20;

/// What all threads share.
pub struct Shared {
    /// The originals.
    pub originals: Vec<Original>,
    /// A journal for each writer.
    pub journals: Vec<Journal>,
    /// Makes stamps of this run different from others'.
    pub run: u64,
    /// The run ends.
    pub stop: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Shared {
    /// At the beginning.
    pub fn new(originals: &[Original], writers: usize, run: u64) -> Arc<Self> {
        Arc::new(Self {
            originals: originals.to_vec(),
            journals: (0..writers).map(|_| Journal::default()).collect(),
            run,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    /// The stamps of a device.
    pub fn stamps(&self, device: usize) -> Stamps {
        Stamps {
            run: self.run,
            device: device as u64,
        }
    }

    /// The first failure of all ends the run.
    pub fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            self.failure.lock().unwrap().get_or_insert(error);
            self.stop.store(true, Ordering::SeqCst);
        }
    }

    /// The failure, if there was one.
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap().take()
    }

    /// Whether the run ends.
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A length of 1 to `most`, short ones as likely as long ones.
fn any_length(random: &mut fastrand::Rng, most: u64) -> u64 {
    let log = random.f64() * (most as f64).log2();
    (log.exp2() as u64).clamp(1, most)
}

/// Writes to the originals, and reads what it wrote, until the run ends.
pub fn write_originals(shared: &Shared, writer: usize, mut random: fastrand::Rng) -> Result<()> {
    let journal = &shared.journals[writer];
    let writers = shared.journals.len() as u64;
    let nodes: Vec<Vec<Node>> = shared
        .originals
        .iter()
        .map(Original::open)
        .collect::<Result<_>>()?;
    let filled = Wanted::just(Tag::new(FILLER, 0));
    let mut mine: Vec<Vec<Wanted>> = shared
        .originals
        .iter()
        .map(|original| vec![filled; original.sectors as usize])
        .collect();
    let mut buffer = Buffer::new(REGION as usize);
    while !shared.stops() {
        let device = random.usize(..nodes.len());
        let sectors = shared.originals[device].sectors;
        let regions = sectors.div_ceil(REGION);
        let count = (regions + writers - 1 - writer as u64) / writers;
        if count == 0 {
            continue;
        }
        let region = (writer as u64 + random.u64(..count) * writers) * REGION;
        let end = (region + REGION).min(sectors);
        let count = any_length(&mut random, end - region);
        let first = region + random.u64(..=end - region - count);
        let mut node = &nodes[device][random.usize(..nodes[device].len())];
        if !node.has(first, count) {
            node = &nodes[device][0];
        }
        let stamps = shared.stamps(device);
        let what = random.u8(..100);
        if what < 10 {
            let bytes = buffer.sectors(count);
            node.read(first, bytes)?.context("read of an original")?;
            for (sector, bytes) in (first..).zip(bytes.chunks_exact(512)) {
                let found = stamps
                    .read(bytes, sector)
                    .context("an original was harmed")?;
                let wanted = mine[device][sector as usize];
                ensure!(
                    wanted.allows(found),
                    "original {device} was harmed: sector {sector} has {found}, wanted {wanted}"
                );
            }
            continue;
        }
        let kind = match what {
            0..18 => Kind::Zero,
            18..24 => Kind::Discard,
            _ => Kind::Write,
        };
        let number = journal.begin(Entry {
            device,
            first,
            count,
            kind,
        });
        match kind {
            Kind::Write => {
                let bytes = buffer.sectors(count);
                stamps.fill(bytes, first, Tag::new(writer, number));
                node.write(first, bytes)?.context("write to an original")?;
            }
            Kind::Zero => node.zero(first, count)?,
            Kind::Discard => node.discard(first, count)?,
        }
        for wanted in &mut mine[device][first as usize..(first + count) as usize] {
            *wanted = wanted.after(writer, number, kind);
        }
        journal.end();
    }
    Ok(())
}

/// Reads an image in full.
pub fn read_image(node: &Node, stamps: Stamps, sectors: u64) -> Result<Result<Vec<Tag>, Errno>> {
    let mut buffer = Buffer::new(1024);
    let mut tags = Vec::with_capacity(sectors as usize);
    for first in (0..sectors).step_by(1024) {
        let bytes = buffer.sectors(1024.min(sectors - first));
        if let Err(errno) = node.read(first, bytes)? {
            return Ok(Err(errno));
        }
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(512)) {
            tags.push(stamps.read(bytes, sector).context("an image lies")?);
        }
    }
    Ok(Ok(tags))
}

/// An image in use.
pub struct ImageUse {
    /// It is to end.
    pub stop: AtomicBool,
    /// Reads and writes so far.
    pub done: AtomicUsize,
    /// An error of the image, as an errno: right only if the snapshot has failed.
    pub failed: AtomicUsize,
    /// A write found no storage: right only if there is little.
    pub full: AtomicBool,
    /// What the module is told, or about to be told, not to have been used: from which sector to before
    /// which. It reads as zeroes, or as it did; which, does not change any more.
    pub unused: Mutex<Vec<(u64, u64)>>,
}

impl ImageUse {
    /// Nothing was done.
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            unused: Mutex::new(Vec::new()),
        }
    }

    /// Whether what was found in a sector is right, after `known`, of which the image's user may be the
    /// writer. It is known from then on.
    fn allows(&self, sector: u64, found: Tag, known: &mut Tag, user: usize) -> bool {
        let may_be_zero = || {
            let unused = self.unused.lock().unwrap();
            unused
                .iter()
                .any(|&(from, to)| (from..to).contains(&sector))
        };
        let right = found == *known || found == Tag::ZERO && !known.is_of(user) && may_be_zero();
        if right {
            *known = found;
        }
        right
    }
}

/// Reads an image and writes to it until it is stopped, and then looks at all of it.
pub fn use_image(
    shared: &Shared,
    usage: &ImageUse,
    path: &std::path::Path,
    device: usize,
    (mut tags, writer): (Vec<Tag>, usize),
    mut random: fastrand::Rng,
) -> Result<()> {
    let node = Node::open(path, 0)?;
    let stamps = shared.stamps(device);
    let sectors = tags.len() as u64;
    let mut buffer = Buffer::new(REGION as usize);
    let failed = |errno: Errno| {
        usage
            .failed
            .store(errno.raw_os_error() as usize, Ordering::SeqCst);
        Ok(())
    };
    let mut number = 0;
    while !usage.stop.load(Ordering::SeqCst) && !shared.stops() {
        let count = any_length(&mut random, REGION.min(sectors));
        let first = random.u64(..=sectors - count);
        let range = first as usize..(first + count) as usize;
        let bytes = buffer.sectors(count);
        if random.u8(..6) == 0 {
            let tag = Tag::new(writer, number);
            number += 1;
            stamps.fill(bytes, first, tag);
            match node.write(first, bytes)? {
                Ok(()) => tags[range].fill(tag),
                Err(Errno::NOSPC) => {
                    usage.full.store(true, Ordering::SeqCst);
                    // It may have been written in part.
                    if let Err(errno) = node.read(first, bytes)? {
                        return failed(errno);
                    }
                    for (sector, bytes) in (first..).zip(bytes.chunks_exact(512)) {
                        let found = stamps.read(bytes, sector).context("an image lies")?;
                        let known = &mut tags[sector as usize];
                        if found != tag && !usage.allows(sector, found, known, writer) {
                            bail!(
                                "the image of device {device} changed: sector {sector} has {found}, \
                                 wanted {known} or {tag}"
                            );
                        }
                        *known = found;
                    }
                }
                Err(errno) => return failed(errno),
            }
        } else {
            if let Err(errno) = node.read(first, bytes)? {
                return failed(errno);
            }
            for (sector, bytes) in (first..).zip(bytes.chunks_exact(512)) {
                let found = stamps.read(bytes, sector).context("an image lies")?;
                let wanted = &mut tags[sector as usize];
                if !usage.allows(sector, found, wanted, writer) {
                    bail!(
                        "the image of device {device} changed: sector {sector} has {found}, wanted {wanted}"
                    );
                }
            }
        }
        usage.done.fetch_add(1, Ordering::SeqCst);
    }
    if shared.stops() {
        return Ok(());
    }
    match read_image(&node, stamps, sectors)? {
        Err(errno) => failed(errno),
        Ok(found) => {
            for (sector, (found, wanted)) in (0..).zip(found.into_iter().zip(&mut tags)) {
                ensure!(
                    usage.allows(sector, found, wanted, writer),
                    "the image of device {device} changed: sector {sector} has {found}, wanted {wanted}"
                );
            }
            Ok(())
        }
    }
}
