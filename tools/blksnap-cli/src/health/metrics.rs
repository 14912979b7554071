// SPDX-License-Identifier: GPL-2.0-or-later

//! Metrics for the textfile collector of Prometheus' node_exporter. Their names are documented in
//! `blksnap-backup.rst`, and stay.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::Level;

/// What begins all names.
const PREFIX: &str = "blksnap";

/// All of them, by name.
#[derive(Clone, Default)]
pub struct Metrics(BTreeMap<&'static str, Metric>);

/// One of them.
#[derive(Clone)]
struct Metric {
    help: &'static str,
    /// A label with its value, if there are several of this name, and the number.
    samples: Vec<(Option<(&'static str, String)>, u64)>,
}

impl Metrics {
    /// Adds one of which there is only one.
    pub fn add(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.insert(name, help, None, value);
    }

    /// Adds one of a thing, of which there are several.
    pub fn add_of(
        &mut self,
        name: &'static str,
        help: &'static str,
        (label, of): (&'static str, &str),
        value: u64,
    ) {
        self.insert(name, help, Some((label, of.to_owned())), value);
    }

    fn insert(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, String)>,
        value: u64,
    ) {
        let samples = Vec::new();
        let metric = self.0.entry(name).or_insert(Metric { help, samples });
        // A directory may be named twice.
        metric.samples.retain(|(known, _)| *known != label);
        metric.samples.push((label, value));
    }

    /// Adds what is known at the end.
    pub fn finish(&mut self, level: Level, now: Timestamp) {
        let help = "What blksnap check-health has found: 0 ok, 1 warning, 2 critical, 3 unknown.";
        self.add("health_status", help, level.code().into());
        let help = "When blksnap check-health has written this, in seconds since 1970.";
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        self.add("health_timestamp_seconds", help, seconds);
    }

    /// As Prometheus reads them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, metric) in &self.0 {
            // Nothing fails that is written to a string.
            let _ = writeln!(text, "# HELP {PREFIX}_{name} {}", metric.help);
            let _ = writeln!(text, "# TYPE {PREFIX}_{name} gauge");
            for (label, value) in &metric.samples {
                let label = label.as_ref().map_or(String::new(), |(label, of)| {
                    format!("{{{label}=\"{}\"}}", escaped(of))
                });
                let _ = writeln!(text, "{PREFIX}_{name}{label} {value}");
            }
        }
        text
    }

    /// Replaces a file as a whole. All may read it, as the collector is not root.
    pub fn write(&self, path: &Path) -> Result<()> {
        // The collector reads all that ends with .prom.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(self.text().as_bytes())?;
            file.sync_data()?;
            fs::rename(&new, path)
        };
        write()
            .inspect_err(|_| drop(fs::remove_file(&new)))
            .with_context(|| format!("cannot write the metrics to {}", path.display()))
    }
}

/// For programs: a number, or an object with one for each thing of which there are several.
impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.samples.as_slice() {
            [(None, value)] => serializer.serialize_u64(*value),
            samples => serializer.collect_map(samples.iter().map(|(label, value)| {
                let of = label.as_ref().map_or("", |(_, of)| of);
                (of, value)
            })),
        }
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_written_as_prometheus_reads_them() {
        let mut metrics = Metrics::default();
        metrics.add("snapshots", "How many.", 2);
        metrics.add_of("free_bytes", "Room.", ("directory", "/a\"b\\c\n"), 7);
        metrics.add_of("free_bytes", "Room.", ("directory", "/d"), 9);
        metrics.add_of("free_bytes", "Room.", ("directory", "/d"), 8);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blksnap.prom");
        fs::write(&path, "old").unwrap();
        metrics.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "# HELP blksnap_free_bytes Room.\n# TYPE blksnap_free_bytes gauge\n\
             blksnap_free_bytes{directory=\"/a\\\"b\\\\c\\n\"} 7\nblksnap_free_bytes{directory=\"/d\"} 8\n\
             # HELP blksnap_snapshots How many.\n# TYPE blksnap_snapshots gauge\nblksnap_snapshots 2\n"
        );
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "nothing else is left");
        assert!(metrics.write(&dir.path().join("none/x.prom")).is_err());
    }
}
