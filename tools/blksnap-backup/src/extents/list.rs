// SPDX-License-Identifier: GPL-2.0-or-later

//! A list of extents, in its file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use blake3::{Hash, Hasher};

use super::index::{Index, sum};
use super::{Extent, parse};

/// Bytes of a line: what is longer is none.
const LONGEST: u64 = 4096;

/// The extents of one device in one backup. A clone is the same list.
#[derive(Clone, Debug)]
pub struct Extents(Arc<List>);

/// What is known of a list.
#[derive(Debug)]
struct List {
    path: PathBuf,
    hash: Hash,
    index: Arc<Index>,
    /// The block that was read last, and which one it is.
    last: Mutex<Option<(usize, Arc<[Extent]>)>>,
}

impl Extents {
    /// Reads those of a device of `size` bytes from a file, and checks them against the checksum of
    /// the file. Only where they are is remembered.
    pub fn open(path: &Path, hash: Hash, size: u64) -> Result<Self> {
        let read = || -> Result<Self> {
            let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
            let mut hasher = Hasher::new();
            let mut index = Index::new();
            let mut line = Vec::new();
            let mut wrong = None;
            while file.by_ref().take(LONGEST).read_until(b'\n', &mut line)? > 0 {
                hasher.update(&line);
                match parse(&line, index.end..size) {
                    Ok(extent) => index.add(&extent, &line),
                    Err(error) => {
                        let number = index.count + 1;
                        wrong.get_or_insert_with(|| error.context(format!("line {number}")));
                    }
                }
                line.clear();
            }
            ensure!(hasher.finalize() == hash, "its checksum is wrong");
            wrong.map_or(Ok(Self::of(path, hash, index.into())), Err)
        };
        read().with_context(|| format!("the list of extents {}", path.display()))
    }

    /// Of a file that was just written, or checked.
    pub(super) fn of(path: &Path, hash: Hash, index: Arc<Index>) -> Self {
        Self(Arc::new(List {
            path: path.to_owned(),
            hash,
            index,
            last: Mutex::default(),
        }))
    }

    /// Gives the file another name, and the list of that.
    pub fn renamed(&self, path: &Path) -> Result<Self> {
        std::fs::rename(self.path(), path)
            .with_context(|| format!("cannot rename {}", self.path().display()))?;
        Ok(Self::of(path, self.hash(), self.0.index.clone()))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The checksum of its file.
    pub fn hash(&self) -> Hash {
        self.0.hash
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.index.count
    }

    /// Bytes of data, and of zeros.
    pub fn totals(&self) -> (u64, u64) {
        self.0.index.totals
    }

    /// Whether they are all of a device of `size` bytes.
    pub fn is_all(&self, size: u64) -> bool {
        self.0.index.gapless && self.0.index.end == size
    }

    /// All of them, ascending.
    pub fn iter(&self) -> Cursor {
        self.from(0)
    }

    /// Those that have something of a place or of what is behind it, ascending.
    pub fn from(&self, place: u64) -> Cursor {
        let mut cursor = Cursor {
            list: self.clone(),
            next: 0,
            block: Vec::new().into(),
            at: 0,
            place: 0,
        };
        cursor.skip_to(place);
        cursor
    }

    /// Those that have something of a range, ascending.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = Result<Extent>> {
        self.from(range.start).take_while(move |extent| {
            extent
                .as_ref()
                .map_or(true, |extent| extent.start < range.end)
        })
    }

    /// Reads a block.
    fn block(&self, number: usize) -> Result<Arc<[Extent]>> {
        let last = || self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, block)) = &*last() {
            if *at == number {
                return Ok(block.clone());
            }
        }
        let read = || -> Result<Arc<[Extent]>> {
            let index = &self.0.index;
            let block = index.blocks[number];
            let next = index.blocks.get(number + 1);
            let (place, room) =
                next.map_or((index.size, index.end), |next| (next.place, next.start));
            let mut text = vec![0; usize::try_from(place - block.place)?];
            // The file is not held open: a chain may have hundreds of lists.
            File::open(self.path())?.read_exact_at(&mut text, block.place)?;
            let lines = || text.split_inclusive(|&byte| byte == b'\n');
            let all = lines().fold(0u64, |all, line| all.wrapping_add(sum(line)));
            ensure!(all == block.sum, "it has changed since it was checked");
            let (mut extents, mut end) = (Vec::new(), block.start);
            for line in lines() {
                let extent = parse(line, end..room)?;
                end = extent.range().end;
                extents.push(extent);
            }
            Ok(extents.into())
        };
        let block =
            read().with_context(|| format!("the list of extents {}", self.path().display()))?;
        *last() = Some((number, block.clone()));
        Ok(block)
    }
}

