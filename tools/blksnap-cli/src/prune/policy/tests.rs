// SPDX-License-Identifier: GPL-2.0-or-later

//! The rules, compared with what restic keeps.

use jiff::civil::date;
use jiff::tz;

use super::*;

fn utc(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn days(first: &str, count: i64) -> Vec<Timestamp> {
    let first = utc(first).to_zoned(TimeZone::UTC);
    let day = |n| first.checked_add(Span::new().days(n)).unwrap();
    (0..count).map(|n| day(n).timestamp()).collect()
}

/// The days that are kept, and by which rules.
fn kept(policy: Policy, times: &[Timestamp], zone: &TimeZone) -> Vec<String> {
    let reasons = policy.reasons(times, zone);
    let all = times
        .iter()
        .zip(&reasons)
        .filter(|(_, why)| !why.is_empty());
    let line = |(time, why): (&Timestamp, &Vec<Reason>)| {
        let why: Vec<_> = why.iter().map(Reason::to_string).collect();
        format!("{} {}", time.strftime("%m-%d"), why.join(", "))
    };
    all.map(line).collect()
}

fn some(count: usize) -> Option<Count> {
    Some(Count::of(count))
}

#[test]
fn the_newest_of_each_period_is_kept() {
    // 2026-01-01 is a Thursday.
    let times = days("2026-01-01T02:00:00Z", 60);
    let policy = Policy {
        daily: some(3),
        weekly: some(3),
        monthly: some(2),
        ..Policy::default()
    };
    assert_eq!(
        kept(policy, &times, &TimeZone::UTC),
        [
            "02-15 weekly",
            "02-22 weekly",
            "02-27 daily",
            "02-28 daily, monthly",
            "03-01 daily, weekly, monthly",
        ]
    );
}

#[test]
fn periods_without_a_backup_do_not_count() {
    let times = [
        utc("2019-05-05T10:00:00Z"),
        utc("2023-05-05T10:00:00Z"),
        utc("2023-05-05T10:59:00Z"),
        utc("2026-05-05T10:00:00Z"),
    ];
    for policy in [
        Policy {
            hourly: some(3),
            ..Policy::default()
        },
        Policy {
            yearly: some(3),
            ..Policy::default()
        },
    ] {
        let reasons = policy.reasons(&times, &TimeZone::UTC);
        let kept: Vec<_> = reasons.iter().map(|why| !why.is_empty()).collect();
        assert_eq!(kept, [true, false, true, true]);
    }
}

#[test]
fn the_oldest_stays_until_there_are_enough() {
    let times = days("2026-01-10T02:00:00Z", 30);
    let monthly = |count| Policy {
        monthly: some(count),
        ..Policy::default()
    };
    assert_eq!(
        kept(monthly(3), &times, &TimeZone::UTC),
        [
            "01-10 monthly (the oldest)",
            "01-31 monthly",
            "02-08 monthly"
        ]
    );
    assert_eq!(
        kept(monthly(2), &times, &TimeZone::UTC),
        ["01-31 monthly", "02-08 monthly"]
    );
}

#[test]
fn a_year_ends_where_its_last_week_does() {
    // The days around the new year of 2027, a Friday, are all in week 53 of 2026.
    let times = days("2026-12-26T02:00:00Z", 12);
    let policy = Policy {
        weekly: some(2),
        ..Policy::default()
    };
    let kept = kept(policy, &times, &TimeZone::UTC);
    assert_eq!(kept, ["01-03 weekly", "01-06 weekly"]);
}

#[test]
fn a_day_is_one_of_local_time() {
    let times = [
        utc("2026-07-01T20:00:00Z"),
        utc("2026-07-01T23:00:00Z"),
        utc("2026-07-02T20:00:00Z"),
    ];
    let policy = Policy {
        daily: some(2),
        ..Policy::default()
    };
    let first = |zone: &TimeZone| {
        let reasons = policy.reasons(&times, zone);
        (!reasons[0].is_empty(), !reasons[1].is_empty())
    };
    assert_eq!(first(&TimeZone::UTC), (false, true));
    let east = TimeZone::fixed(tz::offset(2));
    assert_eq!(first(&east), (true, false));
    // Summer time, without files of the system: from the end of March to that of October.
    let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    assert_eq!(first(&berlin), (true, false));
    let noon = date(2026, 7, 1).at(12, 0, 0, 0).to_zoned(berlin).unwrap();
    assert_eq!(noon.timestamp(), utc("2026-07-01T10:00:00Z"));
}

#[test]
fn within_is_before_the_newest() {
    let times = days("2020-01-01T02:00:00Z", 60);
    let within = |text: &str| Policy {
        within: Some(text.parse().unwrap()),
        ..Policy::default()
    };
    let count = |text| kept(within(text), &times, &TimeZone::UTC).len();
    assert_eq!(count("3d"), 3);
    assert_eq!(count("2d1h"), 3);
    assert_eq!(count("2d"), 2);
    assert_eq!(count("1h"), 1);
    // 2020-02-29 less a month is 2020-01-29.
    assert_eq!(count("1m"), 31);
    assert_eq!(count("9y"), 60);
    assert_eq!(count("9000y"), 60);
    // A clock that was wrong.
    let mut times = times;
    times.push(Timestamp::now() + Span::new().hours(24 * 400));
    assert_eq!(kept(within("3d"), &times, &TimeZone::UTC).len(), 4);
}

#[test]
fn the_newest_stays_though_its_clock_was_wrong() {
    let mut times = days("2026-01-01T02:00:00Z", 5);
    times.push(utc("2001-01-01T00:00:00Z"));
    let policy = Policy {
        last: some(1),
        daily: some(2),
        ..Policy::default()
    };
    assert_eq!(
        kept(policy, &times, &TimeZone::UTC),
        ["01-04 daily", "01-05 last, daily", "01-01 the newest"]
    );
}

#[test]
fn nonsense_is_no_rule() {
    for text in [
        "",
        "3",
        "d",
        "3x",
        "3d2y",
        "3d3d",
        "-3d",
        "0d",
        "3d ",
        "99999999999999999999d",
        "3é",
    ] {
        assert!(text.parse::<Within>().is_err(), "{text}");
    }
    for text in ["2y5m7d3h", "1y", "36h", "400d"] {
        assert!(text.parse::<Within>().is_ok(), "{text}");
    }
    for text in ["", "0", "-1", "all", "1.5"] {
        assert!(text.parse::<Count>().is_err(), "{text}");
    }
    assert_eq!("unlimited".parse(), Ok(Count(usize::MAX)));
    assert_eq!("14".parse(), Ok(Count(14)));
}
