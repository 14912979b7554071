// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap check-health`: what a person would look at each morning, for a program that does it each minute.
//!
//! Nothing is changed, but for the file of metrics. Whatever cannot be found out is a finding as well, so
//! that all the rest is told.

pub mod bounds;
mod directory;
mod metrics;
mod snapshots;

use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use crate::args::CheckHealth;
use crate::output;
use metrics::Metrics;

/// How bad something is, as plugins of Nagios tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    #[default]
    Ok,
    /// It cannot be found out.
    Unknown,
    /// Somebody should look after it.
    Warning,
    /// Somebody must.
    Critical,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Unknown => "UNKNOWN",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }

    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }
}

/// Something that was looked at.
#[derive(Serialize)]
struct Finding {
    level: Level,
    /// Of which directory of backups, if of one.
    directory: Option<String>,
    text: String,
}

impl Finding {
    /// In one line.
    fn line(&self) -> String {
        let directory = self.directory.as_ref();
        let directory = directory.map_or(String::new(), |one| format!("{one}: "));
        one_line(&(directory + &self.text))
    }
}

/// All that was found.
#[derive(Default)]
pub struct Found {
    findings: Vec<Finding>,
    /// `'label'=value;warn;crit`, as plugins of Nagios have it.
    figures: Vec<String>,
    metrics: Metrics,
}

/// The same, for programs.
#[derive(Serialize)]
struct Report<'a> {
    level: Level,
    exit_code: u8,
    unix_s: i64,
    findings: &'a [Finding],
    metrics: &'a Metrics,
}

impl Found {
    /// Adds a finding that is of no directory.
    fn add(&mut self, level: Level, text: impl Into<String>) {
        self.findings.push(Finding {
            level,
            directory: None,
            text: text.into(),
        });
    }

    /// Adds one of a directory.
    fn add_of(&mut self, directory: &str, level: Level, text: impl Into<String>) {
        self.findings.push(Finding {
            level,
            directory: Some(directory.to_owned()),
            text: text.into(),
        });
    }

    /// The worst of all.
    fn level(&self) -> Level {
        let levels = self.findings.iter().map(|one| one.level);
        levels.max().unwrap_or_default()
    }

    /// One line with the worst, and one for each finding.
    fn text(&self) -> String {
        let level = self.level();
        let worst = self.findings.iter().filter(|one| one.level == level);
        let worst: Vec<_> = worst.map(Finding::line).collect();
        let mut lines = vec![format!(
            "BLKSNAP {}: {} | {}",
            level.name(),
            worst.join("; "),
            self.figures.join(" ")
        )];
        let all = self.findings.iter();
        lines.extend(all.map(|one| format!("[{}] {}", one.level.name(), one.line())));
        lines.join("\n")
    }

    /// All of it, for programs.
    fn report(&self, now: Timestamp) -> Report<'_> {
        let level = self.level();
        Report {
            level,
            exit_code: level.code(),
            unix_s: now.as_second(),
            findings: &self.findings,
            metrics: &self.metrics,
        }
    }
}

/// What would end the line, or begin the figures, is something else.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "/")
}

/// Looks at all that was asked for.
pub fn run(args: &CheckHealth) -> ExitCode {
    let now = Timestamp::now();
    let mut found = Found::default();
    if !args.no_module {
        snapshots::look(&mut found);
    }
    for path in &args.directories {
        directory::look(path, args, now, &mut found);
    }
    if found.findings.is_empty() {
        found.add(
            Level::Unknown,
            "nothing was to be looked at: name a directory",
        );
    }
    if let Some(path) = &args.metrics {
        let mut metrics = found.metrics.clone();
        metrics.finish(found.level(), now);
        if let Err(error) = metrics.write(path) {
            found.add(Level::Unknown, format!("{error:#}"));
        }
    }
    // Who does not read it has the exit code.
    let _ = match args.json {
        true => output::print_json(&found.report(now)),
        false => output::print(found.text()),
    };
    ExitCode::from(found.level().code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_is_the_exit_code() {
        let mut found = Found::default();
        assert_eq!(found.level().code(), 0);
        found.add(Level::Ok, "good");
        assert!(found.text().starts_with("BLKSNAP OK: good | "));
        found.add(Level::Unknown, "unknown");
        assert_eq!(found.level().code(), 3);
        found.add(Level::Warning, "a | b\nc");
        assert_eq!(found.level().code(), 1);
        found.add(Level::Critical, "bad");
        found.add(Level::Critical, "worse");
        found.figures.push("'age'=3s;4;5".into());
        assert_eq!(found.level().code(), 2);
        let text = found.text();
        let mut lines = text.lines();
        let first = lines.next().unwrap();
        assert_eq!(first, "BLKSNAP CRITICAL: bad; worse | 'age'=3s;4;5");
        assert!(lines.any(|line| line == "[WARNING] a / b c"), "{text}");
    }

    #[test]
    fn a_program_gets_the_same() {
        let now = Timestamp::from_second(7).unwrap();
        let mut found = Found::default();
        found.add(Level::Ok, "the module");
        found.add_of("/b", Level::Warning, "a | b\nc");
        found.metrics.add("module_loaded", "Whether.", 1);
        let of = |directory| ("directory", directory);
        found.metrics.add_of("backups", "How many.", of("/b"), 3);
        found.metrics.add_of("backups", "How many.", of("/c"), 0);
        assert!(found.text().starts_with("BLKSNAP WARNING: /b: a / b c | "));
        assert_eq!(
            serde_json::to_value(found.report(now)).unwrap(),
            serde_json::json!({
                "level": "warning", "exit_code": 1, "unix_s": 7,
                "findings": [
                    {"level": "ok", "directory": null, "text": "the module"},
                    {"level": "warning", "directory": "/b", "text": "a | b\nc"}
                ],
                "metrics": {"module_loaded": 1, "backups": {"/b": 3, "/c": 0}}
            })
        );
    }
}
