// SPDX-License-Identifier: GPL-2.0

//! What a snapshot has to tell its client.
//!
//! The client fetches events from the [queue](EventQueue) by a command. News is also announced in
//! sysfs and by uevents; but that may sleep, and those who push events may not, so they only
//! [ask for it](Announce).
//!
//! The queue has room, from the start, for all events that can wait at one time: one about the
//! storage, and one corruption per device. So pushing never fails. About the storage, a client that
//! gives it is asked for more: the next request comes when the last one was fulfilled, and replaces
//! it if nobody has fetched it. Others are told once that there will be no more.

use kernel::{
    alloc::flags::GFP_KERNEL,
    block::bdev::DevId,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        new_condvar,
        new_spinlock,
        Arc,
        ArcBorrow,
        CondVar,
        CondVarTimeoutResult,
        SpinLock, //
    },
    time::{
        msecs_to_jiffies,
        ClockSource,
        Monotonic, //
    }, //
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Please append this many sectors.
    LowFreeSpace(u64),
    /// There will be no more than this many sectors.
    NoSpace(u64),
    /// The device's image is lost.
    Corrupted(DevId, Error),
}

/// The number of kinds.
const KINDS: usize = 3;

/// What each kind is called in announcements.
const NAMES: [&CStr; KINDS] = [
    c"BLKSNAP_EVENT=low_free_space",
    c"BLKSNAP_EVENT=no_space",
    c"BLKSNAP_EVENT=corrupted",
];

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

