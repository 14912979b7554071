// SPDX-License-Identifier: GPL-2.0-or-later

//! Whether the log of an xfs has changes that are not in place yet.
//!
//! A frozen xfs has a log that a mount would recover, as it does not have the record of an unmount. But
//! `xfs_log_quiesce()`, which `xfs_fs_freeze()` is, first writes all metadata in place
//! (`xfs_ail_push_all_sync()`), and then covers the log (`xfs_log_cover()`): it logs the superblock, up to twice,
//! so that the tail of the log (`h_tail_lsn` of the last record) is a record of that. Recovery would read
//! the records from the tail to the head, and find the superblock only. So that is what is looked for, and
//! nothing is assumed of what froze the file system: metadata that was changed and is not in place would keep
//! the tail back at its record (`xlog_assign_tail_lsn()`).
//!
//! What is deleted by recovery itself, files that were unlinked while open, is found in the AGIs, and
//! has its blocks until then.

use anyhow::{Context, Result, bail, ensure};

use super::super::place::{Bytes, Place, crc32c};
use super::Super;

/// `BBSIZE`: blocks of the log.
const BLOCK: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// `XLOG_HEADER_CYCLE_SIZE` and `XLOG_MAX_RECORD_BSIZE`.
const CYCLE_SIZE: u64 = 32 << 10;
const LARGEST: u64 = 256 << 10;
/// More than that is not of covering.
const MOST: u64 = 4 << 20;
/// `XLOG_REC_SIZE` and `XLOG_REC_EXT_SIZE`: so much of the headers is in the checksum.
const HEAD: usize = 328;
const MORE: usize = 260;

// oh_flags.
const START: u8 = 0x1;
const COMMIT: u8 = 0x2;
const UNMOUNT: u8 = 0x20;
/// oh_clientid.
const XFS_TRANSACTION: u8 = 0x69;
/// blf_type.
const XFS_LI_BUF: u16 = 0x123c;

struct Log<'a> {
    place: &'a Place<'a>,
    sb: &'a Super,
    blocks: u64,
}

/// A record.
struct Record {
    lsn: u64,
    tail: u64,
    /// How many blocks of the log it takes.
    blocks: u64,
    operations: u32,
    /// Whether it has a checksum, which is right then.
    has_checksum: bool,
    /// What was logged, with the first word of each block back in its place.
    payload: Vec<u8>,
}

impl Log<'_> {
    /// Reads blocks, which may go on at the beginning.
    fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        ensure!(
            at < self.blocks && count <= self.blocks,
            "its log has no block {at}"
        );
        let start = self.sb.log_start * self.sb.block;
        let first = count.min(self.blocks - at);
        let mut bytes = self.place.read(start + at * BLOCK, first * BLOCK)?;
        bytes.append(&mut self.place.read(start, (count - first) * BLOCK)?);
        Ok(bytes)
    }

    /// As `xlog_get_cycle()`: how often the log had been filled when this block was written.
    fn cycle(&self, at: u64) -> Result<u32> {
        let bytes = self.read(at, 1)?;
        match Bytes(&bytes).be32(0)? {
            MAGIC => Bytes(&bytes).be32(4),
            cycle => Ok(cycle),
        }
    }

    /// The block that would be written next, as `xlog_find_head()`: the first one of an earlier cycle. A log
    /// that nobody writes to, and that recovery has cleaned up if need was, has no other ones before it.
    fn head(&self) -> Result<u64> {
        let first = self.cycle(0)?;
        let (mut low, mut high) = (0, self.blocks);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.cycle(middle)? == first {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(high % self.blocks)
    }

    /// The record that ends at the head.
    fn last(&self, head: u64) -> Result<(u64, Record)> {
        let most = (2 * LARGEST / BLOCK).min(self.blocks);
        let from = (head + self.blocks - most) % self.blocks;
        let bytes = self.read(from, most)?;
        let back = (0..most).rev().find(|&at| {
            let word = Bytes(&bytes).be32(usize::try_from(at * BLOCK).unwrap_or(usize::MAX));
            word.is_ok_and(|word| word == MAGIC)
        });
        let at = (from + back.context("its log has no record before its head")?) % self.blocks;
        let record = self.record(at)?;
        ensure!(
            (at + record.blocks) % self.blocks == head,
            "the last record of its log does not end where the log does"
        );
        Ok((at, record))
    }

    /// Reads and checks the record at a block.
    fn record(&self, at: u64) -> Result<Record> {
        let first = self.read(at, 1)?;
        let head = Bytes(&first);
        let (version, length) = (head.be32(8)?, u64::from(head.be32(12)?));
        // h_size.
        let size = u64::from(head.be32(320)?);
        ensure!(
            head.be32(0)? == MAGIC
                && version == 2
                && length % BLOCK == 0
                && length <= LARGEST
                && size <= LARGEST
                && head.be64(16)? & 0xffff_ffff == at
                // h_fmt: numbers of the machine are little-endian.
                && head.be32(300)? == 1
                && head.get(304)? == self.sb.uuid,
            "a record of its log at block {at} is not known"
        );
        let heads = size.div_ceil(CYCLE_SIZE).max(1);
        let bytes = self.read(at, heads + length / BLOCK)?;
        let (head, payload) = bytes.split_at(usize::try_from(heads * BLOCK)?);
        let block = usize::try_from(BLOCK)?;
        let summed = usize::try_from(length.div_ceil(CYCLE_SIZE).max(1))?;
        let mut pieces = vec![&head[..32], &[0; 4], &head[36..HEAD]];
        let more = head.chunks_exact(block).skip(1).take(summed - 1);
        pieces.extend(more.map(|head| &head[..MORE]));
        pieces.push(payload);
        let sum = Bytes(head).le32(32)?;
        ensure!(
            sum == 0 || sum == !crc32c(u32::MAX, &pieces),
            "the checksum of the record of its log at block {at} is wrong"
        );
        // As xlog_unpack_data(): each block begins with the cycle; what was there is in the headers.
        let mut payload = payload.to_vec();
        for (number, data) in payload.chunks_exact_mut(block).enumerate() {
            let from = match (number / 64, number % 64) {
                (0, word) => 44 + word * 4,
                (more, word) => more * block + 4 + word * 4,
            };
            data[..4].copy_from_slice(&Bytes(head).get::<4>(from)?);
        }
        let head = Bytes(head);
        Ok(Record {
            lsn: head.be64(16)?,
            tail: head.be64(24)?,
            blocks: heads + length / BLOCK,
            operations: head.be32(40)?,
            has_checksum: sum != 0,
            payload,
        })
    }
}

