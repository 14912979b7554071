// SPDX-License-Identifier: GPL-2.0

//! In which context does the current code run?
//!
//! Code that may be called anywhere, such as the drop of a reference, can find out by these what it
//! may do itself and what it must leave to a worker.
//!
//! C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)

use crate::bindings;

/// Whether this is the code of a task, rather than of an interrupt that came upon one.
#[inline]
pub fn in_task() -> bool {
    // SAFETY: Only looks at the current processor's state.
    unsafe { bindings::in_task() }
}

/// Whether it is certain that sleeping is allowed here: interrupts are on, no spinlock is held, and
/// no [RCU guard](crate::sync::rcu::Guard) exists.
///
/// Always `false` in a kernel that does not count preemption (`PREEMPT_COUNT`): it cannot know.
#[inline]
pub fn may_sleep() -> bool {
    // SAFETY: Only looks at the current processor's state.
    let preemptible = unsafe { bindings::preemptible() };
    // An RCU guard disables preemption only where it cannot be preempted.
    // SAFETY: Only looks at the current task.
    preemptible && unsafe { bindings::rcu_preempt_depth() } == 0
}
