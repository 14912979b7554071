// SPDX-License-Identifier: GPL-2.0-or-later

use std::path::Path;

use super::*;
use crate::extents::ExtentsWriter;
use crate::testing::numbers;

/// A block of the test's devices.
const UNIT: u64 = 64 << 10;

fn list(path: &Path, extents: impl IntoIterator<Item = Extent>) -> Extents {
    let mut writer = ExtentsWriter::create(path).unwrap();
    for extent in extents {
        writer.push(extent).unwrap();
    }
    writer.finish().unwrap()
}

/// Extents in random places of a device of so many units.
fn random(numbers: &mut impl Iterator<Item = usize>, units: u64, gaps: u64) -> Vec<Extent> {
    let mut number = |below: u64| numbers.next().unwrap() as u64 % below.max(1);
    let (mut extents, mut at) = (Vec::new(), number(gaps));
    while at < units {
        let zeros = number(3) == 0;
        let longest = if zeros { 300 } else { LONGEST / UNIT };
        let end = units.min(at + 1 + number(longest));
        let range = at * UNIT..end * UNIT;
        extents.push(match zeros {
            true => Extent::of_zeros(range),
            false => Extent {
                length: range.end - range.start,
                ..Extent::of(range.start, b"x")
            },
        });
        at = end + number(gaps);
    }
    extents
}

/// Compares with an array of which list each unit is from.
#[test]
fn the_newest_is_seen_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let units: u64 = 1500;
    let mut numbers = numbers(7);
    for round in 0..60 {
        let mut model = vec![None; units as usize];
        let mut lists = Vec::new();
        let gaps = [0, 2, 40, 900];
        for layer in 0..1 + round % 4 {
            let gaps = gaps[(layer + round % 2) % 4];
            let extents = random(&mut numbers, units, gaps);
            for extent in &extents {
                let range = extent.start / UNIT..extent.range().end / UNIT;
                for unit in range {
                    model[unit as usize] = Some((layer, extent.hash.is_some()));
                }
            }
            lists.push(list(&dir.path().join(layer.to_string()), extents));
        }
        let gap = model.iter().position(Option::is_none);
        let found = first_gap(&lists, units * UNIT).unwrap();
        assert_eq!(found, gap.map(|unit| unit as u64 * UNIT), "{round}");
        let all = std::iter::once(0..units * UNIT).collect::<ByteSet>();
        let some = random(&mut numbers, units, 700).into_iter();
        let some: ByteSet = some.map(|extent| extent.range()).collect();
        for places in [&all, &some] {
            let mut got = vec![None; units as usize];
            let mut start = 0;
            for seen in seen(&lists, places) {
                let seen = seen.unwrap();
                assert!(seen.extent.start >= start, "{round}: in order");
                start = seen.extent.start;
                assert!(!seen.parts.is_empty());
                for part in &seen.parts {
                    assert!(seen.extent.start <= part.start);
                    assert!(part.end <= seen.extent.range().end);
                    for unit in part.start / UNIT..part.end / UNIT {
                        let place = &mut got[unit as usize];
                        let new = (seen.layer, seen.extent.hash.is_some());
                        assert_eq!(place.replace(new), None, "{round}: once");
                    }
                }
            }
            for (unit, place) in got.iter().enumerate() {
                let at = unit as u64 * UNIT;
                let wanted = places.inside(at..at + 1).next().is_some();
                let expected = model[unit].filter(|_| wanted);
                assert_eq!(*place, expected, "{round}: {unit}");
            }
        }
    }
}
