// SPDX-License-Identifier: GPL-2.0-or-later

//! What was written when, and what follows for an image.
//!
//! Each writer has sectors of its own, on all devices, and writes one thing after the other. Each
//! write is noted before it is submitted, and counted when it has ended. So at an instant, somewhere
//! between two looks at the journal, of each writer all writes up to some one have ended, the next
//! one may be done in part, and none after it has begun: on all devices of the snapshot alike.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Result, bail};

use crate::stamp::Tag;

/// Sectors in a region, that has one writer: not a multiple of anything, so that writers share
/// chunks.
pub const REGION: u64 = 509;

/// What was done to sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// They got stamps.
    Write,
    /// They are zero.
    Zero,
    /// They are zero or what they were before.
    Discard,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The number of the device.
    pub device: usize,
    /// The first sector.
    pub first: u64,
    /// The number of sectors.
    pub count: u64,
    /// What was done.
    pub kind: Kind,
}

/// What a sector must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    tag: Tag,
    or_zero: bool,
}

impl Wanted {
    /// Just this.
    pub fn just(tag: Tag) -> Self {
        Self {
            tag,
            or_zero: false,
        }
    }

    /// After this write of a writer.
    pub fn after(self, writer: usize, number: usize, kind: Kind) -> Self {
        match kind {
            Kind::Write => Self::just(Tag::new(writer, number)),
            Kind::Zero => Self::just(Tag::ZERO),
            Kind::Discard => Self {
                or_zero: true,
                ..self
            },
        }
    }

    /// Whether it may hold this.
    pub fn allows(self, found: Tag) -> bool {
        self.tag == found || self.or_zero && found == Tag::ZERO
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or = if self.or_zero { ", or zeroes" } else { "" };
        write!(f, "{}{or}", self.tag)
    }
}

/// The writes of one writer.
#[derive(Default)]
pub struct Journal {
    entries: Mutex<Vec<Entry>>,
    done: AtomicUsize,
}

impl Journal {
    /// Notes a write that is about to be submitted. Returns its number.
    pub fn begin(&self, entry: Entry) -> usize {
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry);
        entries.len() - 1
    }

    /// The last one has ended.
    pub fn end(&self) {
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// How many have ended.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// How many have begun.
    pub fn begun(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    /// Those from one number to before another.
    pub fn between(&self, from: usize, to: usize) -> Vec<Entry> {
        self.entries.lock().unwrap()[from..to].to_vec()
    }
}

/// The writer of a sector.
pub fn writer_of(sector: u64, writers: usize) -> usize {
    (sector / REGION) as usize % writers
}

/// What is known of one device: what it held after some writes of each writer.
pub struct Known {
    wanted: Vec<Wanted>,
    after: Vec<usize>,
}

impl Known {
    /// All sectors were filled with one tag.
    pub fn filled(sectors: u64, writers: usize, tag: Tag) -> Self {
        Self {
            wanted: vec![Wanted::just(tag); sectors as usize],
            after: vec![0; writers],
        }
    }

    /// Goes on to after `done` writes of a writer.
    fn advance(&mut self, device: usize, writer: usize, journal: &Journal, done: usize) {
        let from = self.after[writer];
        for (number, entry) in (from..).zip(journal.between(from, done)) {
            if entry.device == device {
                let range = entry.first as usize..(entry.first + entry.count) as usize;
                for wanted in &mut self.wanted[range] {
                    *wanted = wanted.after(writer, number, entry.kind);
                }
            }
        }
        self.after[writer] = done;
    }
}

/// One device of a snapshot: its number, what is known of it, and what its image was found to hold.
pub struct Found<'a> {
    /// The number of the device.
    pub device: usize,
    /// What is known of it.
    pub known: &'a mut Known,
    /// The image's tags.
    pub tags: &'a [Tag],
}