/// Extents of a list, one after the other.
pub struct Cursor {
    list: Extents,
    /// The number of the next block.
    next: usize,
    block: Arc<[Extent]>,
    /// The next one in the block.
    at: usize,
    /// What ends before is left out.
    place: u64,
}

impl Cursor {
    /// Leaves out what ends before a place; those that have passed do not come again.
    pub fn skip_to(&mut self, place: u64) {
        self.place = self.place.max(place);
        let block = self.list.0.index.block_of(place);
        if block >= self.next {
            self.next = block;
            self.at = self.block.len();
        }
    }
}

impl Iterator for Cursor {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(extent) = self.block.get(self.at) {
                self.at += 1;
                if extent.range().end <= self.place {
                    continue;
                }
                return Some(Ok(*extent));
            }
            if self.next >= self.list.0.index.blocks.len() {
                return None;
            }
            match self.list.block(self.next) {
                Ok(block) => (self.block, self.at) = (block, 0),
                Err(error) => {
                    // Nothing is known of what follows.
                    self.next = usize::MAX;
                    return Some(Err(error));
                }
            }
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ExtentsWriter;
    use super::*;

    fn data(start: u64, length: u64) -> Extent {
        Extent {
            length,
            ..Extent::of(start, b"x")
        }
    }

    fn write(path: &Path, extents: &[Extent]) -> Extents {
        let mut writer = ExtentsWriter::create(path).unwrap();
        extents
            .iter()
            .for_each(|extent| writer.push(*extent).unwrap());
        writer.finish().unwrap()
    }

    fn all(extents: impl Iterator<Item = Result<Extent>>) -> Vec<Extent> {
        extents.map(Result::unwrap).collect()
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("extents");
        let extents = [Extent::of_zeros(0..1 << 40), data(1 << 40, 512)];
        let list = write(&path, &extents);
        let end = (1 << 40) + 512;
        assert!(list.is_all(end) && !list.is_all(end + 1));
        assert_eq!((list.totals(), list.count()), ((512, 1 << 40), 2));
        assert_eq!(all(list.iter()), extents);
        let again = Extents::open(&path, list.hash(), end).unwrap();
        assert_eq!(all(again.iter()), extents);
        let unread = Extents::open(&path, list.hash(), end).unwrap();
        let error = Extents::open(&path, list.hash(), end - 1).unwrap_err();
        assert!(format!("{error:#}").contains("out of place"), "{error:#}");
        let mut text = std::fs::read(&path).unwrap();
        text[1] = b'1';
        std::fs::write(&path, &text).unwrap();
        let error = Extents::open(&path, list.hash(), end).unwrap_err();
        assert!(format!("{error:#}").contains("checksum"), "{error:#}");
        // What was checked before is not believed either.
        let error = unread.iter().next().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("has changed"), "{error:#}");
        assert!(unread.iter().nth(1).is_none(), "nothing follows");
    }

    #[test]
    fn every_place_of_a_list_of_any_length_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("extents");
        for count in [0, 1, 2, 3, 15, 16, 17, 18, 33, 100, 1000] {
            // Between all of them is a gap.
            let extents: Vec<_> = (0..count).map(|number| data(10 * number, 7)).collect();
            let list = write(&path, &extents);
            assert!(list.0.index.blocks.len() <= 8, "{count}");
            assert_eq!(all(list.iter()), extents, "{count}");
            let again = Extents::open(&path, list.hash(), 10 * count + 10).unwrap();
            assert_eq!(list.is_all(10 * count), count == 0);
            for place in 0..10 * count + 3 {
                let from = (place / 10 + u64::from(place % 10 >= 7)) as usize;
                let from = from.min(extents.len());
                let found = all(again.from(place));
                assert_eq!(found, extents[from..], "{count} {place}");
                let found = all(again.overlapping(place..place + 25));
                let expected = extents
                    .iter()
                    .filter(|extent| extent.range().end > place && extent.start < place + 25);
                assert!(found.iter().eq(expected), "{count} {place}");
            }
            // A cursor only goes on.
            let mut cursor = again.iter();
            for place in (0..10 * count).step_by(37) {
                cursor.skip_to(place);
                let next = cursor.next().map(Result::unwrap);
                assert!(next.is_none_or(|next| next.range().end > place));
            }
        }
    }
}
