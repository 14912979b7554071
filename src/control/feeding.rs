// SPDX-License-Identifier: GPL-2.0

//! Which snapshots copy what others store.
//!
//! Storage may lie on a device that another snapshot captures. A store is a write to that device
//! like any other: the other snapshot copies first what is overwritten, which it stores in turn.
//! That ends unless it comes back to where it began. So storage that would close such a circle is
//! excluded from being copied, and so is that of a snapshot on its own devices.

use kernel::{
    alloc::flags::GFP_KERNEL,
    prelude::*,
    sync::Arc, //
};

use crate::{
    base::faults::{
        planted,
        Fault, //
    },
    snapshot::Snapshot, //
};

/// Whether `from` is `to`, or its stores make `to` store something, if through others. May sleep;
/// storage must not be appended meanwhile.
pub(super) fn feeds(all: &[Arc<Snapshot>], from: &Snapshot, to: &Snapshot) -> Result<bool> {
    if from.id() == to.id() || planted(Fault::ExcludeForAll) {
        return Ok(true);
    }
    // Those that are fed by `from`; of those before `next` it is known whom they feed.
    let mut fed: KVec<&Snapshot> = KVec::with_capacity(all.len(), GFP_KERNEL)?;
    let mut next = 0;
    let mut current = from;
    loop {
        for other in all {
            let known = other.id() == from.id() || fed.iter().any(|one| one.id() == other.id());
            if known || !other.copies_stores_of(current)? {
                continue;
            }
            if other.id() == to.id() {
                return Ok(true);
            }
            fed.push(other, GFP_KERNEL)?;
        }
        match fed.get(next) {
            Some(one) => current = one,
            None => return Ok(false),
        }
        next += 1;
    }
}
