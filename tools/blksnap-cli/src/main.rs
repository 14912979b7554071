// SPDX-License-Identifier: GPL-2.0-or-later

//! The `blksnap` command: snapshots of block devices, backup and restore.
//!
//! [`args`] says what can be asked for; each command is a module with a `run`. Whatever a command
//! holds — a snapshot, its storage, a half-made file — is owned by a value that undoes it when it
//! is dropped, so errors and signals leave nothing behind. Exit codes: 0 done, 1 failed or wrongly
//! used, 3 done but for what is named, 128 + N ended by signal N; `check-health` has those of plugins of Nagios; `snapshot … -- COMMAND` gives the code of the command.

mod above;
mod apart;
mod args;
mod backup;
mod child;
mod disks;
mod free;
mod health;
mod hold;
mod init;
mod legacy;
mod list;
mod module;
mod mount;
mod mounts;
mod names;
mod opened;
mod output;
mod pages;
mod progress;
mod prune;
mod rate;
mod remembered;
mod restore;
mod second;
mod signals;
mod size;
mod status;
mod stdout;
mod trim;
mod used;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Command};

/// The exit code when all was done that could be, and the rest is named.
pub const INCOMPLETE: u8 = 3;

fn main() -> ExitCode {
    let args = match Args::try_parse_from(args::legacy::split_values(std::env::args_os())) {
        Ok(args) => args,
        Err(error) => {
            // A closed terminal is no reason to fail differently.
            let _ = error.print();
            return match (error.use_stderr(), std::env::args_os().nth(1)) {
                // A monitor takes 1 for a warning.
                (true, Some(name)) if name == "check-health" => {
                    ExitCode::from(health::Level::Unknown.code())
                }
                (wrong, _) => ExitCode::from(u8::from(wrong)),
            };
        }
    };
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("blksnap: {error:#}");
            if let Some(trouble) = module::trouble(&error) {
                eprintln!("blksnap: {trouble}");
            }
            let interrupted = error.downcast_ref::<signals::Interrupted>();
            interrupted.map_or(ExitCode::FAILURE, |by| by.exit_code())
        }
    }
}

/// Does what was asked for.
fn run(args: Args) -> Result<ExitCode> {
    if args.quiet {
        output::be_quiet();
    }
    match args.command {
        Command::Init(args) => init::run(&args)?,
        Command::Backup(args) => return backup::run(&args),
        Command::Restore(args) => return restore::run(&args),
        Command::Verify(args) => verify::run(&args)?,
        Command::List(args) => list::run(&args)?,
        Command::Mount(args) => mount::run(&args)?,
        Command::Prune(args) => prune::run(&args)?,
        Command::Snapshot(args) => return hold::run(&args),
        Command::Status(args) => return status::run(&args),
        Command::CheckHealth(args) => return Ok(health::run(&args)),
        Command::Completions { shell } => pages::completions(shell)?,
        Command::ThawIfAlone { paths } => above::watchdog::run(&paths)?,
        Command::Man { directory } => pages::manual(&directory)?,
        Command::Legacy(command) => legacy::run(command)?,
        Command::Second(command) => second::run(command)?,
    }
    Ok(ExitCode::SUCCESS)
}
