// SPDX-License-Identifier: GPL-2.0-or-later

//! The data of what is seen of a chain, read by several threads, and checked.
//!
//! Small extents are read into one buffer, many of them, so that threads hand over megabytes.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};

use crate::buffer::{self, Buffer};
use crate::chain::Layer;
use crate::format::Reader;
use crate::pipeline;
use crate::seen::Seen;
use crate::watch::Watch;

/// Files that are open at a time: chains may be longer.
const OPEN: usize = 128;
/// Extents in one buffer, at the most.
const TOGETHER: usize = 256;
/// Direct I/O wants such addresses.
const ALIGN: usize = 4096;

/// A file that is open, or why it is not.
type Opened = Result<Arc<dyn Reader>, Arc<str>>;

/// The files of layers, opened as they are needed, for several threads.
pub struct Readers {
    /// The one used last is the first.
    open: Mutex<VecDeque<(PathBuf, Opened)>>,
    /// Whether to try again what has failed.
    again: bool,
}

impl Readers {
    /// None is open yet. With `again`, what has failed is opened again the next time.
    pub fn new(again: bool) -> Self {
        Self {
            open: Mutex::default(),
            again,
        }
    }

    /// Reads from the file of a layer.
    pub fn read(&self, layer: &Layer, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let file = layer.file();
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let mut open = open();
            let at = open.iter().position(|(path, _)| *path == file);
            let known = at.and_then(|at| open.remove(at));
            // Where it was used last.
            known.map(|known| {
                let opened = known.1.clone();
                open.push_front(known);
                opened
            })
        };
        let opened = known.unwrap_or_else(|| {
            // Others go on meanwhile: of some formats all records are looked at.
            let new: Opened = match layer.reader() {
                Ok(reader) => Ok(reader.into()),
                Err(error) => Err(format!("{error:#}").into()),
            };
            let last = {
                let mut open = open();
                open.push_front((file.clone(), new.clone()));
                (open.len() > OPEN).then(|| open.pop_back())
            };
            drop(last);
            new
        });
        let read = match opened {
            Ok(reader) => reader.read(offset, bytes),
            Err(error) => Err(anyhow!("{error}")),
        };
        if read.is_err() && self.again {
            open().retain(|(path, _)| *path != file);
        }
        read
    }
}

/// Extents whose data is in one buffer.
struct Group {
    /// With the place in the buffer, which is empty if the data is not wanted.
    items: Vec<(Seen, Range<usize>)>,
}

/// Puts extents together, as many as have room in a buffer.
struct Groups<I, F> {
    seen: I,
    wanted: F,
    /// What had no room any more.
    next: Option<Seen>,
}

impl<I: Iterator<Item = Result<Seen>>, F: Fn(&Seen) -> bool> Iterator for Groups<I, F> {
    type Item = Result<Group>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut items, mut used) = (Vec::new(), 0usize);
        while items.len() < TOGETHER {
            let seen = match self.next.take().map(Ok).or_else(|| self.seen.next()) {
                None => break,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(seen)) => seen,
            };
            let wanted = !seen.is_zeros() && (self.wanted)(&seen);
            // No extent of data is longer than a buffer.
            let length = if wanted {
                seen.extent.length as usize
            } else {
                0
            };
            if used + length > buffer::SIZE {
                self.next = Some(seen);
                break;
            }
            items.push((seen, used..used + length));
            used = (used + length).next_multiple_of(ALIGN);
        }
        (!items.is_empty()).then_some(Ok(Group { items }))
    }
}

/// Hands all that is seen of some layers to `sink`, in order: of what is `wanted` with the data of the
/// whole extent, and what `work` has made of it, in the thread that has read it; or why it could not be
/// read, or that its checksum is wrong. Of zeros, and what is not wanted, `work` gets no bytes.
pub fn read<T: Send>(
    layers: &[Layer],
    seen: impl Iterator<Item = Result<Seen>>,
    wanted: impl Fn(&Seen) -> bool,
    watch: &dyn Watch,
    work: impl Fn(&Seen, &[u8]) -> Result<T> + Sync,
    mut sink: impl FnMut(Seen, &[u8], Result<T>) -> Result<()>,
) -> Result<()> {
    let readers = Readers::new(false);
    let load = |seen: &Seen, bytes: &mut [u8]| {
        readers.read(&layers[seen.layer], seen.extent.start, bytes)?;
        ensure!(seen.extent.matches(bytes), "the checksum is wrong");
        Ok(())
    };
    let start = || {
        Ok(|buffer: &mut Buffer, group: &Group| {
            let items = group.items.iter().map(|(seen, place)| {
                let bytes = &mut buffer.bytes_mut()[place.clone()];
                let good = if place.is_empty() {
                    Ok(())
                } else {
                    load(seen, bytes)
                };
                match good {
                    Ok(()) => work(seen, bytes).map(Ok),
                    Err(error) => Ok(Err(error)),
                }
            });
            items.collect::<Result<Vec<Result<T>>>>()
        })
    };
    let groups = Groups {
        seen,
        wanted,
        next: None,
    };
    pipeline::run(groups, start, watch, |buffer, group, done| {
        for ((seen, place), done) in group.items.into_iter().zip(done) {
            let done = done.with_context(|| layers[seen.layer].damaged(&seen.extent));
            sink(seen, &buffer.bytes()[place], done)?;
        }
        Ok(())
    })
}

/// Nothing to be done with an extent in the threads.
pub fn no_work(_: &Seen, _: &[u8]) -> Result<()> {
    Ok(())
}
