// SPDX-License-Identifier: GPL-2.0-or-later

//! A part of an image, numbers in what is read from it, and its checksums.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use crc::{CRC_16_MODBUS, CRC_32_ISCSI, Crc, Table};

/// Where a file system is in an image, in bytes.
pub struct Place<'a> {
    pub file: &'a File,
    pub start: u64,
    pub size: u64,
}

impl Place<'_> {
    /// Reads so many bytes; all of them must be inside.
    pub fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>> {
        let end = at.checked_add(bytes);
        ensure!(
            end.is_some_and(|end| end <= self.size),
            "{bytes} bytes from byte {at} on are not on the device"
        );
        let mut data = vec![0; usize::try_from(bytes)?];
        self.file
            .read_exact_at(&mut data, self.start + at)
            .with_context(|| format!("cannot read {bytes} bytes from byte {at} on"))?;
        Ok(data)
    }
}

/// Numbers in bytes: little-endian ones are `le`, others `be`.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn get<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        Ok(self.part(at, N)?.try_into()?)
    }

    pub fn part(&self, at: usize, length: usize) -> Result<&[u8]> {
        let part = self.0.get(at..).and_then(|rest| rest.get(..length));
        part.context("a structure is too short")
    }

    pub fn le16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.get(at)?))
    }

    pub fn le32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.get(at)?))
    }

    pub fn be16(&self, at: usize) -> Result<u16> {
        Ok(u16::from_be_bytes(self.get(at)?))
    }

    pub fn be32(&self, at: usize) -> Result<u32> {
        Ok(u32::from_be_bytes(self.get(at)?))
    }

    pub fn be64(&self, at: usize) -> Result<u64> {
        Ok(u64::from_be_bytes(self.get(at)?))
    }
}

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// The kernel's `crc32c(seed, …)`, of some pieces after each other.
pub fn crc32c(seed: u32, pieces: &[&[u8]]) -> u32 {
    // The crate takes the bits in the other order, and inverts the result.
    let mut digest = CRC32C.digest_with_initial(seed.reverse_bits());
    pieces.iter().for_each(|piece| digest.update(piece));
    !digest.finalize()
}

/// The kernel's `crc16(0xffff, …)`, of some pieces after each other.
pub fn crc16(pieces: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize()
}
