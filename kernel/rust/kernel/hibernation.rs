// SPDX-License-Identifier: GPL-2.0

//! Hearing of hibernation.
//!
//! The kernel that comes back from hibernation knows what there was when its image was made. What
//! was written to the disks after that, the image itself for one, it does not know.
//!
//! C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::Opaque, //
};

/// Who hears of hibernation.
pub trait Listener: Send + Sync + 'static {
    /// The machine is about to hibernate; or it has come back from that, or has given it up. User
    /// space runs. May sleep, but no calls overlap.
    fn hibernation(this: ArcBorrow<'_, Self>);
}

/// A listener that is told. Dropping it waits until it is not being told.
///
/// # Invariants
///
/// `block` is registered, with the callback of `T`.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Registration<T: Listener> {
    /// First, so that a pointer to it is one to the whole.
    #[pin]
    block: Opaque<bindings::notifier_block>,
    listener: Arc<T>,
}

// SAFETY: A notifier may be unregistered from any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: Listener> Send for Registration<T> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: Listener> Sync for Registration<T> {}

impl<T: Listener> Registration<T> {
    /// Has a listener told. May sleep. Without hibernation in the kernel, nothing is ever told.
    pub fn new(listener: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            listener,
            // After `listener`, which the callback uses.
            block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let block = bindings::notifier_block {
                    notifier_call: Some(Self::callback),
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(block) };
                // SAFETY: Initialised, and pinned until it was unregistered.
                to_result(unsafe { bindings::register_pm_notifier(slot) })
            }),
        }? Error)
    }

    /// # Safety
    ///
    /// Only called by the kernel, with the block of a `Registration<T>`.
    unsafe extern "C" fn callback(
        block: *mut bindings::notifier_block,
        event: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The block is the first field of a `Registration<T>`, which is `repr(C)`. It has
        // been initialised, and is not dropped before it was unregistered, which waits for us.
        let this = unsafe { &*block.cast::<Self>() };
        let (before, after) = (
            bindings::PM_HIBERNATION_PREPARE,
            bindings::PM_POST_HIBERNATION,
        );
        // CAST: Small numbers.
        if event as u32 == before || event as u32 == after {
            T::hibernation(this.listener.as_arc_borrow());
        }
        // CAST: Small numbers.
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<T: Listener> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant.
        let _ = unsafe { bindings::unregister_pm_notifier(self.block.get()) };
    }
}
