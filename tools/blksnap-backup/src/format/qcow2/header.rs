// SPDX-License-Identifier: GPL-2.0-or-later

//! The first cluster of an image.

use anyhow::{Context, Result, bail, ensure};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CLUSTER, CLUSTER_BITS, ENTRIES, MAX_SIZE, MORE, PER_L2, REFCOUNTS};

/// What a file begins with.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// A header extension: the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// In the incompatible features: what follows the header of 104 bytes says how clusters are compressed,
/// which is not by zlib.
const COMPRESSION: u64 = 1 << 3;
/// What follows then: zstd, and padding to 8 bytes.
const ZSTD: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
/// The longest name of a backing file that QEMU accepts.
const MAX_NAME: usize = 1023;

/// The header of version 3.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_length: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_entries: U32,
    l1_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}

/// The head of a header extension; its data, padded to 8 bytes, follows.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Extension {
    kind: U32,
    length: U32,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes in the device.
    pub size: u64,
    /// The name of the backing file, relative to this file's directory.
    pub backing: Option<String>,
    /// The place of the L1 table.
    pub l1_offset: u64,
    /// The place of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters in the refcount table.
    pub refcount_table_clusters: u32,
    /// Whether clusters may be compressed.
    pub compressed: bool,
}

impl Header {
    /// The header of a new image, and so its layout.
    pub fn new(size: u64, backing: Option<&str>, compressed: bool) -> Result<Self> {
        ensure!(
            size <= MAX_SIZE,
            "a device of {size} bytes is too large for qcow2: {MAX_SIZE} is the most"
        );
        if let Some(name) = backing {
            // A colon would make a protocol of what precedes it.
            let usable = !name.is_empty() && name.len() <= MAX_NAME && !name.contains([':', '\0']);
            ensure!(usable, "`{name}` can't be the name of a backing file");
        }
        // Clusters of data, of L2 tables, of the other tables; and again as many, as those that
        // crashes leave unused are not reused, nor are places of what was compressed.
        let clusters = size.div_ceil(CLUSTER) + size.div_ceil(PER_L2) + MORE / CLUSTER;
        let times = if compressed { 3 } else { 2 };
        let blocks = (times * clusters).div_ceil(REFCOUNTS - 1);
        let refcount_table_clusters = blocks.div_ceil(ENTRIES);
        Ok(Self {
            size,
            backing: backing.map(Into::into),
            l1_offset: (1 + refcount_table_clusters) * CLUSTER,
            refcount_table_offset: CLUSTER,
            refcount_table_clusters: u32::try_from(refcount_table_clusters)?,
            compressed,
        })
    }

    /// Entries in the L1 table.
    pub fn l1_entries(&self) -> u64 {
        self.size.div_ceil(PER_L2)
    }

    /// Clusters of the L1 table. QEMU wants at least one entry to have a place.
    pub fn l1_clusters(&self) -> u64 {
        self.l1_entries().div_ceil(ENTRIES).max(1)
    }

    /// The first cluster.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut raw = Raw {
            magic: MAGIC,
            version: 3.into(),
            backing_offset: 0.into(),
            backing_length: 0.into(),
            cluster_bits: CLUSTER_BITS.into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            // At most 2^20, by the greatest size.
            l1_entries: (self.l1_entries() as u32).into(),
            l1_offset: self.l1_offset.into(),
            refcount_table_offset: self.refcount_table_offset.into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            snapshots: 0.into(),
            snapshots_offset: 0.into(),
            incompatible_features: 0.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: 4.into(),
            header_length: (size_of::<Raw>() as u32).into(),
        };
        let mut rest = Vec::new();
        if self.compressed {
            raw.incompatible_features = COMPRESSION.into();
            raw.header_length = ((size_of::<Raw>() + ZSTD.len()) as u32).into();
            rest.extend_from_slice(&ZSTD);
        }
        if self.backing.is_some() {
            let format = Extension {
                kind: BACKING_FORMAT.into(),
                length: 5.into(),
            };
            rest.extend_from_slice(format.as_bytes());
            rest.extend_from_slice(b"qcow2\0\0\0");
        }
        // The end of the extensions.
        rest.extend_from_slice(&[0; size_of::<Extension>()]);
        if let Some(name) = &self.backing {
            raw.backing_offset = ((size_of::<Raw>() + rest.len()) as u64).into();
            raw.backing_length = (name.len() as u32).into();
            rest.extend_from_slice(name.as_bytes());
        }
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&rest);
        bytes.resize(CLUSTER as usize, 0);
        bytes
    }

    /// Understands the beginning of a file of `length` bytes.
    pub fn parse(bytes: &[u8], length: u64) -> Result<Self> {
        let (raw, rest) = Raw::read_from_prefix(bytes)
            .ok()
            .filter(|(raw, _)| raw.magic == MAGIC)
            .context("not a qcow2 image")?;
        // What the version says decides what the other fields mean.
        for (is, what) in [
            (raw.version != 3, "another version than 3"),
            (raw.cluster_bits != CLUSTER_BITS, "clusters of another size"),
            (raw.crypt_method != 0, "encryption"),
            (raw.snapshots != 0, "snapshots inside"),
            (raw.refcount_order != 4, "refcounts of another size"),
            (
                raw.incompatible_features.get() & !COMPRESSION != 0,
                "features not known here, or was not closed",
            ),
            (raw.autoclear_features != 0, "bitmaps or the like"),
        ] {
            ensure!(!is, "a qcow2 image not made by blksnap: it has {what}");
        }
        let compressed = raw.incompatible_features != 0;
        let length_with = (size_of::<Raw>() + ZSTD.len()) as u32;
        ensure!(
            !compressed || raw.header_length == length_with && rest.starts_with(&ZSTD),
            "a qcow2 image not made by blksnap: it has another compression than zstd"
        );
        let size = raw.size.get();
        ensure!(
            size <= MAX_SIZE,
            "damaged qcow2 header: a size of {size} bytes"
        );
        let header = Self {
            size,
            backing: backing(&raw, bytes)?,
            l1_offset: raw.l1_offset.get(),
            refcount_table_offset: raw.refcount_table_offset.get(),
            refcount_table_clusters: raw.refcount_table_clusters.get(),
            compressed,
        };
        ensure!(
            u64::from(raw.l1_entries) == header.l1_entries(),
            "damaged qcow2 header: {} entries in the L1 table of a device of {size} bytes",
            raw.l1_entries
        );
        let refcount_table = u64::from(header.refcount_table_clusters) * CLUSTER;
        for (name, offset, bytes) in [
            ("L1 table", header.l1_offset, header.l1_entries() * 8),
            (
                "refcount table",
                header.refcount_table_offset,
                refcount_table,
            ),
        ] {
            let end = offset.checked_add(bytes);
            let inside = offset >= CLUSTER && end.is_some_and(|end| end <= length);
            ensure!(
                inside && offset % CLUSTER == 0,
                "damaged qcow2 header: a {name} of {bytes} bytes at {offset} in a file of {length}"
            );
        }
        // 8 MiB, as in QEMU.
        ensure!(
            (1..=128).contains(&header.refcount_table_clusters),
            "damaged qcow2 header: a refcount table of {refcount_table} bytes"
        );
        Ok(header)
    }
}

