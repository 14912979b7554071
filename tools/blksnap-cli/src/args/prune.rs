// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap prune`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueHint};

use crate::prune::policy::{Count, Policy, Within};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    blksnap prune /backup --keep-last 14\n  \
    blksnap prune /backup --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run\n\n\
    A backup that any rule keeps is kept, and the newest in any case. Hours, days and so on are those of local time, and \
    count only if they have a backup; as long as there are fewer than N, the oldest backup is kept, too.\n\n\
    What a kept backup needs of dropped ones is merged into it, in place where the format allows that: little \
    more space is needed. All that is merged is read and checked first: if it is damaged, nothing is dropped. It can be interrupted at any time: the kept backups are good all the time, and the next prune \
    goes on.")]
pub struct Prune {
    /// Directory of the backups
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
    /// How many backups to keep, the newest ones
    #[arg(
        long,
        visible_alias = "keep",
        value_name = "N",
        required_unless_present_any = [
            "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within",
        ]
    )]
    pub keep_last: Option<Count>,
    /// Keep the newest backup of each hour, of so many hours that have one (or `unlimited`)
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<Count>,
    /// Of each day
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<Count>,
    /// Of each week, from Monday
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<Count>,
    /// Of each month
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<Count>,
    /// Of each year
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<Count>,
    /// Keep all that are not so much older than the newest: 2y5m7d3h (years, months, days, hours)
    #[arg(long, value_name = "DURATION")]
    pub keep_within: Option<Within>,
    /// Drop also the last backup of this device; otherwise that is kept
    #[arg(long, value_name = "DEV")]
    pub forget: Vec<String>,
    /// Only say what would be done, and which rules keep a backup, after reading and checking what
    /// would be merged
    #[arg(long)]
    pub dry_run: bool,
    /// Before anything is dropped, read and check all that the kept backups need, not only what is
    /// merged
    #[arg(long)]
    pub verify: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl Prune {
    /// The rules by which backups are kept.
    pub fn policy(&self) -> Policy {
        Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
        }
    }
}
