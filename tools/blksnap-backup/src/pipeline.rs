// SPDX-License-Identifier: GPL-2.0-or-later

//! Large pieces of data through several threads, and in order.
//!
//! ```text
//! pieces ─┬─ worker: read into a buffer, look at it (checksum, comparison) ─┐
//!         ├─ worker …                                                       ├─ sink, on this thread
//!         └─ worker …                                                       ┘
//! ```
//!
//! The workers get the pieces in turn, so the sink gets them in order by asking the workers in
//! turn. There are two buffers for each worker: one is filled while the other is emptied. These are all,
//! and no more pieces than buffers are known at a time.

use std::ops::RangeInclusive;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result};

use crate::buffer::Buffer;
use crate::watch::Watch;

/// Threads: enough to keep a device busy that wants several requests at once, and to compute
/// checksums as fast as it is read; no more than their buffers are worth.
const WORKERS: RangeInclusive<usize> = 4..=8;
/// Buffers of one worker.
const BUFFERS: usize = 2;

/// Runs `work` for each piece, on one of several threads, and hands the buffer it has filled and
/// what it gave to `sink`, in the order of the pieces. `start` makes the `work` of a thread. The
/// first error ends all, also one in place of a piece. Pieces are asked for as they are needed.
pub fn run<P: Send, W, T: Send>(
    pieces: impl Iterator<Item = Result<P>>,
    start: impl Fn() -> Result<W> + Sync,
    watch: &dyn Watch,
    mut sink: impl FnMut(&Buffer, P, T) -> Result<()>,
) -> Result<()>
where
    W: FnMut(&mut Buffer, &P) -> Result<T>,
{
    let processors = thread::available_parallelism().map_or(1, |count| count.get());
    let workers = processors.clamp(*WORKERS.start(), *WORKERS.end());
    let mut pieces = pieces.fuse();
    thread::scope(|scope| {
        let mut lanes = Vec::new();
        let mut spare = Vec::new();
        let (mut given, mut taken) = (0, 0);
        let mut end = None;
        loop {
            while end.is_none() && given - taken < workers * BUFFERS {
                let piece = match pieces.next() {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => {
                        end = Some(Err(error));
                        break;
                    }
                    None => {
                        end = Some(Ok(()));
                        break;
                    }
                };
                if lanes.len() <= given % workers {
                    let (todo_in, todo_out) = sync_channel::<(Buffer, P)>(BUFFERS);
                    let (done_in, done_out) = sync_channel(BUFFERS);
                    let start = &start;
                    scope.spawn(move || {
                        let all = || -> Result<()> {
                            let mut work = start()?;
                            // When the other side has gone, it knows why.
                            while let Ok((mut buffer, piece)) = todo_out.recv() {
                                let value = work(&mut buffer, &piece)?;
                                if done_in.send(Ok((buffer, piece, value))).is_err() {
                                    break;
                                }
                            }
                            Ok(())
                        };
                        if let Err(error) = all() {
                            let _ = done_in.send(Err(error));
                        }
                    });
                    lanes.push((todo_in, done_out));
                }
                let buffer = spare.pop().unwrap_or_default();
                // A worker that has gone has said why.
                let _ = lanes[given % workers].0.send((buffer, piece));
                given += 1;
            }
            if taken == given {
                return end.unwrap_or(Ok(()));
            }
            let done = lanes[taken % workers].1.recv();
            watch.check()?;
            let (buffer, piece, value) = done.context("a thread has gone")??;
            sink(&buffer, piece, value)?;
            spare.push(buffer);
            taken += 1;
        }
    })
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::watch::Nobody;

    fn squares(count: u64, fail_at: u64) -> (Vec<u64>, Result<()>) {
        let mut got = Vec::new();
        let start = || {
            Ok(move |buffer: &mut Buffer, piece: &u64| {
                if *piece == fail_at {
                    bail!("piece {piece}");
                }
                buffer.bytes_mut()[0] = *piece as u8;
                Ok(piece * piece)
            })
        };
        let result = run(
            (0..count).map(Ok),
            start,
            &Nobody,
            |buffer, piece, square| {
                assert_eq!(buffer.bytes()[0], piece as u8);
                got.push(square);
                Ok(())
            },
        );
        (got, result)
    }

    #[test]
    fn results_come_in_order() {
        for count in [0, 1, 3, 4, 5, 100] {
            let (got, result) = squares(count, u64::MAX);
            assert!(result.is_ok());
            assert_eq!(got, (0..count).map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_it_in_its_turn() {
        for at in [0, 2, 7, 99] {
            let (got, result) = squares(100, at);
            assert_eq!(result.unwrap_err().to_string(), format!("piece {at}"));
            assert_eq!(got.len() as u64, at);
        }
        let start = || Ok(|_: &mut Buffer, _: &u64| Ok(()));
        let mut calls = 0;
        let result = run((0..100).map(Ok), start, &Nobody, |_, _, ()| {
            calls += 1;
            bail!("full")
        });
        assert_eq!((calls, result.unwrap_err().to_string()), (1, "full".into()));
    }

    #[test]
    fn an_error_in_place_of_a_piece_comes_after_those_before() {
        for at in [0, 1, 9, 50] {
            let pieces = (0..100).map(|piece| match piece {
                _ if piece == at => bail!("no piece {piece}"),
                _ if piece > at => panic!("asked for what is behind an error"),
                _ => Ok(piece),
            });
            let start = || Ok(|_: &mut Buffer, piece: &u32| Ok(*piece));
            let mut got = 0;
            let result = run(pieces, start, &Nobody, |_, _, _| {
                got += 1;
                Ok(())
            });
            assert_eq!(result.unwrap_err().to_string(), format!("no piece {at}"));
            assert_eq!(got, at);
        }
    }
}
