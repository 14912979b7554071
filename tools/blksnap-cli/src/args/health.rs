// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap check-health`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueHint};

use crate::health::bounds::{Age, Bounds, Room};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap check-health /backup/nightly\n  \
    blksnap check-health /backup/nightly --max-age 26h,2d --min-free 200G,50G --max-verify-age 35d\n  \
    blksnap check-health /backup/nightly --metrics /var/lib/prometheus/node-exporter/blksnap.prom\n  \
    blksnap check-health /backup/nightly --json | jq -r '.findings[] | select(.level != \"ok\") | .text'\n\n\
    For Nagios, Icinga and what understands their plugins: one line with the worst that was found and figures, then all that \
    was looked at. The exit code is 0 if all is well, 1 for a warning, 2 if something is critical, 3 if it cannot be \
    found out.\n\n\
    Without DIR, only the module and its snapshots are looked at.")]
pub struct CheckHealth {
    /// Directories of backups
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub directories: Vec<PathBuf>,
    /// Warn if the last backup is older than this (1y2m3d4h: years, months, days, hours); from the second one on,
    /// it is critical
    #[arg(long, value_name = "WARN[,CRIT]", default_value = "26h,50h")]
    pub max_age: Bounds<Age>,
    /// The same for the last time that all backups were verified [default: that need not be]
    #[arg(long, value_name = "WARN[,CRIT]")]
    pub max_verify_age: Option<Bounds<Age>>,
    /// Warn if the file system of the directory has less free room than this, a size or a part (10%); below the second
    /// one, it is critical
    #[arg(long, value_name = "WARN[,CRIT]", default_value = "10%,3%")]
    pub min_free: Bounds<Room>,
    /// Print all that was found as JSON; the exit code is the same
    #[arg(long)]
    pub json: bool,
    /// Do not look for the module: on a machine that only keeps backups
    #[arg(long)]
    pub no_module: bool,
    /// Write what was found to this file, for the textfile collector of Prometheus' node_exporter; it is replaced
    /// as a whole
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metrics: Option<PathBuf>,
}
