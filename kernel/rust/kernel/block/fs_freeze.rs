// SPDX-License-Identifier: GPL-2.0

//! Freezing the file systems on block devices.
//!
//! Freezing a file system writes its dirty data. That may take long, and never ends if the data has
//! to go to another file system that is frozen already, such as to a file behind a loop device, or
//! if the device hangs. So a worker does it, and whoever asked for it [watches](FsFreezing::wait)
//! whether it gets on, and can thaw the other one, or leave it to the worker.

use super::bdev::BdevFile;
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Completion,
        Mutex, //
    },
    time::Jiffies,
    workqueue, //
};

/// Keeps the file system on a block device frozen: its dirty data is written and no writes begin.
///
/// Without a file system there is nothing to freeze, and only the page cache of the device itself
/// was written back.
///
/// # Invariants
///
/// A `bdev_freeze()` of the device has succeeded that was not undone by us.
#[must_use]
pub struct FsFreeze(Arc<BdevFile>);

impl FsFreeze {
    fn new(file: &Arc<BdevFile>) -> Result<Self> {
        // SAFETY: The device is open.
        to_result(unsafe { bindings::bdev_freeze(file.bdev().as_raw()) })?;
        // INVARIANT: Just frozen.
        Ok(Self(file.clone()))
    }
}

impl Drop for FsFreeze {
    fn drop(&mut self) {
        // SAFETY: The device is open, and was frozen by the type invariant. The error says that
        // somebody else thawed it, which is what we want.
        let _ = unsafe { bindings::bdev_thaw(self.0.bdev().as_raw()) };
    }
}

/// How far the worker is.
enum State {
    /// It freezes.
    Freezing,
    /// It has ended.
    Ended(Result<FsFreeze>),
    /// Nobody waits for it, or somebody has its result.
    Left,
}

/// What the worker shares with whoever waits for it.
#[pin_data]
struct Shared {
    /// After the state.
    #[pin]
    ended: Completion,
    /// Whoever holds this lock takes no other one.
    #[pin]
    state: Mutex<State>,
}

/// A file system that is being frozen.
///
/// Dropping it waits for nothing: the worker thaws the file system when it was frozen, and keeps
/// the device open until then.
#[must_use]
pub struct FsFreezing {
    file: Arc<BdevFile>,
    shared: Arc<Shared>,
}

impl FsFreezing {
    /// Begins to freeze the file system on `file`'s device. May sleep.
    ///
    /// Fails with `ENOMEM`.
    pub fn start(file: &Arc<BdevFile>) -> Result<Self> {
        let init = pin_init!(Shared {
            ended <- Completion::new(),
            state <- new_mutex!(State::Freezing),
        });
        let shared = Arc::pin_init(init, GFP_KERNEL)?;
        let this = Self {
            file: file.clone(),
            shared: shared.clone(),
        };
        let file = file.clone();
        let freeze = move || {
            let mut ended = State::Ended(FsFreeze::new(&file));
            let mut state = shared.state.lock();
            if let State::Freezing = *state {
                core::mem::swap(&mut *state, &mut ended);
            }
            drop(state);
            // Without the lock, as it may thaw. And before the waiter goes on, so that the device
            // is not closed here, later than there.
            drop(ended);
            drop(file);
            shared.ended.complete_all();
        };
        workqueue::system_dfl().try_spawn(GFP_KERNEL, freeze)?;
        Ok(this)
    }

    /// Waits until the file system is frozen, or until the device has completed no write for
    /// `timeout`.
    ///
    /// Returns whether it is frozen, or freezing it has failed.
    pub fn wait(&self, timeout: Jiffies) -> bool {
        let mut written = self.count_writes();
        while !self.shared.ended.wait_for_completion_timeout(timeout) {
            let before = core::mem::replace(&mut written, self.count_writes());
            if written == before {
                return false;
            }
        }
        true
    }

    /// Waits, however long it takes, until the file system is frozen.
    ///
    /// Fails with `EBUSY` when the device is being removed from its file system, or with the error
    /// of writing back.
    pub fn finish(self) -> Result<FsFreeze> {
        self.shared.ended.wait_for_completion();
        match self.leave() {
            State::Ended(result) => result,
            State::Freezing | State::Left => Err(EIO),
        }
    }

    /// From now on nobody waits.
    fn leave(&self) -> State {
        core::mem::replace(&mut *self.shared.state.lock(), State::Left)
    }

    /// How many writes the device has completed; it counts them unless that was switched off.
    fn count_writes(&self) -> usize {
        // SAFETY: The device is open.
        unsafe { bindings::bdev_count_writes(self.file.bdev().as_raw()) }
    }
}

impl Drop for FsFreezing {
    fn drop(&mut self) {
        // Here, as the worker may hold `shared` for a moment longer; and without the lock.
        drop(self.leave());
    }
}
