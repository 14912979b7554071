// SPDX-License-Identifier: GPL-2.0-or-later

//! What a sector holds tells who wrote it, and when.

use anyhow::{Result, bail};

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// Words in a sector.
const WORDS: usize = SECTOR / 8;

const MAGIC: u64 = 0x6b6e_6173_6c62_2031;

/// Who wrote a sector, by which of his writes; or that it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag(u64);

impl Tag {
    /// All bytes are zero.
    pub const ZERO: Self = Self(0);

    /// Whether it is of a write of that writer.
    pub fn is_of(self, writer: usize) -> bool {
        self.0 >> 32 == writer as u64 + 1
    }

    /// The write with this number of a writer.
    pub fn new(writer: usize, number: usize) -> Self {
        Self((writer as u64 + 1) << 32 | number as u64)
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("zeroes"),
            tag => write!(
                f,
                "write {} of writer {}",
                tag & 0xffff_ffff,
                (tag >> 32) - 1
            ),
        }
    }
}

/// The stamps of one device in one run.
#[derive(Clone, Copy)]
pub struct Stamps {
    /// Other runs have others.
    pub run: u64,
    /// The number of the device.
    pub device: u64,
}

impl Stamps {
    /// Fills a buffer with stamps of the sectors from `first` on.
    pub fn fill(self, buffer: &mut [u8], first: u64, tag: Tag) {
        for (sector, bytes) in (first..).zip(buffer.chunks_exact_mut(SECTOR)) {
            self.put(bytes, sector, tag);
        }
    }

    /// Fills one sector.
    pub fn put(self, bytes: &mut [u8], sector: u64, tag: Tag) {
        if tag == Tag::ZERO {
            return bytes.fill(0);
        }
        let mut key = self.run ^ tag.0.rotate_left(17) ^ sector << 8 ^ self.device;
        let mut sum = 0u64;
        for (word, bytes) in bytes.chunks_exact_mut(8).enumerate() {
            let value = match word {
                0 => MAGIC ^ self.run,
                1 => self.device << 48 | sector,
                2 => tag.0,
                _ if word == WORDS - 1 => sum,
                _ => {
                    key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
                    key
                }
            };
            sum = (sum ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(9);
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Whose stamp a sector has. Fails if it is nobody's, or that of another place.
    pub fn read(self, bytes: &[u8], sector: u64) -> Result<Tag> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_le_bytes(word)
        };
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Tag::ZERO);
        }
        let tag = Tag(word(2));
        let mut wanted = [0; SECTOR];
        self.put(&mut wanted, sector, tag);
        if wanted != *bytes {
            let place = (word(1) >> 48, word(1) & 0xffff_ffff_ffff);
            bail!(
                "sector {sector} of device {} holds no stamp of its own: magic {:#x}, device {}, \
                 sector {}, {tag}",
                self.device,
                word(0) ^ self.run ^ MAGIC,
                place.0,
                place.1
            );
        }
        Ok(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_all() {
        let stamps = Stamps { run: 7, device: 3 };
        let mut bytes = [0; 2 * SECTOR];
        let tag = Tag::new(5, 1000);
        stamps.fill(&mut bytes, 99, tag);
        assert_eq!(stamps.read(&bytes[..SECTOR], 99).unwrap(), tag);
        assert_eq!(stamps.read(&bytes[SECTOR..], 100).unwrap(), tag);
        assert!(stamps.read(&bytes[SECTOR..], 99).is_err());
        assert!(
            Stamps { run: 7, device: 2 }
                .read(&bytes[..SECTOR], 99)
                .is_err()
        );
        bytes[300] ^= 1;
        assert!(stamps.read(&bytes[..SECTOR], 99).is_err());
        assert_eq!(stamps.read(&[0; SECTOR], 5).unwrap(), Tag::ZERO);
    }
}
