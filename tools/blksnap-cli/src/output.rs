// SPDX-License-Identifier: GPL-2.0-or-later

//! Results on standard output.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints lines. A reader that has gone is an error, not a panic.
pub fn print(text: impl AsRef<str>) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string_pretty(value).context("cannot make JSON")?)
}
