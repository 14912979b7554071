// SPDX-License-Identifier: GPL-2.0-or-later

//! Memory for direct I/O, and a look for zeros.

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a buffer: what one read moves, and the most that one checksum is of.
/// (Tests have small devices.)
pub const SIZE: usize = if cfg!(any(test, feature = "testing")) {
    1 << 20
} else {
    4 << 20
};
/// What holes are made of: a run of zeros of this size, at a multiple of it.
pub const GRAIN: usize = 64 << 10;

/// Memory at an address that direct I/O accepts.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A piece of memory, aligned to pages: of [`SIZE`] bytes, if not said otherwise.
pub struct Buffer(Box<[Page]>);

impl Buffer {
    /// A buffer of zeros.
    pub fn new() -> Self {
        Self::with_room(SIZE)
    }

    /// The same, of at least `length` bytes.
    pub fn with_room(length: usize) -> Self {
        Self(vec![Page([0; 4096]); length.div_ceil(4096)].into())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether there are only zeros. In blocks that the compiler makes vectors of.
pub fn is_zero(bytes: &[u8]) -> bool {
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    bytes.chunks(256).all(zero)
}

/// Cuts data that belongs at `offset` into runs of zeros and of others, at multiples of [`GRAIN`].
/// Gives each run's place in `bytes`, and whether it is zero.
pub fn runs(bytes: &[u8], offset: u64) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        // The offset in a grain is smaller than GRAIN.
        let in_grain = ((offset + at as u64) % GRAIN as u64) as usize;
        let end = bytes.len().min(at + GRAIN - in_grain);
        let zero = is_zero(&bytes[at..end]);
        match runs.last_mut() {
            Some((range, kind)) if *kind == zero => range.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_seen_at_any_length() {
        for length in [0, 1, 255, 256, 257, 4096, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if at < length {
                    bytes[at] = 1;
                    assert!(!is_zero(&bytes), "{length} {at}");
                    bytes[at] = 0;
                }
            }
        }
    }

    #[test]
    fn runs_are_cut_at_grains_of_the_target() {
        let mut bytes = vec![0; 3 * GRAIN];
        bytes[GRAIN] = 1;
        assert_eq!(
            runs(&bytes, 0),
            [
                (0..GRAIN, true),
                (GRAIN..2 * GRAIN, false),
                (2 * GRAIN..3 * GRAIN, true)
            ]
        );
        // The same bytes 512 further on: the byte is in the grain that begins 512 before it.
        assert_eq!(
            runs(&bytes, 512),
            [
                (0..GRAIN - 512, true),
                (GRAIN - 512..2 * GRAIN - 512, false),
                (2 * GRAIN - 512..3 * GRAIN, true)
            ]
        );
        assert_eq!(runs(&[], 7), []);
    }

    #[test]
    fn buffers_are_aligned() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.bytes().as_ptr() as usize % 4096, 0);
        assert_eq!(buffer.bytes_mut().len(), SIZE);
    }
}
