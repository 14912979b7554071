// SPDX-License-Identifier: GPL-2.0

//! Where more difference storage comes from, and when it is wanted.
//!
//! Either [the client](LowSpace) is asked, by events, or [the kernel](Growing) lets a file grow
//! that it holds. This is the arithmetic only. All numbers are sectors.

use kernel::prelude::*;

/// Where more comes from.
pub(crate) enum Supply {
    /// The client appends ranges.
    Client(LowSpace),
    /// The kernel has all it may have, or takes more.
    Kernel(Growing),
}

/// What is to be done for more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// To ask the client for so many sectors.
    Ask(u64),
    /// To let the file grow.
    Grow,
    /// To tell the client that there will be no more than so many sectors.
    TellLimit(u64),
}

impl Supply {
    /// How much is asked for, or taken, at a time.
    pub(crate) fn portion(&self) -> u64 {
        match self {
            Self::Client(low) => low.portion(),
            Self::Kernel(growing) => growing.portion,
        }
    }

    /// What events have asked for, all together.
    pub(crate) fn requested(&self) -> u64 {
        match self {
            Self::Client(low) => low.requested(),
            Self::Kernel(_) => 0,
        }
    }

    /// `sectors` were appended.
    pub(crate) fn appended(&mut self, sectors: u64, filled: u64, capacity: u64) -> Option<Want> {
        match self {
            Self::Client(low) => {
                low.appended(sectors);
                low.ask(filled, capacity)
            }
            // Nothing has to be told, or to be done, before something is stored.
            Self::Kernel(_) => None,
        }
    }

    /// Something was stored: `filled` of `capacity` are in use.
    pub(crate) fn stored(&mut self, filled: u64, capacity: u64) -> Option<Want> {
        match self {
            Self::Client(low) => low.ask(filled, capacity),
            Self::Kernel(growing) => growing.want(filled, capacity),
        }
    }

    /// The error to fail with when all is in use.
    pub(crate) fn exhausted(&self) -> Error {
        match self {
            Self::Kernel(Growing {
                error: Some(err), ..
            }) => *err,
            _ => ENOSPC,
        }
    }
}

/// Storage that the kernel holds.
pub(crate) struct Growing {
    portion: u64,
    /// Whether it can grow at all.
    grows: bool,
    /// It is as large as it may get.
    at_limit: bool,
    /// The client was told that.
    told: bool,
    /// It is growing.
    under_way: bool,
    /// Why it did not grow the last time.
    error: Option<Error>,
    /// How much is to be in use before that is tried again.
    again_at: u64,
}

impl Growing {
    /// A file that grows by portions, unless it is `at_limit`.
    pub(crate) fn file(portion: u64, at_limit: bool) -> Self {
        Self {
            portion,
            grows: true,
            at_limit,
            told: false,
            under_way: false,
            error: None,
            again_at: 0,
        }
    }

    /// A device, which is used as it is.
    pub(crate) fn device(portion: u64) -> Self {
        Self {
            grows: false,
            ..Self::file(portion, true)
        }
    }

    /// What to do when `filled` of `capacity` are in use. Growth that is wanted counts as under
    /// way, until it [ends](Self::ended).
    fn want(&mut self, filled: u64, capacity: u64) -> Option<Want> {
        let free = capacity.saturating_sub(filled);
        if !self.grows || self.under_way || free > self.portion / 2 {
            return None;
        }
        if self.at_limit {
            let first = !self.told;
            self.told = true;
            return first.then_some(Want::TellLimit(capacity));
        }
        // What has failed, for want of space as a rule, is tried some times on the way to the end.
        if self.error.is_some() && filled < self.again_at && filled < capacity {
            return None;
        }
        self.under_way = true;
        Some(Want::Grow)
    }

    /// Growth has ended, with `filled` in use: whether it is as large as it may get, or an error.
    pub(crate) fn ended(&mut self, result: Result<bool>, filled: u64) {
        self.under_way = false;
        match result {
            Ok(at_limit) => {
                self.at_limit = at_limit;
                self.error = None;
            }
            Err(err) => {
                self.error = Some(err);
                self.again_at = filled.saturating_add(self.portion / 16);
            }
        }
    }
}

/// When to ask a client for more.
///
/// A client is kept about one portion ahead of what is filled: one event at a time, the next one
/// only when what the last one asked for is there.
pub(crate) struct LowSpace {
    portion: u64,
    /// What all events together have asked for.
    requested: u64,
    /// What was appended.
    appended: u64,
    /// An event asked for something that is not there yet.
    outstanding: bool,
}

