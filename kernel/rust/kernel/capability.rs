// SPDX-License-Identifier: GPL-2.0

//! Capabilities of the current task.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use crate::{
    bindings,
    prelude::*, //
};

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// System administration.
    SysAdmin = bindings::CAP_SYS_ADMIN,
}

/// Whether the current task has a capability in the initial user namespace. Marks the task as one
/// that has made use of it. May sleep.
pub fn capable(capability: Capability) -> bool {
    // SAFETY: Called in task context with a valid capability.
    unsafe { bindings::capable(capability as c_int) }
}
