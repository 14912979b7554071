// SPDX-License-Identifier: GPL-2.0

//! A file that the kernel holds as difference storage, and lets grow.
//!
//! What the file has is appended to the snapshot's [`space`](super::space) bit by bit: what it has
//! at first, and what each growth brings. Where the file is used by its blocks, these are ranges
//! of a device like any others. Otherwise the ranges are of the file itself.

use kernel::{
    block::{
        bdev::BdevFile,
        bio_set::Target, //
    },
    fs::held_file::{
        HeldFile,
        NewFile,
        Way, //
    },
    prelude::*,
    sync::Arc, //
};

use crate::base::units::{
    SECTOR_SHIFT,
    UNIT_SECTORS, //
};

/// A file that is held.
pub(crate) struct Held {
    /// What its ranges are of. Before `file`, which is to be the last that goes.
    target: Target,
    file: Arc<HeldFile>,
    /// How many sectors it has, as far as we know.
    size: u64,
    /// How many sectors it may have, unless it had more from the beginning.
    limit: u64,
    /// What was appended: first sectors and numbers of sectors, in the order of the file.
    appended: KVVec<(u64, u64)>,
}

impl Held {
    /// Holds a file that was opened. If it has no more than half a portion, it gets one more first;
    /// all that it has is allocated. All numbers are sectors. May sleep.
    ///
    /// Fails with `ENOSPC` if it is larger than `limit` and too small all the same, `EBUSY` if it
    /// is held already or somebody else could write to it, or with an error of its file system.
    pub(crate) fn new(file: NewFile, limit: u64, portion: u64) -> Result<Self> {
        let bytes = file.size();
        let size = bytes >> SECTOR_SHIFT;
        let more = if size > portion / 2 {
            0
        } else {
            limit.checked_sub(size).ok_or(ENOSPC)?.min(portion)
        };
        match file.allocate(bytes.max((size + more) << SECTOR_SHIFT)) {
            // What it has may be enough, whether or not it has holes.
            Err(err) if err == EOPNOTSUPP && more == 0 => {}
            result => result?,
        }
        let file = file.hold()?;
        let target = match file.way() {
            Way::Blocks(device) => Target::Device(BdevFile::open(device)?),
            Way::Content => Target::File(file.clone()),
        };
        Ok(Self {
            size: file.size() >> SECTOR_SHIFT,
            file,
            target,
            limit,
            appended: KVVec::new(),
        })
    }

    /// What the ranges are of.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The device of its file system, opened, if there is one.
    pub(crate) fn device(&self) -> Result<Option<Arc<BdevFile>>> {
        match (&self.target, self.file.super_device()) {
            (Target::Device(file), _) => Ok(Some(file.clone())),
            (_, Some(id)) => BdevFile::open(id).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether it is as large as it may get.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.size >= self.limit
    }

    /// How many sectors it may get more, but for half of what its file system has free.
    pub(crate) fn most_at_once(&self) -> u64 {
        let free = (self.file.free_space() >> SECTOR_SHIFT) / 2;
        self.limit.saturating_sub(self.size).min(free)
    }

    /// Lets it grow by `sectors` sectors, or up to its limit, or by what there is room for. May
    /// sleep, as long as the file system takes.
    ///
    /// Fails, if it has not grown at all, with `EAGAIN` if that is frozen, with its error, or with
    /// `EFBIG` if somebody has made the file larger, who had it open before: what is in between may
    /// not be allocated.
    pub(crate) fn grow(&mut self, sectors: u64) -> Result {
        let to = self.size.saturating_add(sectors).min(self.limit);
        if to <= self.size {
            return Ok(());
        }
        if self.file.size() >> SECTOR_SHIFT != self.size {
            return Err(EFBIG);
        }
        let result = self
            .file
            .allocate(self.size << SECTOR_SHIFT, to << SECTOR_SHIFT);
        // Where there is no room for all, some file systems allocate a part, and the file has its
        // size then.
        let size = (self.file.size() >> SECTOR_SHIFT).clamp(self.size, to);
        if size == self.size {
            return result;
        }
        self.size = size;
        Ok(())
    }

    /// What it has that was not appended. May sleep; must not overlap in time with growth.
    ///
    /// Fails with `ESTALE` if what was appended is not there any more, which holding it prevents.
    pub(crate) fn unappended(&self) -> Result<KVVec<(u64, u64)>> {
        let mut all = match self.file.way() {
            Way::Blocks(_) => self.file.extents()?,
            Way::Content => KVVec::new(),
        };
        if let Way::Content = self.file.way() {
            all.push((0, self.size & !(UNIT_SECTORS - 1)), GFP_KERNEL)?;
        }
        behind(&self.appended, &all)
    }

    /// Makes room for [`note_appended`](Self::note_appended). May sleep.
    pub(crate) fn make_room(&mut self, ranges: usize) -> Result {
        Ok(self.appended.reserve(ranges, GFP_KERNEL)?)
    }

    /// These ranges were appended: all of [`unappended`](Self::unappended). There must be room.
    pub(crate) fn note_appended(&mut self, ranges: KVVec<(u64, u64)>) {
        for range in ranges {
            let _ = self.appended.push_within_capacity(range);
        }
    }
}

/// The ranges of `all`, given as first sector and number of sectors, that come after those of
/// `first`, with which it begins, in what pieces ever. Fails with `ESTALE` if it does not.
fn behind(first: &[(u64, u64)], all: &[(u64, u64)]) -> Result<KVVec<(u64, u64)>> {
    let mut rest = all.iter().copied();
    let mut next = rest.next();
    for &(mut sector, mut sectors) in first {
        while sectors > 0 {
            let (start, count) = next.ok_or(ESTALE)?;
            if start != sector {
                return Err(ESTALE);
            }
            let part = count.min(sectors);
            (sector, sectors) = (sector + part, sectors - part);
            next = if part < count {
                Some((start + part, count - part))
            } else {
                rest.next()
            };
        }
    }
    let mut found = KVVec::new();
    while let Some(range) = next {
        if range.1 > 0 {
            found.push(range, GFP_KERNEL)?;
        }
        next = rest.next();
    }
    Ok(found)
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_held)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_comes_behind_what_is_known() -> Result {
        assert_eq!(*behind(&[], &[(8, 16)])?, [(8, 16)]);
        assert_eq!(*behind(&[(8, 16)], &[(8, 16)])?, []);
        // The last extent has grown, and there is another one.
        assert_eq!(
            *behind(&[(8, 16)], &[(8, 24), (100, 8)])?,
            [(24, 8), (100, 8)]
        );
        // Others have become one.
        assert_eq!(
            *behind(&[(8, 8), (16, 8), (100, 8)], &[(8, 16), (100, 16)])?,
            [(108, 8)]
        );
        assert_eq!(*behind(&[], &[(0, 0)])?, []);
        Ok(())
    }

    #[test]
    fn blocks_that_moved_are_found() {
        for all in [&[] as &[_], &[(16, 16)], &[(8, 8)], &[(8, 8), (24, 8)]] {
            assert_eq!(behind(&[(8, 16)], all).err(), Some(ESTALE));
        }
    }
}