/// Who announces the news of queues, where that may sleep.
pub(crate) trait Announce: Send + Sync {
    /// A queue has news, see [`EventQueue::take_news`]; or the last write has ended for which
    /// [news had to wait](super::health::Health::tell_lost). Does not sleep; also called in
    /// interrupts.
    fn announce(self: ArcBorrow<'_, Self>);
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
    /// There is an event of each kind that is to be announced.
    news: [Atomic<bool>; KINDS],
    announcer: Arc<dyn Announce>,
}

impl EventQueue {
    /// Makes a queue for a snapshot of `devices` devices.
    ///
    /// More can come, see [`make_room`](Self::make_room).
    pub(crate) fn new(devices: usize, announcer: Arc<dyn Announce>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            queue <- new_spinlock!(Queue {
                events: KVec::with_capacity(devices + 1, GFP_KERNEL)?,
                closed: false,
            }),
            changed <- new_condvar!(),
            news: [const { Atomic::new(false) }; KINDS],
            announcer,
        })
    }

    /// Has the news announced. Does not sleep; callable in interrupts.
    pub(crate) fn announce(&self) {
        self.announcer.as_arc_borrow().announce();
    }

    /// The announcements of the kinds of which events have come since the last call.
    pub(crate) fn take_news(&self) -> impl Iterator<Item = &'static CStr> + '_ {
        let news = self.news.iter().zip(NAMES);
        news.filter_map(|(news, name)| news.xchg(false, Full).then_some(name))
    }

    /// Makes room for the events of a snapshot of `devices` devices, not less than before. May
    /// sleep; calls must not overlap in time.
    pub(crate) fn make_room(&self, devices: usize) -> Result {
        let mut events = KVec::with_capacity(devices + 1, GFP_KERNEL)?;
        let mut queue = self.queue.lock();
        for &event in &queue.events {
            // There is room for more than before.
            let _ = events.push_within_capacity(event);
        }
        let old = core::mem::replace(&mut queue.events, events);
        // Without the lock.
        drop(queue);
        drop(old);
        Ok(())
    }

    /// Tells the client, and has it announced. Does not sleep.
    pub(crate) fn push(&self, kind: Kind) {
        let event = Event {
            time: Monotonic::ktime_get(),
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
        let [low, no_space, corrupted] = &self.news;
        let news = match kind {
            Kind::LowFreeSpace(_) => low,
            Kind::NoSpace(_) => no_space,
            Kind::Corrupted(..) => corrupted,
        };
        // Ordered before the work that announces by its queueing.
        news.store(true, Relaxed);
        self.announce();
    }

    /// Puts an event back that was taken and could not be delivered: it is the oldest one. A newer
    /// request for storage stands for it.
    pub(crate) fn put_back(&self, event: Event) {
        let is_request = |event: &Event| matches!(event.kind, Kind::LowFreeSpace(_));
        let mut queue = self.queue.lock();
        if !is_request(&event) || !queue.events.iter().any(is_request) {
            // There is room, as there was for it before: of each device, and of requests, there is
            // one event at the most.
            let _ = queue.events.insert_within_capacity(0, event);
        }
        drop(queue);
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

    /// Ends the queue: who waits or will wait gets `ESRCH`.
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

    /// Counts what it is asked to announce.
    struct Counter(Atomic<u32>);

    impl Announce for Counter {
        fn announce(self: ArcBorrow<'_, Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// The queue of a snapshot of one device, and who announces its news.
    fn queue() -> Result<(Arc<EventQueue>, Arc<Counter>)> {
        let counter = Arc::new(Counter(Atomic::new(0)), GFP_KERNEL)?;
        let queue = Arc::pin_init(EventQueue::new(1, counter.clone()), GFP_KERNEL)?;
        Ok((queue, counter))
    }

    const DEV: DevId = DevId { major: 8, minor: 1 };

    #[test]
    fn oldest_first() -> Result {
        let (queue, _) = queue()?;
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
        let (queue, _) = queue()?;
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
    fn what_is_put_back_comes_first() -> Result {
        let (queue, _) = queue()?;
        queue.push(Kind::LowFreeSpace(5));
        queue.push(Kind::Corrupted(DEV, ENOSPC));
        let (request, loss) = (queue.wait(0)?, queue.wait(0)?);
        queue.put_back(loss);
        queue.put_back(request);
        assert_eq!(queue.len()?, 2);
        let request = queue.wait(0)?;
        assert_eq!(request.kind, Kind::LowFreeSpace(5));
        queue.push(Kind::LowFreeSpace(9));
        queue.put_back(request);
        assert_eq!(queue.wait(0)?.kind, Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.wait(0)?.kind, Kind::LowFreeSpace(9));
        assert_eq!(queue.wait(0).map(|e| e.kind), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn news_is_announced_once() -> Result {
        let (queue, counter) = queue()?;
        assert_eq!(queue.take_news().count(), 0);
        queue.push(Kind::LowFreeSpace(5));
        assert_eq!(counter.0.load(Relaxed), 1);
        queue.push(Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(counter.0.load(Relaxed), 2);
        assert!(queue.take_news().eq([NAMES[0], NAMES[2]]));
        assert_eq!(queue.take_news().count(), 0);
        queue.push(Kind::NoSpace(5));
        assert!(queue.take_news().eq([NAMES[1]]));
        Ok(())
    }

    #[test]
    fn more_room_keeps_what_waits() -> Result {
        let (queue, _) = queue()?;
        queue.push(Kind::NoSpace(5));
        queue.push(Kind::Corrupted(DEV, ENOSPC));
        queue.make_room(3)?;
        for _ in 0..2 {
            queue.push(Kind::Corrupted(DEV, EIO));
        }
        assert_eq!(queue.wait(0)?.kind, Kind::NoSpace(5));
        assert_eq!(queue.wait(0)?.kind, Kind::Corrupted(DEV, ENOSPC));
        assert_eq!(queue.len()?, 2);
        Ok(())
    }

    #[test]
    fn the_end_comes_first() -> Result {
        let (queue, _) = queue()?;
        queue.push(Kind::LowFreeSpace(5));
        queue.close();
        assert_eq!(queue.wait(1000).map(|e| e.kind), Err(ESRCH));
        Ok(())
    }
}
