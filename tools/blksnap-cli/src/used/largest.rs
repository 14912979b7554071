// SPDX-License-Identifier: GPL-2.0-or-later

//! The largest of many ranges, so many that they have room in memory: what is free of a large file
//! system may be in any number of pieces, and the small ones are not worth much.

use std::ops::Range;

use blksnap::ByteSet;

/// Ranges that are kept: some 10 MB.
pub const MOST: usize = 1 << 18;

/// Ranges, of which those that come one after the other are joined.
pub struct Largest {
    most: usize,
    kept: Vec<Range<u64>>,
    /// No shorter ones are kept.
    least: u64,
    /// The last one, which may become longer.
    last: Range<u64>,
}

impl Largest {
    /// Keeps so many, or half as many at least, if so many come.
    pub fn of(most: usize) -> Self {
        Self {
            most,
            kept: Vec::new(),
            least: 0,
            last: 0..0,
        }
    }

    /// Adds a range; it may touch the one before.
    pub fn push(&mut self, range: Range<u64>) {
        if range.start == self.last.end {
            self.last.end = range.end;
            return;
        }
        self.keep_last();
        self.last = range;
    }

    fn keep_last(&mut self) {
        let last = std::mem::take(&mut self.last);
        if last.is_empty() || last.end - last.start < self.least {
            return;
        }
        self.kept.push(last);
        if self.kept.len() > self.most {
            self.halve();
        }
    }

    /// Keeps the larger half.
    fn halve(&mut self) {
        let length = |range: &Range<u64>| range.end - range.start;
        let mut lengths: Vec<_> = self.kept.iter().map(length).collect();
        let (_, &mut middle, _) = lengths.select_nth_unstable(self.most / 2);
        // Of those of this length some go: there may be nothing but such.
        let mut over = self.kept.len() - self.most / 2;
        over -= lengths.iter().filter(|&&length| length < middle).count();
        self.kept.retain(|range| {
            let goes = length(range) == middle && over > 0;
            over -= usize::from(goes);
            length(range) > middle || length(range) == middle && !goes
        });
        self.least = middle.saturating_add(1);
    }

    /// What was kept.
    pub fn finish(mut self) -> ByteSet {
        self.keep_last();
        self.kept.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 16;

    #[test]
    fn the_small_ones_go_first() {
        let mut some = Largest::of(MOST);
        for range in [0..1, 1..3, 5..6, 6..7, 9..10] {
            some.push(range);
        }
        let kept: Vec<_> = some.finish().iter().collect();
        assert_eq!(kept, [0..3, 5..7, 9..10], "there is room for all");
        let mut many = Largest::of(MOST);
        for number in 0..1000u64 {
            // Ten are large, in pieces.
            let at = number * 1000;
            let length = if number % 100 == 7 {
                512
            } else {
                1 + number % 64
            };
            many.push(at..at + length / 2);
            many.push(at + length / 2..at + length);
        }
        let kept: Vec<_> = many.finish().iter().collect();
        assert!(kept.len() <= MOST, "{}", kept.len());
        let large = kept.iter().filter(|range| range.end - range.start == 512);
        assert_eq!(large.count(), 10);
        let mut same = Largest::of(MOST);
        (0..1000u64).for_each(|number| same.push(number * 10..number * 10 + 5));
        let kept = same.finish().iter().count();
        assert!((MOST / 2..=MOST).contains(&kept), "{kept}");
    }
}
