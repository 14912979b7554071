// SPDX-License-Identifier: GPL-2.0-or-later

//! `--rate`: no more than so many bytes a second.
//!
//! Data is waited for when it has come: who hands on the pieces that several threads have read waits
//! before the next one, and the threads have no free buffers then. So at the beginning, and after a
//! pause, some tens of MiB are read at once; after that, one piece in the time that it may take.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::signals::{Interrupted, Signals};
use crate::size::Size;

/// What was not read in this time may be read later, as fast as it goes: a disk is not always as fast.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes in a second, as it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Size>()? {
            Size(0) => Err("nothing would ever be read".into()),
            Size(bytes) => Ok(Self(bytes)),
        }
    }
}

impl Rate {
    /// How long so many bytes take at least.
    fn time_of(self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// What keeps to a rate, for all that is read with it; to none, if none is given.
pub struct Pace {
    rate: Option<Rate>,
    /// When what has been read so far is paid for. Nothing else is locked under it.
    paid: Mutex<Instant>,
}

impl Pace {
    /// A new one.
    pub fn new(rate: Option<Rate>) -> Self {
        let paid = Mutex::new(Instant::now());
        Self { rate, paid }
    }

    /// So many bytes were read.
    pub fn read(&self, bytes: u64) {
        if let Some(rate) = self.rate {
            self.read_by(bytes, rate, Instant::now());
        }
    }

    fn read_by(&self, bytes: u64, rate: Rate, now: Instant) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let from = now.checked_sub(GRACE).map_or(*paid, |from| from.max(*paid));
        // What cannot be added is longer than any machine runs.
        let time = rate.time_of(bytes).min(Duration::from_secs(1 << 32));
        *paid = from.checked_add(time).unwrap_or(from);
    }

    /// Waits until more may be read, or a signal comes.
    pub fn wait(&self, signals: &Signals) -> Result<(), Interrupted> {
        signals.check()?;
        if self.rate.is_none() {
            return Ok(());
        }
        let paid = *self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        signals.wait_until(paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sizes_of_more_than_nothing() {
        assert_eq!("64M".parse(), Ok(Rate(64 << 20)));
        assert!("0".parse::<Rate>().is_err());
        assert!("fast".parse::<Rate>().is_err());
        assert_eq!(Rate(1000).time_of(2500), Duration::from_millis(2500));
        assert_eq!(Rate(1).time_of(u64::MAX), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn a_pause_is_not_made_up_for_but_for_a_second() {
        let (rate, start) = (Rate(1 << 20), Instant::now());
        let pace = Pace::new(Some(rate));
        *pace.paid.lock().unwrap() = start;
        let paid = || *pace.paid.lock().unwrap();
        let second = Duration::from_secs(1);
        pace.read_by(3 << 20, rate, start);
        assert_eq!(paid(), start + 3 * second);
        // Half a second too late.
        pace.read_by(1 << 20, rate, start + 3 * second + second / 2);
        assert_eq!(paid(), start + 4 * second);
        pace.read_by(1 << 20, rate, start + 100 * second);
        assert_eq!(paid(), start + 100 * second);
        pace.read_by(u64::MAX, Rate(1), start);
    }

    #[test]
    fn it_takes_the_time_that_it_should() {
        let signals = Signals::catch().unwrap();
        let start = Instant::now();
        let pace = Pace::new(Some(Rate(10 << 20)));
        for _ in 0..4 {
            pace.wait(&signals).unwrap();
            pace.read(1 << 20);
        }
        pace.wait(&signals).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(400));
        let free = Pace::new(None);
        free.read(u64::MAX);
        free.wait(&signals).unwrap();
    }
}
