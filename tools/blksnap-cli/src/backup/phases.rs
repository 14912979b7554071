// SPDX-License-Identifier: GPL-2.0-or-later

//! How far a backup has come: all of its devices together, from the take to the end.
//!
//! What will be read is known when all devices are planned ([`Phases::plan`]); each piece of work then
//! says again what it does ([`Watch::expect`]), and what is more than was planned is added. So the
//! total grows only by what nobody could know. A person at a terminal sees a bar; a program that has
//! asked for it gets lines of JSON on standard error, one a second and one at each new phase.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use blksnap_backup::Watch;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use crate::output;
use crate::progress::{line, style};
use crate::rate::Pace;
use crate::signals::Signals;

/// Time between two lines of JSON.
const BETWEEN: Duration = Duration::from_secs(1);

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// A bar, if standard error is a terminal
    #[default]
    Auto,
    /// Lines of JSON on standard error
    Json,
    /// Nothing
    None,
}

/// What a backup does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The snapshot is made and taken.
    Taking,
    /// An image is read, and what is wanted of it stored.
    Reading,
    /// An image is compared with the last backup, or with the new one.
    Comparing,
    /// All is written back, and the backup made one.
    Closing,
}

/// A line of JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    phase: Phase,
    what: &'a str,
    bytes_done: u64,
    bytes_total: u64,
    bytes_per_second: u64,
    seconds_left: Option<u64>,
}

/// The progress of a backup.
pub struct Phases<'a> {
    signals: &'a Signals,
    /// That of all reading.
    pace: Pace,
    shown: Shown,
    bar: ProgressBar,
    /// Bytes that were planned, and that no piece of work has named yet.
    planned: AtomicU64,
    /// When the last line of JSON was written. Nothing else is locked under it.
    last: Mutex<Instant>,
}

impl<'a> Phases<'a> {
    /// Before anything is done.
    pub fn new(shown: Shown, pace: Pace, signals: &'a Signals) -> Self {
        let bar = shown == Shown::Auto && std::io::stderr().is_terminal() && !output::is_quiet();
        let target = match bar {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self::draw_to(target, shown, pace, signals)
    }

    fn draw_to(target: ProgressDrawTarget, shown: Shown, pace: Pace, signals: &'a Signals) -> Self {
        let bar = style(ProgressBar::with_draw_target(Some(0), target));
        Self {
            signals,
            pace,
            shown,
            bar,
            planned: AtomicU64::new(0),
            last: Mutex::new(Instant::now()),
        }
    }

    /// So many bytes will be read, later.
    pub fn plan(&self, bytes: u64) {
        self.planned.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc_length(bytes);
    }

    /// Begins a piece of work: `what` is such as "copying /dev/vda".
    pub fn begin(&self, phase: Phase, what: impl Into<String>) -> Piece<'_> {
        let piece = Piece {
            phases: self,
            phase,
            what: what.into(),
            done: AtomicU64::new(0),
            start: Instant::now(),
        };
        self.bar.set_message(piece.what.clone());
        self.bar.tick();
        self.write(&piece);
        piece
    }

    /// Writes a line of JSON, if such are wanted.
    fn write(&self, piece: &Piece<'_>) {
        if self.shown != Shown::Json {
            return;
        }
        let rate = self.bar.per_sec() as u64;
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let line = Line {
            phase: piece.phase,
            what: &piece.what,
            bytes_done: done,
            bytes_total: total,
            bytes_per_second: rate,
            seconds_left: total.saturating_sub(done).checked_div(rate),
        };
        // Nobody can be told that standard error is closed.
        let mut err = std::io::stderr().lock();
        let _ = serde_json::to_writer(&mut err, &line);
        let _ = err.write_all(b"\n");
    }
}

impl Drop for Phases<'_> {
    /// Work that fails leaves no half bar before the message.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A piece of work of a backup.
pub struct Piece<'a> {
    phases: &'a Phases<'a>,
    phase: Phase,
    what: String,
    done: AtomicU64,
    start: Instant,
}

impl Piece<'_> {
    /// It is done. Gives the seconds it took.
    pub fn finish(self) -> f64 {
        let seconds = self.start.elapsed().as_secs_f64();
        let done = self.done.load(Ordering::Relaxed);
        if done > 0 {
            self.phases.bar.println(line(&self.what, done, seconds));
        }
        seconds
    }
}

impl Watch for Piece<'_> {
    fn check(&self) -> Result<()> {
        Ok(self.phases.pace.wait(self.phases.signals)?)
    }

    fn expect(&self, bytes: u64) {
        let take = |planned: u64| Some(planned.saturating_sub(bytes));
        let planned = &self.phases.planned;
        // The closure always gives a number.
        let before = planned
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .unwrap_or(0);
        self.phases.bar.inc_length(bytes.saturating_sub(before));
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.phases.pace.read(bytes);
        self.phases.bar.inc(bytes);
        // Who panicked while holding it has left a time all the same.
        let mut last = self
            .phases
            .last
            .lock()
            .unwrap_or_else(|bad| bad.into_inner());
        if last.elapsed() >= BETWEEN {
            *last = Instant::now();
            drop(last);
            self.phases.write(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    #[test]
    fn what_was_planned_is_not_counted_twice() {
        let term = InMemoryTerm::new(10, 100);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let signals = Signals::catch().unwrap();
        let phases = Phases::draw_to(target, Shown::Auto, Pace::new(None), &signals);
        let taking = phases.begin(Phase::Taking, "taking");
        assert!(taking.finish() >= 0.0);
        assert_eq!(term.contents().lines().count(), 1, "nothing was read");
        phases.plan(100 << 20);
        phases.plan(60 << 20);
        let piece = phases.begin(Phase::Reading, "copying x");
        piece.expect(100 << 20);
        piece.advance(40 << 20);
        assert_eq!(phases.bar.length(), Some(160 << 20));
        phases.bar.force_draw();
        let shown = term.contents();
        assert!(
            shown.starts_with("copying x [=") && shown.contains("25%"),
            "{shown}"
        );
        piece.advance(60 << 20);
        piece.finish();
        assert!(term.contents().starts_with("copying x: 100.0 MiB in "));
        // More than was planned: the total grows by the rest.
        let piece = phases.begin(Phase::Comparing, "comparing");
        piece.expect(70 << 20);
        assert_eq!(phases.bar.length(), Some(170 << 20));
        piece.expect(5 << 20);
        assert_eq!(phases.bar.length(), Some(175 << 20));
        drop(piece);
        drop(phases);
        assert_eq!(term.contents().lines().count(), 1);
    }
}
