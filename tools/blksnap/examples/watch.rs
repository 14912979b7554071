// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fetches and prints the events of a snapshot, which must be nobody else's to fetch, until it is
//! destroyed:
//!
//! ```text
//! watch SNAPSHOT
//! ```

use std::error::Error;
use std::time::Duration;

use blksnap::{Control, EventWatch};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

fn main() -> Result<(), Box<dyn Error>> {
    let id = std::env::args().nth(1).ok_or("name a snapshot")?.parse()?;
    let control = Control::open()?;
    let watch = EventWatch::open(id)?;
    while watch.arm()?.is_some() {
        loop {
            match control.wait_event(id, Duration::ZERO) {
                Ok(Some(event)) => println!("{:?}", event.kind),
                Ok(None) => break,
                // Destroyed meanwhile; arming tells it, too.
                Err(error) if error.errno() == Some(Errno::SRCH) => break,
                Err(error) => return Err(error.into()),
            }
        }
        poll(&mut [PollFd::new(&watch, PollFlags::PRI)], None)?;
    }
    Ok(())
}
