// SPDX-License-Identifier: GPL-2.0-or-later

//! Results on standard output; remarks on standard error, which `--quiet` keeps back.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};

/// Whether only results and errors are wanted.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, print no remarks and no progress.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether remarks and progress are not wanted.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A remark: worth to know, and no error.
pub fn remark(text: impl AsRef<str>) {
    if !is_quiet() {
        // Nobody can be told that standard error is closed.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }
}

/// Prints lines. A reader that has gone is an error, not a panic.
pub fn print(text: impl AsRef<str>) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// A path in JSON, which is UTF-8: what is not, is shown as by `display()`.
pub fn path<S: Serializer>(path: &impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.as_ref().display())
}

/// Prints a value as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string_pretty(value).context("cannot make JSON")?)
}

/// Prints a value as JSON in one line.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string(value).context("cannot make JSON")?)
}
