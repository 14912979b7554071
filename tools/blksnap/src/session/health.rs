// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the snapshot of a session is, and the news of it for those who wait.
//!
//! The feeder tells; the session's user asks, waits, or polls. A descriptor (eventfd(2)) can be
//! read exactly as long as there is news that nobody has fetched, so it fits in any event loop.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::feeder::lock;
use crate::error::{Error, Result};
use crate::id::{DevId, SnapshotId};

/// What a session has to say. It feeds its snapshot by itself: this is what it can't do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Storage was asked for and could not be given, for this reason. The snapshot is good as long
    /// as what it has is enough.
    Trouble(String),
    /// The image of a device is lost.
    Corrupted {
        /// The original device.
        device: DevId,
        /// Why.
        errno: Errno,
    },
    /// Somebody else has destroyed the snapshot.
    Gone,
}

impl fmt::Display for SessionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trouble(why) => write!(f, "no more storage: {why}"),
            Self::Corrupted { device, errno } => {
                write!(f, "the snapshot of {} is lost: {errno}", device.describe())
            }
            Self::Gone => f.write_str("the snapshot was destroyed by somebody else"),
        }
    }
}

/// How a snapshot is.
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<State>,
    /// Told at each event.
    changed: Condvar,
    /// Readable while there is news.
    ready: OwnedFd,
}

/// What is known.
#[derive(Debug, Default)]
struct State {
    /// The first loss; it is never forgotten.
    corrupted: Option<(DevId, Errno)>,
    gone: bool,
    /// The last trouble: the one that matters when storage was lacking.
    trouble: Option<String>,
    /// What nobody has fetched. Bounded: one loss a device, and a trouble in a row replaces the one
    /// before.
    news: VecDeque<SessionEvent>,
}

impl State {
    fn is_good(&self) -> bool {
        self.corrupted.is_none() && !self.gone
    }
}

impl Health {
    /// That of a new snapshot.
    pub(super) fn new() -> Result<Self> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::file("make an eventfd for", "/dev/blksnap", errno))?;
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            ready,
        })
    }

    /// Notes what has happened.
    pub(super) fn tell(&self, event: SessionEvent) {
        let mut state = lock(&self.state);
        match &event {
            SessionEvent::Trouble(why) => {
                state.trouble = Some(why.clone());
                if let Some(SessionEvent::Trouble(_)) = state.news.back() {
                    state.news.pop_back();
                }
            }
            &SessionEvent::Corrupted { device, errno } => {
                state.corrupted.get_or_insert((device, errno));
            }
            SessionEvent::Gone => state.gone = true,
        }
        state.news.push_back(event);
        // It can't overflow: what is written is taken away with the last of the news.
        let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
        self.changed.notify_all();
    }

    /// Takes the oldest event out of what is locked.
    fn pop(&self, state: &mut MutexGuard<'_, State>) -> Option<SessionEvent> {
        let event = state.news.pop_front();
        if state.news.is_empty() {
            // Fails when it is empty already.
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        }
        event
    }

    /// Fetches the oldest event.
    pub(super) fn next(&self) -> Option<SessionEvent> {
        self.pop(&mut lock(&self.state))
    }

    /// Fetches the oldest event; waits for one.
    pub(super) fn wait(&self, timeout: Duration) -> Option<SessionEvent> {
        let state = lock(&self.state);
        let nothing = |state: &mut State| state.news.is_empty();
        let waited = self.changed.wait_timeout_while(state, timeout, nothing);
        let (mut state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        self.pop(&mut state)
    }

    /// Fails if the snapshot is lost; waits so long for bad news.
    pub(super) fn check(&self, id: SnapshotId, patience: Duration) -> Result<()> {
        let state = lock(&self.state);
        let good = |state: &mut State| state.is_good();
        let waited = self.changed.wait_timeout_while(state, patience, good);
        let (state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        match state.corrupted {
            Some((device, errno)) => Err(Error::Corrupted {
                device,
                errno,
                trouble: state.trouble.clone(),
            }),
            None if state.gone => Err(Error::Gone(id)),
            None => Ok(()),
        }
    }

    /// The last trouble.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble.clone()
    }
}

impl AsFd for Health {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    const DEVICE: DevId = DevId { major: 8, minor: 1 };
    const LOST: SessionEvent = SessionEvent::Corrupted {
        device: DEVICE,
        errno: Errno::NOSPC,
    };

    fn id() -> SnapshotId {
        SnapshotId(uuid::Uuid::from_u128(7))
    }

    fn readable(health: &Health) -> bool {
        let now = Timespec::default();
        poll(&mut [PollFd::new(health, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_while_there_is_news() {
        let health = Health::new().unwrap();
        assert!(!readable(&health));
        assert_eq!(health.next(), None);
        let trouble = |why: &str| SessionEvent::Trouble(why.into());
        health.tell(trouble("first"));
        health.tell(trouble("second"));
        health.tell(LOST);
        assert!(readable(&health));
        assert_eq!(health.next(), Some(trouble("second")));
        assert!(readable(&health));
        assert_eq!(health.wait(Duration::ZERO), Some(LOST));
        assert!(!readable(&health));
        assert_eq!(health.wait(Duration::from_millis(1)), None);
        health.tell(SessionEvent::Gone);
        assert!(readable(&health));
    }

    #[test]
    fn a_loss_is_remembered_after_its_event_was_fetched() {
        let health = Health::new().unwrap();
        let check = || health.check(id(), Duration::ZERO);
        health.tell(SessionEvent::Trouble(
            "the limit of 1 MiB is reached".into(),
        ));
        check().unwrap();
        health.tell(LOST);
        while health.next().is_some() {}
        let error = check().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOSPC));
        assert!(error.to_string().contains("the limit of 1 MiB"), "{error}");
    }

    #[test]
    fn a_snapshot_that_has_gone_is_lost() {
        let health = Health::new().unwrap();
        health.tell(SessionEvent::Gone);
        let error = health.check(id(), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("somebody else"), "{error}");
    }

    #[test]
    fn who_waits_is_woken() {
        let health = Health::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| health.wait(Duration::from_secs(60)));
            let checking = scope.spawn(|| health.check(id(), Duration::from_secs(60)));
            health.tell(LOST);
            assert_eq!(waiting.join().unwrap(), Some(LOST));
            assert!(checking.join().unwrap().is_err());
        });
    }
}