/// What may come next in what was logged.
enum State {
    Outside,
    /// A transaction has begun.
    Begun,
    /// So much of a logged buffer is to come.
    Inside(u16),
}

/// Goes through what a record has logged; fails if that is something other than the superblock.
fn check_operations(record: &Record, sector: u64, mut state: State) -> Result<State> {
    let replayed = "its log is to be replayed: it was not frozen by the take";
    let mut rest = record.payload.as_slice();
    for _ in 0..record.operations {
        let head = Bytes(rest);
        let length = usize::try_from(head.be32(4)?)?;
        let [client, flags] = head.get(8)?;
        let data = Bytes(head.part(12, length)?);
        ensure!(client == XFS_TRANSACTION, replayed);
        state = match (state, flags) {
            (State::Outside, START) if length == 0 => State::Begun,
            // th_magic: "TRAN".
            (State::Begun, 0) if length == 16 && data.le32(0)? == 0x5452_414e => State::Inside(0),
            (State::Inside(0), COMMIT) if length == 0 => State::Outside,
            (State::Inside(0), 0) => {
                // blf_blkno and blf_len: the buffer is the superblock.
                let (number, blocks) = (data.get::<8>(8)?, u64::from(data.le16(6)?));
                ensure!(
                    data.le16(0)? == XFS_LI_BUF && number == [0; 8] && blocks * BLOCK <= sector,
                    replayed
                );
                // blf_size counts this, too.
                let parts = data.le16(2)?.checked_sub(1);
                State::Inside(parts.context("an item of its log is empty")?)
            }
            (State::Inside(parts), 0) => State::Inside(parts - 1),
            _ => bail!(replayed),
        };
        rest = rest.get(12 + length..).context("a record is too short")?;
    }
    Ok(state)
}

/// Fails if recovery of the log could change anything but the superblock.
pub fn check_empty(place: &Place, sb: &Super) -> Result<()> {
    let log = Log {
        place,
        sb,
        blocks: sb.log_blocks * sb.block / BLOCK,
    };
    let head = log.head()?;
    let (_, last) = log.last(head)?;
    // As xlog_check_unmount_rec(). mkfs.xfs gives its one no checksum.
    if last.operations == 1 && Bytes(&last.payload).get(9)? == [UNMOUNT] {
        return Ok(());
    }
    let mut at = last.tail & 0xffff_ffff;
    let (mut lsn, mut blocks) = (last.tail, 0);
    let mut state = State::Outside;
    loop {
        let record = log.record(at)?;
        blocks += record.blocks;
        ensure!(record.has_checksum, "a record of its log has no checksum");
        ensure!(
            blocks * BLOCK <= MOST
                && (record.lsn == lsn || blocks > record.blocks && record.lsn > lsn),
            "its log is to be replayed: it was not frozen by the take"
        );
        state = check_operations(&record, sb.sector, state)?;
        at = (at + record.blocks) % log.blocks;
        lsn = record.lsn;
        if lsn == last.lsn {
            break;
        }
    }
    ensure!(
        matches!(state, State::Outside),
        "its log ends in the middle of a transaction"
    );
    Ok(())
}