impl LowSpace {
    /// Asks for the first portion.
    pub(crate) fn new(portion: u64) -> Self {
        Self {
            portion,
            requested: portion,
            appended: 0,
            outstanding: true,
        }
    }

    /// The size of a portion, which each event asks for.
    fn portion(&self) -> u64 {
        self.portion
    }

    /// What all events together have asked for.
    fn requested(&self) -> u64 {
        self.requested
    }

    /// Notes that `sectors` were appended.
    fn appended(&mut self, sectors: u64) {
        self.appended = self.appended.saturating_add(sectors);
        if self.appended >= self.requested {
            self.outstanding = false;
        }
    }

    /// Whether to ask for another portion now that `filled` of `capacity` is in use. If so, it
    /// counts as asked.
    fn ask(&mut self, filled: u64, capacity: u64) -> Option<Want> {
        // Not from what was appended: what is less than a unit at the end of a range is not used.
        let ahead = capacity.saturating_sub(filled);
        if self.outstanding || ahead > self.portion {
            return None;
        }
        // A client may append more than it was asked for.
        self.requested = self
            .requested
            .max(self.appended)
            .saturating_add(self.portion);
        self.outstanding = true;
        Some(Want::Ask(self.portion))
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_supply)]
mod tests {
    use super::*;

    #[test]
    fn one_portion_ahead() {
        let mut low = LowSpace::new(100);
        assert_eq!(low.ask(0, 0), None);
        low.appended(60);
        assert_eq!(low.ask(0, 60), None);
        low.appended(40);
        assert!(low.ask(0, 100).is_some());
        assert_eq!(low.ask(100, 100), None);
        assert_eq!(low.requested(), 200);
        low.appended(100);
        assert_eq!(low.ask(99, 200), None);
        assert!(low.ask(100, 200).is_some());
        low.appended(1000);
        assert_eq!(low.ask(900, 1200), None);
        assert!(low.ask(1100, 1200).is_some());
        assert_eq!(low.requested(), 1300);
    }

    #[test]
    fn what_is_of_no_use_is_not_ahead() {
        let mut low = LowSpace::new(100);
        // A fifth of each portion is lost.
        for portions in 1..100 {
            low.appended(100);
            let capacity = portions * 80;
            assert!(low.ask(capacity - 80, capacity).is_some());
            assert_eq!(low.requested(), (portions + 1) * 100);
        }
    }

    #[test]
    fn numbers_do_not_wrap() {
        let mut low = LowSpace::new(u64::MAX);
        low.appended(u64::MAX);
        assert!(low.ask(5, 5).is_some());
        low.appended(u64::MAX);
        assert_eq!(low.requested(), u64::MAX);
    }

    #[test]
    fn a_file_grows_when_half_a_portion_is_left() {
        let mut file = Growing::file(100, false);
        assert_eq!(file.want(49, 100), None);
        assert_eq!(file.want(50, 100), Some(Want::Grow));
        assert_eq!(file.want(80, 100), None);
        file.ended(Ok(false), 80);
        assert_eq!(file.want(149, 200), None);
        assert_eq!(file.want(150, 200), Some(Want::Grow));
        file.ended(Ok(true), 160);
        assert_eq!(file.want(200, 260), None);
        assert_eq!(file.want(210, 260), Some(Want::TellLimit(260)));
        assert_eq!(file.want(260, 260), None);
    }

    #[test]
    fn the_limit_is_told_once() {
        let mut supply = Supply::Kernel(Growing::file(100, true));
        assert_eq!(supply.appended(80, 0, 80), None);
        assert_eq!(supply.stored(1, 80), None);
        assert_eq!(supply.stored(30, 80), Some(Want::TellLimit(80)));
        assert_eq!(supply.stored(80, 80), None);
        assert_eq!(supply.exhausted(), ENOSPC);
    }

    #[test]
    fn a_device_is_not_told_of() {
        let mut device = Growing::device(100);
        assert_eq!(device.want(80, 80), None);
    }

    #[test]
    fn growth_that_failed_is_tried_again_and_its_error_is_the_last() {
        let mut file = Growing::file(160, false);
        assert_eq!(file.want(100, 160), Some(Want::Grow));
        file.ended(Err(EIO), 100);
        assert_eq!(file.want(109, 160), None);
        assert_eq!(file.want(110, 160), Some(Want::Grow));
        file.ended(Err(EDQUOT), 159);
        assert_eq!(file.want(159, 160), None);
        // At the end in any case.
        assert_eq!(file.want(160, 160), Some(Want::Grow));
        assert_eq!(Supply::Kernel(file).exhausted(), EDQUOT);
    }
}