/// The name of the backing file.
fn backing(raw: &Raw, bytes: &[u8]) -> Result<Option<String>> {
    let offset = raw.backing_offset.get();
    if offset == 0 {
        return Ok(None);
    }
    let length = raw.backing_length.get() as usize;
    let name = usize::try_from(offset)
        .ok()
        .filter(|_| length <= MAX_NAME)
        .and_then(|offset| bytes.get(offset..offset.checked_add(length)?));
    match name.map(std::str::from_utf8) {
        Some(Ok(name)) => Ok(Some(name.into())),
        _ => bail!("damaged qcow2 header: the name of the backing file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        for size in [0, 1, 512, 1 << 20, PER_L2 + 1, 64 << 40, MAX_SIZE] {
            for backing in [None, Some("base of this.qcow2")] {
                for compressed in [false, true] {
                    let header = Header::new(size, backing, compressed).unwrap();
                    let bytes = header.to_bytes();
                    assert_eq!(bytes.len() as u64, CLUSTER);
                    let end = header.l1_offset + header.l1_clusters() * CLUSTER;
                    assert_eq!(Header::parse(&bytes, end).unwrap(), header);
                }
            }
        }
        assert!(Header::new(MAX_SIZE + 1, None, false).is_err());
        for name in ["", "nbd:unix", "a\0b"] {
            assert!(Header::new(512, Some(name), false).is_err());
        }
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let good = Header::new(1 << 40, Some("base"), false).unwrap();
        let good = good.to_bytes();
        let refused = |good: &[u8], at: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            format!("{:#}", Header::parse(&bytes, 8 << 20).unwrap_err())
        };
        let parse = |at: usize, value: u8| refused(&good, at, value);
        assert!(Header::parse(&good, 8 << 20).is_ok());
        for (at, value, reason) in [
            (0, 0, "not a qcow2 image"),
            (7, 2, "version"),
            (8, 1, "backing file"),
            (18, 255, "backing file"),
            (23, 9, "clusters of another size"),
            (24, 255, "bytes"),
            (31, 1, "entries in the L1 table"),
            (35, 1, "encryption"),
            (38, 0, "entries in the L1 table"),
            (40, 255, "L1 table"),
            (47, 1, "L1 table"),
            (48, 255, "refcount table"),
            (56, 255, "refcount table"),
            (59, 0, "refcount table"),
            (63, 1, "snapshots"),
            (79, 1, "features"),
            (79, 8, "another compression"),
            (95, 1, "bitmaps"),
            (99, 5, "refcounts"),
        ] {
            let error = parse(at, value);
            assert!(error.contains(reason), "{at}: {error}");
        }
        let compressed = Header::new(1 << 40, None, true).unwrap().to_bytes();
        for (at, value) in [(103, 104), (104, 0), (104, 2), (107, 1)] {
            let error = refused(&compressed, at, value);
            assert!(error.contains("another compression"), "{at}: {error}");
        }
        for length in 0..200 {
            assert!(Header::parse(&good[..length], 8 << 20).is_err() || length > 128);
        }
        assert!(Header::parse(&good, 1 << 16).is_err());
    }
}
