// SPDX-License-Identifier: GPL-2.0-or-later

//! An opened image: its header, its L1 table, and tables read from it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U64;

use super::header::Header;
use super::{CLUSTER, COMPRESSED, COPIED, ENTRIES, OFFSET, ZERO, compressed};

/// A file whose header and L1 table were found to be sound.
pub struct ImageFile {
    /// For messages.
    pub path: PathBuf,
    /// The opened file.
    pub file: File,
    /// Its header.
    pub header: Header,
    /// Its L1 table.
    pub l1: Vec<u64>,
}

impl ImageFile {
    /// Opens an image, and checks its header and its L1 table.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let file = options
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let load = || -> Result<_> {
            let length = file.metadata()?.len();
            let mut first = vec![0; CLUSTER.min(length) as usize];
            file.read_exact_at(&mut first, 0)?;
            let header = Header::parse(&first, length)?;
            // Inside the file, so no larger than it.
            let l1 = read_table(&file, header.l1_offset, header.l1_entries())?;
            for entry in &l1 {
                let place = entry & OFFSET;
                // L2 tables are written whole, and an entry without the bit means that they are
                // used twice.
                ensure!(
                    *entry == 0
                        || *entry == COPIED | place
                            && place != 0
                            && place % CLUSTER == 0
                            && place <= length.saturating_sub(CLUSTER),
                    "damaged L1 table: an entry of {entry:#x}"
                );
            }
            Ok((header, l1))
        };
        let (header, l1) = load().with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            l1,
        })
    }

    /// Reads an L2 table.
    pub fn l2(&self, entry: u64) -> Result<Vec<u64>> {
        let place = entry & OFFSET;
        let table = read_table(&self.file, place, ENTRIES).with_context(|| {
            let path = self.path.display();
            format!("cannot read the L2 table at byte {place} of {path}")
        })?;
        for entry in &table {
            let place = entry & OFFSET;
            let sound = match entry & !(OFFSET | ZERO) {
                0 => place == 0,
                COPIED => place != 0 && place % CLUSTER == 0,
                flags if flags & COMPRESSED != 0 && flags & COPIED == 0 => {
                    self.header.compressed && compressed::place(*entry).start >= CLUSTER
                }
                _ => false,
            };
            ensure!(
                sound,
                "{}: {}",
                self.path.display(),
                if entry & COMPRESSED != 0 && !self.header.compressed {
                    "a qcow2 image not made by blksnap: it has clusters compressed by zlib".into()
                } else {
                    format!("damaged L2 table: an entry of {entry:#x}")
                }
            );
        }
        Ok(table)
    }

    /// Writes to the file.
    pub fn write(&self, bytes: &[u8], place: u64) -> io::Result<()> {
        #[cfg(test)]
        super::tests::crash::wrote(bytes, place);
        self.file.write_all_at(bytes, place)
    }

    /// Waits until what was written is durable.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        super::tests::crash::synced();
        self.file.sync_data()
    }

    /// Checks that a range is inside the device.
    pub fn check(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.header.size;
        ensure!(
            offset.checked_add(length).is_some_and(|end| end <= size),
            "{}: {length} bytes at byte {offset} of a device of {size}",
            self.path.display()
        );
        Ok(())
    }
}

/// Reads a table of numbers.
fn read_table(file: &File, offset: u64, entries: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; entries as usize * 8];
    file.read_exact_at(&mut bytes, offset)?;
    let entries = <[U64]>::ref_from_bytes(&bytes).expect("made of entries");
    Ok(entries.iter().map(|entry| entry.get()).collect())
}

/// The bytes of a table.
pub fn table_bytes(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
