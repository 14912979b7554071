// SPDX-License-Identifier: GPL-2.0-or-later

//! `--skip-unreadable`: a disk with bad sectors is backed up all the same. What cannot be read is
//! zeros in the backup, and listed as lost.

use std::io;
use std::ops::Range;

use anyhow::Result;
use rustix::io::Errno;

use crate::format::Reader;

/// What is read at once where a larger read has failed: no sector is lost that can be read.
const STEP: usize = 512;

/// Reads all that can be read, fills the rest with zeros, and gives where that is. Other errors than
/// those of a medium end it.
pub fn read(source: &impl Reader, offset: u64, bytes: &mut [u8]) -> Result<Vec<Range<u64>>> {
    let whole = source.read(offset, bytes);
    match whole {
        Ok(()) => return Ok(Vec::new()),
        Err(error) if !is_of_medium(&error) => return Err(error),
        Err(_) => {}
    }
    let mut lost: Vec<Range<u64>> = Vec::new();
    for (index, part) in bytes.chunks_mut(STEP).enumerate() {
        let start = offset + (index * STEP) as u64;
        match source.read(start, part) {
            Ok(()) => continue,
            Err(error) if !is_of_medium(&error) => return Err(error),
            Err(_) => part.fill(0),
        }
        let end = start + part.len() as u64;
        match lost.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => lost.push(start..end),
        }
    }
    Ok(lost)
}

/// Whether an error tells that a sector cannot be read, as the block layer does.
fn is_of_medium(error: &anyhow::Error) -> bool {
    let cause = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>());
    let errno = cause.and_then(Errno::from_io_error);
    matches!(
        errno,
        Some(Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::REMOTEIO)
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    /// A disk with bad sectors.
    struct Bad {
        sectors: Vec<u64>,
        errno: Errno,
    }

    impl Reader for Bad {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
            let range = offset..offset + data.len() as u64;
            data.fill(7);
            let hit = self
                .sectors
                .iter()
                .any(|&sector| range.contains(&(sector * 512)));
            match hit {
                true => Err(io::Error::from(self.errno)).context("cannot read"),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn all_that_can_be_read_is_read() {
        let mut bad = Bad {
            sectors: vec![9, 10, 15],
            errno: Errno::IO,
        };
        let mut bytes = vec![1; 4096 + 512];
        let lost = read(&bad, 4096, &mut bytes).unwrap();
        assert_eq!(lost, [9 * 512..11 * 512, 15 * 512..16 * 512]);
        for (index, sector) in bytes.chunks(512).enumerate() {
            let expected = if [1, 2, 7].contains(&index) { 0 } else { 7 };
            assert!(sector.iter().all(|&byte| byte == expected), "{index}");
        }
        assert_eq!(read(&bad, 8192, &mut bytes).unwrap(), []);
        // What is no fault of a medium is an error as ever.
        bad.errno = Errno::NOMEM;
        assert!(read(&bad, 4096, &mut bytes).is_err());
    }
}
