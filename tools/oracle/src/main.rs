// SPDX-License-Identifier: GPL-2.0-or-later

//! An oracle for images: it knows what was written to every sector of every original and when, and
//! so what an image may hold.
//!
//! [`stamp`] makes each written sector tell its place and its write; [`journal`] says what follows
//! from the order of the writes; [`load`] writes, reads and uses images; [`world`] creates, takes
//! and destroys snapshots meanwhile. What is found wrong is shrunk: the fewest steps and originals
//! with which it still happens are looked for, and the command that repeats it is printed.

mod disk;
mod journal;
mod load;
mod stamp;
mod world;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;

use disk::Original;
use world::{Counts, World};

/// Checks every sector of images of devices that are under random load.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Repeats the steps of a run
    #[arg(long)]
    seed: Option<u64>,
    /// Steps in a run
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// Makes runs, each with the next seed, for so many seconds
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Only these of the steps, as printed by a run that was shrunk
    #[arg(long, value_delimiter = ',', value_name = "NUMBER")]
    only: Option<Vec<usize>>,
    /// Writers of the originals
    #[arg(long, default_value_t = 3)]
    writers: usize,
    /// How often a shorter list of steps is tried before it is taken to be good; 0: no shrinking
    #[arg(long, default_value_t = 2)]
    tries: usize,
    /// Where old data is stored
    #[arg(long, value_name = "DEVICE")]
    storage: String,
    /// Half of the snapshots have storage that the kernel holds, in this directory
    #[arg(long, value_name = "DIRECTORY")]
    held: Option<PathBuf>,
    /// Devices to be captured, with the nodes through which they are written: the device itself,
    /// and others on which it begins at a sector, which is less than 0 if they are parts of it. All
    /// their data is lost
    #[arg(required = true, value_name = "NODE[,NODE+SECTOR…]")]
    originals: Vec<String>,
}

impl Args {
    /// Runs some of the steps with some of the originals.
    fn run(&self, seed: u64, only: &[usize], originals: &[String]) -> Result<Counts> {
        let originals: Vec<_> = originals
            .iter()
            .map(|text| Original::parse(text))
            .collect::<Result<_>>()?;
        let steps = world::steps(seed, self.steps);
        let mut world = World::new(
            &originals,
            &self.storage,
            self.held.as_deref(),
            self.writers,
            seed,
        )?;
        let mut result = Ok(());
        for &number in only {
            let Some(&step) = steps.get(number) else {
                continue;
            };
            result = world
                .step(step)
                .with_context(|| format!("step {number}, {:?}", step.kind));
            if result.is_err() {
                break;
            }
        }
        world.end(result)
    }

    fn fails(&self, seed: u64, only: &[usize], originals: &[String]) -> bool {
        (0..self.tries).any(|_| match self.run(seed, only, originals) {
            Ok(_) => false,
            Err(error) => {
                println!(
                    "# still with {} steps, {} originals: {error:#}",
                    only.len(),
                    originals.len()
                );
                true
            }
        })
    }

    /// Leaves out what is not needed for a failure: first later and later halves, then single
    /// ones, of the steps and of the originals.
    fn shrink(&self, seed: u64, mut only: Vec<usize>) -> (Vec<usize>, Vec<String>) {
        let mut originals = self.originals.clone();
        for at in (0..originals.len()).rev() {
            let mut fewer = originals.clone();
            fewer.remove(at);
            if !fewer.is_empty() && self.fails(seed, &only, &fewer) {
                originals = fewer;
            }
        }
        let mut part = only.len() / 2;
        while part > 0 {
            let mut at = 0;
            while at < only.len() {
                let mut fewer = only.clone();
                fewer.drain(at..(at + part).min(only.len()));
                if self.fails(seed, &fewer, &originals) {
                    only = fewer;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        (only, originals)
    }

    fn check(&self, seed: u64) -> Result<Counts> {
        let all: Vec<_> = (0..self.steps).collect();
        let only = self.only.clone().unwrap_or(all);
        println!("# seed {seed}");
        let result = self.run(seed, &only, &self.originals);
        if let Err(error) = &result {
            println!("# {error:#}");
            if self.tries > 0 && self.only.is_none() {
                let (only, originals) = self.shrink(seed, only);
                let only: Vec<_> = only.iter().map(usize::to_string).collect();
                println!(
                    "# shrunk: --seed {seed} --steps {} --only {} --storage {} {}",
                    self.steps,
                    only.join(","),
                    self.storage,
                    originals.join(" ")
                );
            }
        }
        result
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut seed = args.seed.unwrap_or_else(|| fastrand::u64(..) >> 1);
    let end = args
        .time
        .map(|time| Instant::now() + Duration::from_secs(time));
    loop {
        let counts = args.check(seed)?;
        println!("# {counts:?}");
        if end.is_none_or(|end| Instant::now() >= end) {
            return Ok(());
        }
        seed += 1;
    }
}
