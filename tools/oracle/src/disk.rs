// SPDX-License-Identifier: GPL-2.0-or-later

//! Devices, and direct I/O on them.

use std::{os::fd::AsFd, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{Mode, OFlags, SeekFrom},
    io::Errno,
    ioctl::{Opcode, Setter},
};

use crate::stamp::SECTOR;

const BLKDISCARD: Opcode = 0x1277;
const BLKZEROOUT: Opcode = 0x127f;

/// Memory that is aligned for direct I/O.
pub struct Buffer {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Buffer {
    /// For so many sectors.
    pub fn new(sectors: usize) -> Self {
        let len = sectors * SECTOR;
        let memory = vec![0; len + 4096];
        let from = memory.as_ptr().align_offset(4096);
        Self { memory, from, len }
    }

    /// The first sectors of it.
    pub fn sectors(&mut self, count: u64) -> &mut [u8] {
        let len = count as usize * SECTOR;
        assert!(len <= self.len);
        &mut self.memory[self.from..self.from + len]
    }
}

/// An open node.
pub struct Node {
    file: rustix::fd::OwnedFd,
    /// Where the device begins on it, in sectors; less than 0 if the node is a part of the device.
    start: i64,
    /// Of the node, in sectors.
    size: u64,
    name: String,
}

impl Node {
    /// Opens a node; the device begins at this sector of it.
    pub fn open(path: impl AsRef<Path>, start: i64) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(path.as_ref(), flags, Mode::empty())
            .with_context(|| format!("cannot open {name}"))?;
        let size = rustix::fs::seek(&file, SeekFrom::End(0))? / SECTOR as u64;
        Ok(Self {
            file,
            start,
            size,
            name,
        })
    }

    /// The size in sectors.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the node has these sectors of the device.
    pub fn has(&self, first: u64, sectors: u64) -> bool {
        first
            .checked_add_signed(self.start)
            .is_some_and(|first| first + sectors <= self.size)
    }

    /// Where a sector of the device is on the node, in bytes.
    fn at(&self, first: u64) -> u64 {
        first.wrapping_add_signed(self.start) * SECTOR as u64
    }

    fn describe(&self, what: &str, first: u64, sectors: u64) -> String {
        format!("{what} of {sectors} sectors at {first} of {}", self.name)
    }

    /// Reads; tells the error of the device apart.
    pub fn read(&self, first: u64, buffer: &mut [u8]) -> Result<Result<(), Errno>> {
        let at = self.at(first);
        let length = buffer.len();
        match rustix::io::pread(&self.file, &mut *buffer, at) {
            Ok(done) => {
                let what = self.describe("read", first, (length / SECTOR) as u64);
                ensure!(done == length, "{what}: only {done} bytes");
                Ok(Ok(()))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// Writes; tells the error of the device apart.
    pub fn write(&self, first: u64, buffer: &[u8]) -> Result<Result<(), Errno>> {
        let at = self.at(first);
        match rustix::io::pwrite(&self.file, buffer, at) {
            Ok(done) => {
                let what = self.describe("write", first, (buffer.len() / SECTOR) as u64);
                ensure!(done == buffer.len(), "{what}: only {done} bytes");
                Ok(Ok(()))
            }
            Err(errno) => Ok(Err(errno)),
        }
    }

    fn range<const CODE: Opcode>(&self, first: u64, sectors: u64) -> rustix::io::Result<()> {
        let range = [self.at(first), sectors * SECTOR as u64];
        // SAFETY: Both commands take a pointer to two `u64`.
        unsafe { rustix::ioctl::ioctl(self.file.as_fd(), Setter::<CODE, [u64; 2]>::new(range)) }
    }

    /// Makes sectors zero.
    pub fn zero(&self, first: u64, sectors: u64) -> Result<()> {
        self.range::<BLKZEROOUT>(first, sectors)
            .with_context(|| self.describe("write-zeroes", first, sectors))
    }

    /// Discards sectors, if the device can.
    pub fn discard(&self, first: u64, sectors: u64) -> Result<()> {
        match self.range::<BLKDISCARD>(first, sectors) {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
            done => done.with_context(|| self.describe("discard", first, sectors)),
        }
    }
}

/// An original device: the nodes through which it is written, and where it begins on each.
#[derive(Clone, Debug)]
pub struct Original {
    /// The device itself first.
    pub nodes: Vec<(String, i64)>,
    /// In sectors.
    pub sectors: u64,
}

impl Original {
    /// From `NODE[,NODE+SECTOR…]`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut nodes = Vec::new();
        for part in text.split(',') {
            let (path, start) = part.split_once('+').unwrap_or((part, "0"));
            let start = start
                .parse()
                .with_context(|| format!("{part}: not NODE or NODE+SECTOR"))?;
            nodes.push((path.to_owned(), start));
        }
        let sectors = Node::open(&nodes[0].0, 0)?.size();
        ensure!(sectors > 0, "{text}: an empty device");
        Ok(Self { nodes, sectors })
    }

    /// Opens all nodes.
    pub fn open(&self) -> Result<Vec<Node>> {
        let open = |(path, start): &(String, i64)| Node::open(path, *start);
        self.nodes.iter().map(open).collect()
    }
}
