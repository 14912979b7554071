// SPDX-License-Identifier: GPL-2.0-or-later

//! Clusters made smaller by zstd. Each is a frame of its own, at any byte of the file, and may go on
//! in the next cluster of the file. What refers to it counts in sectors of 512 bytes, so what is read
//! has something of its neighbour at the end.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, ensure};
use zstd::bulk;
use zstd::zstd_safe::find_frame_compressed_size;

use super::file::ImageFile;
use super::{CLUSTER, COMPRESSED};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// In an entry: the first byte, in as many bits as clusters of 64 KiB leave for it.
const START_BITS: u32 = 54;
/// Above it: how many sectors follow the one that has the first byte.
const SECTORS: u64 = 0xff;
/// What is saved must be worth the time to read it.
const LEAST_SAVED: usize = 4096;

/// The entry of an L2 table for a place.
pub fn entry(place: &Range<u64>) -> Result<u64> {
    ensure!(
        place.end < 1 << START_BITS,
        "the file has become too large for compressed clusters"
    );
    // No cluster is stored in more than 64 KiB.
    let sectors = (place.end - 1) / SECTOR - place.start / SECTOR;
    Ok(COMPRESSED | sectors << START_BITS | place.start)
}

/// The place that an entry gives, up to the end of a sector.
pub fn place(entry: u64) -> Range<u64> {
    let start = entry & ((1 << START_BITS) - 1);
    let sectors = entry >> START_BITS & SECTORS;
    start..(start / SECTOR + sectors + 1) * SECTOR
}

/// Data as it will be stored: cluster after cluster, made smaller where that is worth it.
pub struct Clusters(Vec<Option<Vec<u8>>>);

impl Clusters {
    /// Each, with where it is in the data.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Option<&[u8]>)> {
        let clusters = self.0.iter().enumerate();
        clusters.map(|(number, one)| (number * CLUSTER as usize, one.as_deref()))
    }
}

/// Makes data smaller. Each thread has its own.
pub struct Compressor {
    zstd: bulk::Compressor<'static>,
    /// The last cluster of a device, which may not be whole.
    last: Vec<u8>,
}

impl Compressor {
    /// One at the usual level.
    pub fn new() -> Result<Self> {
        let zstd = bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL);
        Ok(Self {
            zstd: zstd.context("cannot begin to compress")?,
            last: Vec::new(),
        })
    }

    /// Of data that begins with a cluster, all clusters.
    pub fn compress(&mut self, data: &[u8]) -> Result<Clusters> {
        let clusters = data.chunks(CLUSTER as usize).map(|data| {
            let mut whole = data;
            if data.len() < CLUSTER as usize {
                // QEMU reads whole clusters.
                self.last.clear();
                self.last.extend_from_slice(data);
                self.last.resize(CLUSTER as usize, 0);
                whole = &self.last;
            }
            let small = self.zstd.compress(whole).context("cannot compress")?;
            Ok((small.len() + LEAST_SAVED <= whole.len()).then_some(small))
        });
        clusters.collect::<Result<_>>().map(Clusters)
    }
}

/// Reads clusters.
pub struct Decompressor {
    zstd: bulk::Decompressor<'static>,
    stored: Vec<u8>,
    cluster: Vec<u8>,
}

impl Decompressor {
    /// A new one.
    pub fn new() -> Result<Self> {
        Ok(Self {
            zstd: bulk::Decompressor::new().context("cannot begin to decompress")?,
            stored: Vec::new(),
            cluster: vec![0; CLUSTER as usize],
        })
    }

    /// The cluster that an entry refers to, whose place is in the file.
    pub fn read(&mut self, image: &ImageFile, entry: u64) -> Result<&[u8]> {
        let place = place(entry);
        let failed = || {
            format!(
                "cannot read the compressed cluster at byte {} of {}",
                place.start,
                image.path.display()
            )
        };
        // At most 256 sectors.
        self.stored.resize((place.end - place.start) as usize, 0);
        let read = image.file.read_exact_at(&mut self.stored, place.start);
        read.with_context(failed)?;
        let mut decompress = || {
            let length = find_frame_compressed_size(&self.stored);
            let length = length.map_err(|_| anyhow!("no data of zstd"))?;
            let frame = self.stored.get(..length).context("no data of zstd")?;
            let got = self
                .zstd
                .decompress_to_buffer(frame, &mut self.cluster[..])?;
            ensure!(got as u64 == CLUSTER, "{got} bytes in place of {CLUSTER}");
            Ok(())
        };
        decompress().with_context(failed)?;
        Ok(&self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_qemu_does() {
        for (start, length, sectors) in [
            (65536, 512, 0),
            (65536, 513, 1),
            (65537, 511, 0),
            (66047, 2, 1),
            ((1 << 54) - 65536, 61440, 119),
        ] {
            let entry = entry(&(start..start + length)).unwrap();
            assert_eq!(entry, 1 << 62 | sectors << 54 | start);
            let found = place(entry);
            assert_eq!(found.start, start);
            assert!(found.end >= start + length && found.end < start + length + SECTOR);
        }
        assert!(entry(&(1 << 54..(1 << 54) + 1)).is_err());
    }

    #[test]
    fn what_does_not_get_smaller_stays() {
        let data = crate::testing::noise(1, 2 * CLUSTER as usize + 5);
        let mut compressor = Compressor::new().unwrap();
        let clusters = compressor.compress(&data).unwrap();
        let found: Vec<_> = clusters.iter().map(|(_, one)| one.is_some()).collect();
        assert_eq!(found, [false, false, true], "five bytes and zeros");
    }
}
