// SPDX-License-Identifier: GPL-2.0-or-later

//! Which backups stay: the rules of `--keep-…`, with the meaning that they have in restic.
//!
//! A rule looks at the backups from the newest to the oldest. The newest one of each hour, day, week
//! (from Monday, as in ISO 8601), month or year is kept, for so many of these periods; a period
//! without a backup does not count. If there are fewer periods than that, the oldest backup is kept
//! too: so a month is not left without one before the next month has one. A backup that any rule
//! keeps is kept.
//!
//! A period is one of local time at that instant, summer time included, of the machine that prunes. A
//! backup is of the time when its snapshot was taken, which its name has in UTC.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde::Serialize;

/// How many of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(usize);

impl Count {
    /// So many.
    #[cfg(test)]
    pub fn of(count: usize) -> Self {
        Self(count)
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<u32>()) {
            ("unlimited", _) => Ok(Self(usize::MAX)),
            (_, Ok(count @ 1..)) => Ok(Self(count as usize)),
            _ => Err("write a number from 1 on, or `unlimited`".into()),
        }
    }
}

/// A time before the newest backup, as restic writes it: `2y5m7d3h`, of years, months, days and hours.
#[derive(Clone, Copy, Debug)]
pub struct Within(Span);

impl Within {
    /// So long before a time; `None` if that is before all times.
    pub fn before(self, time: Zoned) -> Option<Zoned> {
        time.checked_sub(self.0).ok()
    }
}

impl FromStr for Within {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (mut span, mut rest, mut last) = (Span::new(), text, None);
            while !rest.is_empty() {
                let digits = rest.find(|c: char| !c.is_ascii_digit())?;
                let (number, after) = rest.split_at(digits);
                let number: i64 = number.parse().ok()?;
                let unit = after.chars().next()?;
                // Each unit once, the largest first.
                let place = "ymdh".find(unit)?;
                if last.is_some_and(|last| place <= last) {
                    return None;
                }
                last = Some(place);
                span = match unit {
                    'y' => span.try_years(number),
                    'm' => span.try_months(number),
                    'd' => span.try_days(number),
                    _ => span.try_hours(number),
                }
                .ok()?;
                rest = &after[unit.len_utf8()..];
            }
            span.is_positive().then_some(Self(span))
        };
        parse().ok_or_else(|| {
            format!("`{text}` is not a time: write 2y5m7d3h (years, months, days, hours), or some of these")
        })
    }
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The newest backups.
    Last,
    /// The newest of an hour, and so on.
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    /// Those not long before the newest.
    Within,
    /// The newest of all stays whatever the rules say: the next backup is based on it.
    Newest,
    /// It is the last one of a device.
    LastOfDevice,
}

/// Why a backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Reason {
    /// By which rule.
    pub rule: Rule,
    /// Whether it is the oldest, kept as there are fewer periods than the rule would keep.
    pub oldest: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.rule {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
            Rule::Within => "within",
            Rule::Newest => "the newest",
            Rule::LastOfDevice => "last of a device",
        };
        f.write_str(name)?;
        f.write_str(if self.oldest { " (the oldest)" } else { "" })
    }
}

/// The rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// How many of the newest.
    pub last: Option<Count>,
    /// Of how many hours, and so on.
    pub hourly: Option<Count>,
    pub daily: Option<Count>,
    pub weekly: Option<Count>,
    pub monthly: Option<Count>,
    pub yearly: Option<Count>,
    /// From how long before the newest on.
    pub within: Option<Within>,
}

/// What tells one period from another.
type Period = (i16, i16, i8);

/// The period of a backup, of its time, and of its number from the newest on.
type PeriodOf = fn(&Zoned, usize) -> Period;

/// A rule that has kept some.
struct Bucket {
    rule: Rule,
    left: usize,
    last: Option<Period>,
    period: PeriodOf,
}

impl Policy {
    /// Why backups are kept that were taken at these times, the oldest first, in that order: no reason
    /// for those that are not.
    pub fn reasons(&self, times: &[Timestamp], zone: &TimeZone) -> Vec<Vec<Reason>> {
        let mut reasons = vec![Vec::new(); times.len()];
        let mut buckets = self.buckets();
        // A clock that was wrong for a while leaves times out of order.
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse((times[index], index)));
        let end = order.len().saturating_sub(1);
        let since = self.since(times, zone);
        for (number, &index) in order.iter().enumerate() {
            let time = times[index].to_zoned(zone.clone());
            for bucket in &mut buckets {
                let period = (bucket.period)(&time, number);
                let new = bucket.last != Some(period);
                if bucket.left > 0 && (new || number == end) {
                    bucket.left -= 1;
                    bucket.last = Some(period);
                    reasons[index].push(Reason {
                        rule: bucket.rule,
                        oldest: !new,
                    });
                }
            }
            if since.is_some_and(|since| times[index] > since) {
                reasons[index].push(Reason {
                    rule: Rule::Within,
                    oldest: false,
                });
            }
        }
        if let Some(newest) = reasons.last_mut().filter(|newest| newest.is_empty()) {
            newest.push(Reason {
                rule: Rule::Newest,
                oldest: false,
            });
        }
        reasons
    }

    fn buckets(&self) -> Vec<Bucket> {
        let all: [(Rule, Option<Count>, PeriodOf); 6] = [
            (Rule::Last, self.last, |_, number| {
                // No two are the same; there are not so many that this would not do.
                let number = number as u32;
                ((number >> 16) as i16, number as i16, 0)
            }),
            (Rule::Hourly, self.hourly, |time, _| {
                (time.year(), time.day_of_year(), time.hour())
            }),
            (Rule::Daily, self.daily, |time, _| {
                (time.year(), time.day_of_year(), 0)
            }),
            (Rule::Weekly, self.weekly, |time, _| {
                let week = time.date().iso_week_date();
                (week.year(), 0, week.week())
            }),
            (Rule::Monthly, self.monthly, |time, _| {
                (time.year(), i16::from(time.month()), 0)
            }),
            (Rule::Yearly, self.yearly, |time, _| (time.year(), 0, 0)),
        ];
        let asked = all.into_iter().filter_map(|(rule, count, period)| {
            Some(Bucket {
                rule,
                left: count?.0,
                last: None,
                period,
            })
        });
        asked.collect()
    }

    /// After what time all are kept.
    fn since(&self, times: &[Timestamp], zone: &TimeZone) -> Option<Timestamp> {
        let within = self.within?;
        // As in restic, a backup of a time that is still to come is kept, and does not move the others.
        let now = Timestamp::now();
        let newest = times.iter().filter(|time| **time <= now).max();
        let newest = newest?.to_zoned(zone.clone());
        // What is before all times keeps all.
        let since = within.before(newest);
        Some(since.map_or(Timestamp::MIN, |since| since.timestamp()))
    }
}

#[cfg(test)]
mod tests;
