// SPDX-License-Identifier: GPL-2.0-or-later

//! From when on something is a warning, and from when on critical.

use std::str::FromStr;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Level;
use crate::prune::policy::Within;
use crate::size::Size;

/// `WARN[,CRIT]`.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<T> {
    warning: T,
    critical: Option<T>,
}

impl<T: FromStr<Err = String>> FromStr for Bounds<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (warning, critical) = match text.split_once(',') {
            Some((warning, critical)) => (warning, Some(critical)),
            None => (text, None),
        };
        Ok(Self {
            warning: warning.parse()?,
            critical: critical.map(str::parse).transpose()?,
        })
    }
}

/// A number on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From here on, it is a warning.
    pub warning: u64,
    /// From here on, it is critical, if there is such.
    pub critical: Option<u64>,
}

impl Limits {
    /// How bad it is to be above.
    pub fn above(self, value: u64) -> Level {
        self.level(|limit| value > limit)
    }

    /// How bad it is to be below.
    pub fn below(self, value: u64) -> Level {
        self.level(|limit| value < limit)
    }

    fn level(self, is: impl Fn(u64) -> bool) -> Level {
        match self.critical {
            Some(limit) if is(limit) => Level::Critical,
            _ if is(self.warning) => Level::Warning,
            _ => Level::Ok,
        }
    }
}

/// How old something may be, as rules of prune have it.
#[derive(Clone, Copy, Debug)]
pub struct Age(Within);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

impl Bounds<Age> {
    /// In seconds before a time.
    pub fn limits(self, now: Timestamp) -> Result<Limits> {
        let seconds = |Age(within): Age| {
            let then = within.before(now.to_zoned(TimeZone::system()));
            let then = then.context("an age is longer than there are dates")?;
            let length: SignedDuration = now.duration_since(then.timestamp());
            Ok::<_, anyhow::Error>(u64::try_from(length.as_secs()).unwrap_or(0))
        };
        Ok(Limits {
            warning: seconds(self.warning)?,
            critical: self.critical.map(seconds).transpose()?,
        })
    }
}

/// How much room there must be.
#[derive(Clone, Copy, Debug)]
pub enum Room {
    /// Bytes.
    Bytes(u64),
    /// Of a hundred.
    Part(u64),
}

impl FromStr for Room {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%').map(str::parse) {
            Some(Ok(part @ 0..=100)) => Ok(Self::Part(part)),
            Some(_) => Err(format!("`{text}` is not a part of a hundred: write 10%")),
            None => text.parse().map(|Size(bytes)| Self::Bytes(bytes)),
        }
    }
}

impl Bounds<Room> {
    /// In bytes of so many.
    pub fn limits(self, all: u64) -> Limits {
        let bytes = |room| match room {
            Room::Bytes(bytes) => bytes,
            Room::Part(part) => all / 100 * part,
        };
        Limits {
            warning: bytes(self.warning),
            critical: self.critical.map(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let ages = |text: &str| text.parse::<Bounds<Age>>().unwrap().limits(now).unwrap();
        let hours = |warning: u64, critical: Option<u64>| Limits {
            warning: warning * 3600,
            critical: critical.map(|hours| hours * 3600),
        };
        assert_eq!(ages("26h,50h"), hours(26, Some(50)));
        assert_eq!(ages("26h"), hours(26, None));
        assert!("26".parse::<Bounds<Age>>().is_err());
        assert!("26h,".parse::<Bounds<Age>>().is_err());
        let rooms = |text: &str| text.parse::<Bounds<Room>>().unwrap().limits(1000);
        let limits = Limits {
            warning: 100,
            critical: Some(30),
        };
        assert_eq!(rooms("10%,3%"), limits);
        assert_eq!(rooms("10%").critical, None);
        assert_eq!(rooms("2K,30").warning, 2048);
        for text in ["101%", "%", "x", "-1%"] {
            assert!(text.parse::<Bounds<Room>>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_worse_one_counts() {
        let limits = Limits {
            warning: 10,
            critical: Some(20),
        };
        for (value, level) in [
            (10, Level::Ok),
            (11, Level::Warning),
            (20, Level::Warning),
            (21, Level::Critical),
        ] {
            assert_eq!(limits.above(value), level);
        }
        let limits = Limits {
            warning: 20,
            critical: Some(10),
        };
        for (value, level) in [
            (20, Level::Ok),
            (19, Level::Warning),
            (10, Level::Warning),
            (9, Level::Critical),
        ] {
            assert_eq!(limits.below(value), level);
        }
    }
}
