// SPDX-License-Identifier: GPL-2.0-or-later

//! `blksnap status`: what is tracked, which snapshots there are, and how they are; once, or again and
//! again.

mod read;
mod table;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use blksnap::Control;

use crate::args;
use crate::output;
use crate::signals::Signals;
pub use read::{Phase, Snapshot, Status};

/// How long a sleep is: a bound on how late a signal is seen.
const PERIOD: Duration = Duration::from_millis(50);

/// Shows it.
pub fn run(args: &args::Status) -> Result<ExitCode> {
    match args.watch {
        Some(period) => watch(args, period),
        None if args.json => output::print_json(&read()?).map(|()| ExitCode::SUCCESS),
        None => output::print(text(&read()?)).map(|()| ExitCode::SUCCESS),
    }
}

/// Asks the module. The control device is not kept open: it would keep the module from being removed.
pub fn read() -> Result<Status> {
    Ok(Status::read(&Control::open()?)?)
}

/// For people.
fn text(status: &Status) -> String {
    table::table(status, SystemTime::now())
}

/// Shows it until a signal comes, which is how a watch ends: without a message.
fn watch(args: &args::Status, period: Duration) -> Result<ExitCode> {
    let signals = Signals::catch()?;
    let on_terminal = !args.json && io::stdout().is_terminal();
    let mut first = true;
    loop {
        let status = read()?;
        if args.json {
            output::print_json_line(&status)?;
        } else if on_terminal {
            output::print(redrawn(&text(&status), first, height()))?;
        } else {
            let space = if first { "" } else { "\n" };
            output::print(format!("{space}{}", text(&status)))?;
        }
        first = false;
        let next = Instant::now() + period;
        while let Some(left) = next
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            if let Err(interrupted) = signals.check() {
                return Ok(interrupted.exit_code());
            }
            std::thread::sleep(left.min(PERIOD));
        }
    }
}

/// Lines of the terminal.
fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    // Some do not know their size, and say 0.
    let rows = size.map_or(0, |size| usize::from(size.ws_row));
    if rows == 0 { 24 } else { rows.max(2) }
}

/// A text that takes the place of the one before on a terminal of so many lines, without flicker:
/// each line is written over, and what is left of the old one erased.
fn redrawn(text: &str, first: bool, height: usize) -> String {
    let clear = if first { "\x1b[2J" } else { "" };
    // One line is for the cursor.
    let lines: Vec<_> = text.lines().take(height - 1).collect();
    format!("{clear}\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrawn_text_covers_the_old_one_and_fits() {
        assert_eq!(
            redrawn("a\nb", true, 24),
            "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\x1b[J"
        );
        assert_eq!(redrawn("a\nb\nc", false, 3), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
    }
}
