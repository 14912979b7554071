// SPDX-License-Identifier: GPL-2.0-or-later

//! Progress on standard error: a moving bar on a terminal, a line at the start and at the end
//! elsewhere.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::size::Size;

/// The progress of one piece of work of a known number of bytes.
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    bytes: u64,
    done: u64,
    start: Instant,
}

impl Progress {
    /// Begins: `what` is such as "copying /dev/vda".
    pub fn start(what: impl Into<String>, bytes: u64) -> Self {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let style = "{msg} {wide_bar} {percent}% {binary_bytes_per_sec} {eta} left";
            let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr())
                .with_message(Cow::Owned(what.clone()));
            Some(match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            })
        } else {
            eprintln!("{what}: {}", Size(bytes));
            None
        };
        Self {
            what,
            bar,
            bytes,
            done: 0,
            start: Instant::now(),
        }
    }

    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        let tenth = |done: u64| (u128::from(done) * 10 / u128::from(self.bytes.max(1))) as u64;
        let (before, now) = (tenth(self.done), tenth(self.done + bytes));
        self.done += bytes;
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            // A log is told of every half of what is long.
            None if before < 5 && now >= 5 && self.start.elapsed().as_secs() >= 5 => {
                eprintln!("{}: {}%", self.what, now * 10);
            }
            None => {}
        }
    }

    /// All is done. Gives the seconds it took.
    pub fn finish(self) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let rate = Size((self.done as f64 / seconds.max(0.001)) as u64);
        eprintln!(
            "{}: {} in {seconds:.1} s, {rate}/s",
            self.what,
            Size(self.done)
        );
        seconds
    }
}
