// SPDX-License-Identifier: MIT OR Apache-2.0

//! Holds a snapshot of each device in one event loop until standard input ends, and tells what
//! happens to them:
//!
//! ```text
//! event_loop STORAGE-DIRECTORY DEVICE…
//! ```
//!
//! Exits with 1 if a snapshot was lost.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;

use blksnap::{DevId, Session, SessionOptions};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

/// What the event loop says of standard input; sessions have their places in the list.
const STDIN: u64 = u64::MAX;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let storage = arguments.next().ok_or("name a directory for storage")?;
    let mut sessions = Vec::new();
    for name in arguments {
        let options = SessionOptions {
            limit: Some(16 << 20),
            ..SessionOptions::in_directory(&storage)
        };
        // These block. A program that is in its loop already does them on another thread.
        let mut session = Session::create(&[DevId::resolve(&name)?], options)?;
        session.take()?;
        println!("{name} {}", session.images()[0].path.display());
        sessions.push((name, session));
    }

    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let add = |fd: &dyn AsFd, place| {
        let data = epoll::EventData::new_u64(place);
        epoll::add(&poll, fd.as_fd(), data, epoll::EventFlags::IN)
    };
    for (place, (_, session)) in (0..).zip(&sessions) {
        add(session, place)?;
    }
    let stdin = std::io::stdin();
    add(&stdin, STDIN)?;

    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                STDIN => return finish(sessions),
                place => {
                    let (name, session) = &sessions[usize::try_from(place)?];
                    while let Some(event) = session.next_event() {
                        println!("{name}: {event}");
                    }
                }
            }
        }
    }
}

/// Ends all sessions.
fn finish(sessions: Vec<(String, Session)>) -> Result<ExitCode, Box<dyn Error>> {
    let mut lost = 0;
    for (_, session) in sessions {
        lost += u8::from(session.check().is_err());
        session.destroy()?;
    }
    Ok(ExitCode::from(lost.min(1)))
}
