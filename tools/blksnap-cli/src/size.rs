// SPDX-License-Identifier: GPL-2.0-or-later

//! Sizes as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written with a suffix of powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let text = text.trim().to_ascii_uppercase();
            let text = text
                .strip_suffix("IB")
                .or(text.strip_suffix('B'))
                .unwrap_or(&text);
            let (number, shift) = match text.chars().last()? {
                '0'..='9' => (text, 0),
                unit => {
                    let power = UNITS.iter().position(|&known| known == unit)? + 1;
                    (text[..text.len() - 1].trim_end(), 10 * power as u32)
                }
            };
            let (whole, part) = number.split_once('.').unwrap_or((number, ""));
            if whole.is_empty() || part.len() > 6 || (shift == 0 && !part.is_empty()) {
                return None;
            }
            let scale = 10u128.pow(part.len() as u32);
            let digits: u64 = format!("{whole}{part}").parse().ok()?;
            let bytes = (u128::from(digits) << shift) / scale;
            u64::try_from(bytes).ok().map(Self)
        };
        parse().ok_or_else(|| format!("`{text}` is not a size: write 4096, 512K, 64M or 1.5G"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.max(1).ilog2() / 10) as usize;
        if power == 0 {
            return f.pad(&format!("{} B", self.0));
        }
        let value = self.0 as f64 / f64::powi(1024.0, power as i32);
        let digits = if value < 10.0 { 2 } else { 1 };
        f.pad(&format!("{value:.digits$} {}iB", UNITS[power - 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("64m", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5G", 3 << 29),
            ("2TB", 2 << 40),
            ("0.25k", 256),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "1.5",
            "1X",
            "1 2",
            "16E",
            "99999999999T",
            "1e3",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (300 << 20, "300.0 MiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Size(5)), "      5 B");
    }
}
