// SPDX-License-Identifier: GPL-2.0

//! Deliberate delays at points where it matters what happens meanwhile: the window of a race, which
//! is microseconds long, then is milliseconds long, and tests hit it.
//!
//! Only with `CONFIG_BLK_SNAP_DELAYS`; without it nothing of this is in the module. The parameter
//! `delay_us` is the longest delay, 0 for none. `delay_points` selects the points, each by the bit
//! of its number. One pass in `delay_chance` through a selected point waits, for a random part of
//! `delay_us`. Where sleeping is not allowed it keeps the processor busy instead, for two
//! milliseconds at the most.

/// A point where to wait: up to [`Marked`](Self::Marked) without sleeping.
#[derive(Clone, Copy)]
pub(crate) enum Point {
    /// A read of old data has ended, and the engine does not know yet. In interrupts, too.
    ReadEnded = 0,
    /// A clone of an image bio has ended, and its chunks were not checked. In interrupts, too.
    ImageEnded = 1,
    /// A store of old data has ended, and the engine does not know yet. In interrupts, too.
    StoreEnded = 2,
    /// Chunks were claimed, and their reads not submitted. In the submission path, or in work.
    Claimed = 3,
    /// Old data is in memory, and the writes that wait for it were not let go. In the submission
    /// path, maybe in an RCU read side, or in work.
    InMemory = 4,
    /// The data of an image bio was found, and the bio was not sent there. In the submission path,
    /// or in work.
    Found = 5,
    /// A write was marked in the change map, and nothing else. In the submission path.
    Marked = 6,
    /// Old data has a place, and is not on its way to it. In work.
    Placed = 7,
    /// The engine knows that old data was stored, and the map does not say where. In work.
    Stored = 8,
    /// The snapshot has failed, and what was read was not given up. In work.
    GivingUp = 9,
    /// Windows of the map were replaced, and not freed. In work, or in a command.
    Replaced = 10,
    /// The image of a device was added, and does not know its instant. In a command.
    Prepared = 11,
    /// All devices are stopped, and this one was not armed. In a command, with queues frozen.
    Stopped = 12,
    /// All devices go on, and their images are not ready. In a command.
    LetGo = 13,
    /// Storage was excluded from being copied, and not appended. In a command.
    Excluded = 14,
    /// A tracker was forgotten, and not detached. In a command.
    Forgotten = 15,
    /// The storage was closed, and images and engines are there. In a command, or in unloading.
    Closed = 16,
    /// The image has gone and writes pass; the engine has I/O in flight. As above.
    Disarmed = 17,
    /// A device goes, and its image was not told. In its removal, with a mutex of the filters.
    Gone = 18,
    /// All snapshots were destroyed, and trackers are attached. In unloading.
    Unloading = 19,
}

#[cfg(CONFIG_BLK_SNAP_DELAYS)]
mod imp {
    use super::Point;
    use crate::base::params;
    use kernel::{
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::{
                fsleep,
                udelay, //
            },
            Delta, //
        }, //
    };

    /// How long the processor is kept busy at the most.
    const MAX_BUSY_US: u32 = 2000;

    /// The numbers that were drawn so far.
    static DRAWN: Atomic<u32> = Atomic::new(0);

    /// A number that is random enough.
    fn draw() -> u32 {
        let mut number = DRAWN.fetch_add(0x9e37_79b9, Relaxed);
        for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
            number = (number ^ (number >> 15)).wrapping_mul(factor);
        }
        number ^ (number >> 16)
    }

    /// Waits, if that was asked for.
    pub(crate) fn delay(point: Point) {
        let (most, points, chance) = params::delays();
        if points & (1 << point as u32) == 0 || draw().checked_rem(chance) != Some(0) {
            return;
        }
        let may_sleep = point as u32 > Point::Marked as u32;
        let most = if may_sleep {
            most
        } else {
            most.min(MAX_BUSY_US)
        };
        let Some(us) = draw().checked_rem(most) else {
            return;
        };
        let time = Delta::from_micros(i64::from(us));
        if may_sleep {
            fsleep(time);
        } else {
            udelay(time);
        }
    }
}

#[cfg(CONFIG_BLK_SNAP_DELAYS)]
pub(crate) use imp::delay;

/// Waits, if that was asked for: never.
#[cfg(not(CONFIG_BLK_SNAP_DELAYS))]
#[inline(always)]
pub(crate) const fn delay(_point: Point) {}
