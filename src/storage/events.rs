// SPDX-License-Identifier: GPL-2.0

//! What a snapshot has to tell its client.
//!
//! The queue has room, from the start, for all events that can be waiting at one time, so that
//! telling never fails: one request for storage, and one corruption per device. The next request
//! comes when the last one was fulfilled, and takes its place if nobody has fetched that.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::bdev::DevId,
    prelude::*,
    sync::{
        new_condvar,
        new_spinlock,
        CondVar,
        CondVarTimeoutResult,
        SpinLock, //
    },
    time::{
        msecs_to_jiffies,
        timekeeping::monotonic_ns, //
    }, //
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Please append this many sectors.
    LowFreeSpace(u64),
    /// The device's image is of no use any more.
    Corrupted(DevId, Error),
}

/// What happened when.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    /// In nanoseconds, on the monotonic clock.
    pub(crate) time: i64,
    /// What.
    pub(crate) kind: Kind,
}

/// Events in order of time.
struct Queue {
    events: KVec<Event>,
    /// No event comes any more.
    closed: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<Event> {
        self.events.remove(0).ok()
    }
}

/// A queue that clients wait on.
///
/// The lock is a leaf; not taken in interrupts.
#[pin_data]
pub(crate) struct EventQueue {
    #[pin]
    queue: SpinLock<Queue>,
    #[pin]
    changed: CondVar,
}

impl EventQueue {
    /// Makes a queue for a snapshot of `devices` devices.
    pub(crate) fn new(devices: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            queue <- new_spinlock!(Queue {
                events: KVec::with_capacity(devices + 1, GFP_KERNEL)?,
                closed: false,
            }),
            changed <- new_condvar!(),
        })
    }

    /// Tells the client. Does not sleep.
    pub(crate) fn push(&self, kind: Kind) {
        let event = Event {
            time: monotonic_ns(),
            kind,
        };
        let mut queue = self.queue.lock();
        if let Kind::LowFreeSpace(_) = kind {
            let is_other = |event: &mut Event| !matches!(event.kind, Kind::LowFreeSpace(_));
            queue.events.retain(is_other);
        }
        let full = queue.events.push_within_capacity(event).is_err();
        drop(queue);
        if full {
            kernel::pr_err_once!("event queue overflow: {:?} was lost\n", kind);
        }
        self.changed.notify_all();
    }

    /// The number of events that wait. Fails with `ENODEV` when the queue has ended.
    pub(crate) fn len(&self) -> Result<usize> {
        let queue = self.queue.lock();
        if queue.closed {
            return Err(ENODEV);
        }
        Ok(queue.events.len())
    }

    /// Ends the queue: whoever waits or will wait gets `ESRCH`.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes the oldest event, and waits for one if there is none; 0 does not wait.
    ///
    /// Fails with `ENOENT` when time is up, with `EINTR` on a signal, with `ESRCH` when the queue
    /// has ended.
    pub(crate) fn wait(&self, timeout_ms: u32) -> Result<Event> {
        let mut left = msecs_to_jiffies(timeout_ms);
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return Err(ESRCH);
            }
            if let Some(event) = queue.pop() {
                return Ok(event);
            }
            if left == 0 {
                return Err(ENOENT);
            }
            left = match self.changed.wait_interruptible_timeout(&mut queue, left) {
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                // An event may have come at the last moment.
                CondVarTimeoutResult::Timeout => 0,
                CondVarTimeoutResult::Signal { .. } => {
                    return match queue.pop() {
                        Some(event) => Ok(event),
                        None => Err(EINTR),
                    };
                }
            };
        }
    }
}

#[cfg(CONFIG_BLK_SNAP_KUNIT_TEST)]
#[kunit_tests(blksnap_events)]
mod tests {
    use super::*;
    use kernel::sync::Arc;

    const DEV: DevId = DevId { major: 8, minor: 1 };

    #[test]
    fn oldest_first() -> Result {
        let queue = Arc::pin_init(EventQueue::new(1), GFP_KERNEL)?;
        assert_eq!(queue.wait(0).map(|e| e.kind), Err(ENOENT));
        assert_eq!(queue.wait(2).map(|e| e.kind), Err(ENOENT));
        queue.push(Kind::LowFreeSpace(5));
        queue.push(Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.wait(0)?.kind, Kind::LowFreeSpace(5));
        assert_eq!(queue.wait(0)?.kind, Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.wait(0).map(|e| e.kind), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn nothing_is_lost_if_nobody_fetches() -> Result {
        let queue = Arc::pin_init(EventQueue::new(1), GFP_KERNEL)?;
        for sectors in 0..10 {
            queue.push(Kind::LowFreeSpace(sectors));
        }
        queue.push(Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.wait(0)?.kind, Kind::LowFreeSpace(9));
        assert_eq!(queue.wait(0)?.kind, Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.wait(0).map(|e| e.kind), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn the_end_comes_first() -> Result {
        let queue = Arc::pin_init(EventQueue::new(1), GFP_KERNEL)?;
        queue.push(Kind::LowFreeSpace(5));
        queue.close();
        assert_eq!(queue.wait(1000).map(|e| e.kind), Err(ESRCH));
        Ok(())
    }
}
