// SPDX-License-Identifier: GPL-2.0

//! `src/image/io.rs`.

use core::{ops::Range, sync::atomic::Ordering::Relaxed as Counting};
use kernel::planted::{Fault, planted};

use crate::{Failed, OLD, ZERO, chunk_map::Place, cow::Cow};

/// A part of a bio of the image.
#[derive(Clone, Debug)]
pub struct ImageBio {
    pub chunks: Range<u64>,
    /// The data, if it is a write.
    pub write: Option<u32>,
    /// What a read may give beside the data as of the instant.
    pub written: Vec<u32>,
}

impl ImageBio {
    /// The end of a part: the data that was read, or written.
    fn end(self, cow: &Cow, result: Result<Vec<u32>, Failed>) {
        match result {
            Ok(data) if self.write.is_none() => {
                assert_eq!(data.len() as u64, self.chunks.end - self.chunks.start);
                for (chunk, data) in self.chunks.clone().zip(data) {
                    let right = data == OLD || self.written.contains(&data);
                    assert!(right, "the image lies");
                    if data == ZERO {
                        cow.zeroes[chunk as usize].store(1, Counting);
                    }
                }
            }
            Ok(_) => {}
            Err(Failed) => assert!(
                cow.failures.load(Counting) > 0,
                "an error without a failure"
            ),
        }
        let parts = (self.chunks.end - self.chunks.start) as u32;
        cow.ended.fetch_add(parts, Counting);
    }
}

enum Target {
    Nothing,
    Original(u64),
    Storage(u32),
    Wait(u64),
}

/// Serves a bio of the image.
pub fn submit(cow: &Cow, bio: ImageBio) {
    let mut next = Some(bio);
    let mut rest: Vec<ImageBio> = Vec::new();
    while let Some(mut bio) = next.take().or_else(|| rest.pop()) {
        if cow.image_has_failed() {
            bio.end(cow, Err(Failed));
            continue;
        }
        let blank = cow.blank();
        let (target, until) = find(cow, &bio, blank);
        if until < bio.chunks.end {
            let mut tail = bio.clone();
            tail.chunks.start = until;
            bio.chunks.end = until;
            rest.push(tail);
        }
        next = send(cow, bio, target, blank);
    }
}

fn find(cow: &Cow, bio: &ImageBio, blank: bool) -> (Target, u64) {
    let (first, last) = (bio.chunks.start, bio.chunks.end);
    let look = || {
        if blank {
            cow.unused.until(first, last)
        } else {
            first
        }
    };
    let mut unused = look();
    let place = cow.map.get(first);
    if planted(Fault::LookForUnusedLate) {
        unused = look();
    }
    match place {
        Place::Untouched if bio.write.is_none() && unused != first => {
            (Target::Nothing, cow.map.untouched_until(first + 1, unused))
        }
        Place::Untouched if bio.write.is_none() => {
            let needed = if blank {
                cow.unused.next(first + 1, last)
            } else {
                last
            };
            let to = cow.map.untouched_until(first + 1, needed);
            (Target::Original(to), to)
        }
        Place::Untouched | Place::Reading | Place::InMemory => (Target::Wait(first), first + 1),
        Place::Stored(unit) => {
            let to = cow.map.stored_until(first + 1, last, unit + 1, 1);
            (Target::Storage(unit), to)
        }
    }
}

fn send(cow: &Cow, bio: ImageBio, target: Target, blank: bool) -> Option<ImageBio> {
    let count = (bio.chunks.end - bio.chunks.start) as u32;
    match (target, bio.write) {
        (Target::Nothing, _) => {
            bio.end(cow, Ok(vec![ZERO; count as usize]));
            None
        }
        (Target::Wait(chunk), _) => cow.park(bio, chunk),
        (Target::Original(to), _) => {
            let read = |chunk| cow.origin.read_optimistic(chunk);
            let data = bio.chunks.clone().map(read).collect();
            end_io(cow, bio, data, Some(to), blank)
        }
        (Target::Storage(unit), Some(data)) => {
            (unit..unit + count).for_each(|unit| cow.storage.write(unit, data));
            end_io(cow, bio, Vec::new(), None, blank)
        }
        (Target::Storage(unit), None) => {
            let data = (unit..unit + count).map(|unit| cow.storage.read(unit));
            let data = data.collect();
            end_io(cow, bio, data, None, blank)
        }
    }
}

/// The end of a clone. Gives the part back if it is to be done again.
fn end_io(
    cow: &Cow,
    bio: ImageBio,
    data: Vec<u32>,
    untouched: Option<u64>,
    blank: bool,
) -> Option<ImageBio> {
    let first = bio.chunks.start;
    let overtaken = untouched.is_some_and(|to| {
        cow.map.untouched_until(first, to) != to
            || cow.blank() != blank && !planted(Fault::NoLookForFirstUnused)
            || blank && cow.unused.next(first, to) != to && !planted(Fault::NoLookForUnused)
    });
    if cow.image_has_failed() && !planted(Fault::NoErrorCheck) {
        bio.end(cow, Err(Failed));
    } else if overtaken && !planted(Fault::NoLookAfterRead) {
        return Some(bio);
    } else {
        bio.end(cow, Ok(data));
    }
    None
}