/// Checks images against the journal: `done` writes of each writer had ended before the take, and
/// `begun` had begun when it was over.
pub fn check(
    found: &mut [Found<'_>],
    journals: &[Journal],
    done: &[usize],
    begun: &[usize],
) -> Result<()> {
    for (writer, journal) in journals.iter().enumerate() {
        for item in found.iter_mut() {
            item.known
                .advance(item.device, writer, journal, done[writer]);
        }
        let window = journal.between(done[writer], begun[writer]);
        check_writer(found, writer, journals.len(), done[writer], &window)?;
    }
    Ok(())
}

fn check_writer(
    found: &[Found<'_>],
    writer: usize,
    writers: usize,
    done: usize,
    window: &[Entry],
) -> Result<()> {
    // What the window does not touch is certain.
    let mut open = Vec::new();
    for item in found {
        let mut touched = vec![false; item.tags.len()];
        for entry in window.iter().filter(|entry| entry.device == item.device) {
            touched[entry.first as usize..(entry.first + entry.count) as usize].fill(true);
        }
        for sector in (0..item.tags.len()).filter(|&s| writer_of(s as u64, writers) == writer) {
            let (wanted, tag) = (item.known.wanted[sector], item.tags[sector]);
            if touched[sector] {
                open.push((item.device, sector as u64, wanted, tag));
            } else if !wanted.allows(tag) {
                bail!(
                    "the image of device {} lies: sector {sector} has {tag}, wanted {wanted}; \
                     {done} writes of writer {writer} had ended before the take",
                    item.device
                );
            }
        }
    }
    // The last write that is there in full, and the next one, which may be there in part.
    let mut wrong = String::new();
    for cut in 0..=window.len() {
        let explains = open.iter().find(|&&(device, sector, mut wanted, tag)| {
            let covers = |entry: &&Entry| {
                entry.device == device && (entry.first..entry.first + entry.count).contains(&sector)
            };
            for (number, entry) in window[..cut].iter().enumerate() {
                if covers(&entry) {
                    wanted = wanted.after(writer, done + number, entry.kind);
                }
            }
            let part = window.get(cut).filter(covers);
            let part = part.map(|entry| wanted.after(writer, done + cut, entry.kind));
            !wanted.allows(tag) && !part.is_some_and(|wanted| wanted.allows(tag))
        });
        let Some((device, sector, _, tag)) = explains else {
            return Ok(());
        };
        wrong += &format!(
            "\n  after {}: sector {sector} of device {device} has {tag}",
            done + cut
        );
    }
    bail!("no instant explains what the images have of writer {writer}:{wrong}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Entry = Entry {
        device: 0,
        first: 0,
        count: 2,
        kind: Kind::Write,
    };

    fn verdict(tags: [u32; 4], done: usize) -> bool {
        let journal = Journal::default();
        for first in [0, 1, 2] {
            journal.begin(Entry { first, ..WRITE });
        }
        let fill = Tag::new(9, 0);
        let tag = |n: u32| n.checked_sub(1).map_or(fill, |n| Tag::new(0, n as usize));
        let mut known = Known::filled(4, 1, fill);
        let mut found = [Found {
            device: 0,
            known: &mut known,
            tags: &tags.map(tag),
        }];
        check(&mut found, &[journal], &[done], &[3]).is_ok()
    }

    #[test]
    fn an_image_is_a_beginning_of_the_journal() {
        for right in [
            [0; 4],
            [1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 2, 2, 0],
            [1, 2, 3, 3],
            [1, 2, 2, 3],
        ] {
            assert!(verdict(right, 0), "{right:?}");
        }
        for wrong in [[1, 0, 3, 3], [0, 2, 2, 0], [0, 1, 0, 3], [1, 1, 3, 0]] {
            assert!(!verdict(wrong, 0), "{wrong:?}");
        }
        assert!(!verdict([0; 4], 1));
        assert!(!verdict([1, 0, 0, 0], 1));
        assert!(verdict([1, 1, 0, 0], 1));
        assert!(!verdict([1, 2, 2, 3], 3));
        assert!(verdict([1, 2, 3, 3], 3));
    }

    #[test]
    fn a_discard_leaves_two_possibilities() {
        let wanted = Wanted::just(Tag::new(0, 1)).after(0, 2, Kind::Discard);
        assert!(wanted.allows(Tag::ZERO) && wanted.allows(Tag::new(0, 1)));
        assert!(!wanted.after(0, 3, Kind::Write).allows(Tag::ZERO));
        assert!(!wanted.after(0, 3, Kind::Zero).allows(Tag::new(0, 1)));
    }
}
