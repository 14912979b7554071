// SPDX-License-Identifier: GPL-2.0-or-later

//! Progress on standard error, for a person at a terminal: a moving bar with the rate and the time
//! that is left, and a line at the end. Nothing elsewhere, or if `--quiet` was given.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use blksnap_backup::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;
use crate::rate::Pace;
use crate::signals::Signals;
use crate::size::Size;

/// How the bar looks. No colours: nothing here is more important than the rest.
const STYLE: &str = "{msg} [{wide_bar}] {percent}% {binary_bytes_per_sec} {eta} left";

/// A bar that looks so.
pub fn style(bar: ProgressBar) -> ProgressBar {
    // The template is known to be good; the default look would do as well.
    if let Ok(style) = ProgressStyle::with_template(STYLE) {
        bar.set_style(style.progress_chars("=> "));
    }
    // The rate goes down while nothing comes, also when no piece of work ends.
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// What is said of work that is done.
pub fn line(what: &str, bytes: u64, seconds: f64) -> String {
    let rate = Size((bytes as f64 / seconds.max(0.001)) as u64);
    format!("{what}: {} in {seconds:.1} s, {rate}/s", Size(bytes))
}

/// The progress of one piece of work of a known number of bytes.
pub struct Progress<'a> {
    signals: &'a Signals,
    pace: Option<&'a Pace>,
    what: String,
    bar: ProgressBar,
    done: AtomicU64,
    start: Instant,
}

impl<'a> Progress<'a> {
    /// Begins: `what` is such as "copying /dev/vda".
    pub fn start(what: impl Into<String>, bytes: u64, signals: &'a Signals) -> Self {
        let shown = std::io::stderr().is_terminal() && !output::is_quiet();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self::draw_to(target, what.into(), bytes, signals)
    }

    /// Begins, and shows it there.
    fn draw_to(target: ProgressDrawTarget, what: String, bytes: u64, signals: &'a Signals) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(what.clone());
        let bar = style(bar);
        Self {
            signals,
            pace: None,
            what,
            bar,
            done: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// The same, at a pace that others may have part in.
    pub fn at(mut self, pace: &'a Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    /// All is done. Gives the seconds it took.
    pub fn finish(self) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        let done = self.done.load(Ordering::Relaxed);
        self.bar.println(line(&self.what, done, seconds));
        self.bar.finish_and_clear();
        seconds
    }
}

impl Watch for Progress<'_> {
    fn check(&self) -> Result<()> {
        match self.pace {
            Some(pace) => Ok(pace.wait(self.signals)?),
            None => Ok(self.signals.check()?),
        }
    }

    fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.pace.iter().for_each(|pace| pace.read(bytes));
        self.bar.inc(bytes);
    }
}

impl Drop for Progress<'_> {
    /// Work that fails leaves no half bar before the message.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    use super::*;

    fn progress(bytes: u64) -> (InMemoryTerm, Progress<'static>) {
        let term = InMemoryTerm::new(10, 100);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let signals = Box::leak(Box::new(Signals::catch().unwrap()));
        let progress = Progress::draw_to(target, "copying x".into(), bytes, signals);
        (term, progress)
    }

    #[test]
    fn a_bar_tells_rate_and_time_and_goes_away() {
        let (term, progress) = progress(4 << 20);
        progress.advance(1 << 20);
        progress.bar.force_draw();
        let shown = term.contents();
        assert!(shown.starts_with("copying x [="), "{shown}");
        assert!(shown.contains("25%") && shown.contains("/s"), "{shown}");
        assert!(shown.ends_with("left"), "{shown}");
        progress.advance(3 << 20);
        progress.finish();
        let shown = term.contents();
        assert!(shown.starts_with("copying x: 4.00 MiB in "), "{shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }

    #[test]
    fn work_that_fails_leaves_no_bar() {
        let (term, progress) = progress(100);
        progress.advance(10);
        drop(progress);
        assert_eq!(term.contents(), "");
    }

    #[test]
    fn nothing_to_do_is_done() {
        let (_, progress) = progress(0);
        assert!(progress.finish() >= 0.0);
    }
}
