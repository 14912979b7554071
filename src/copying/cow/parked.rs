// SPDX-License-Identifier: GPL-2.0

//! Bios of the image that wait until a chunk was copied.
//!
//! Who serves the image [parks](Cow::park) a bio here. When the chunk was stored, or copying has
//! ended, the bio goes back to the disk that it came to, and is served as if it had come just now.

use kernel::{
    block::bio::{
        BioList,
        OwnedBio, //
    },
    prelude::*,
    sync::Arc,
    workqueue::WorkItem, //
};

use super::{
    claim::{
        Next,
        Reads,
        Wants, //
    },
    Cow,
    Kick,
    REQUEUE, //
};
use crate::copying::chunk_map::Place;

impl Cow {
    /// Parks a part of an image bio that is about `chunk`, until it was stored. `claim` says
    /// whether it is to be copied if untouched: not before writes that wait for a copy, and only if
    /// there is storage for it, as the image must not be lost for that. Ends the bio with `ENOSPC`
    /// if there is none.
    ///
    /// Gives it back if there is nothing to wait for.
    pub(crate) fn park(
        self: &Arc<Self>,
        bio: OwnedBio,
        chunk: u64,
        claim: bool,
    ) -> Option<OwnedBio> {
        let mut reads = Reads::default();
        let mut inner = self.inner.lock();
        let mut later = false;
        if claim && self.map.get(chunk) == Place::Untouched {
            let units = self.geometry.units_per_chunk();
            if self.space.book_spare(units).is_err() {
                drop(inner);
                bio.end(Err(ENOSPC));
                return None;
            }
            let may_claim = inner.writers.is_empty();
            let this = (chunk, chunk + 1);
            let next = self.advance(&mut inner, this, Wants::Image, may_claim, &mut reads);
            later = matches!(next, Next::Later);
            // The copy, if it has begun, has booked for itself.
            self.space.unbook(units);
        }
        let mut kick = Kick::default();
        let rest = match inner.flights.park(chunk, bio) {
            Some(bio) if later && !(inner.all_is_idle() && inner.writers.is_empty()) => {
                inner.images.push(bio);
                None
            }
            rest => rest,
        };
        if rest.is_none() {
            kick = self.wait_for_copies(&mut inner);
        }
        drop(inner);
        Self::submit(reads);
        self.kick(kick);
        match rest {
            Some(bio) if later => {
                // Nothing is under way whose end could give us memory.
                bio.end(Err(ENOMEM));
                None
            }
            rest => rest,
        }
    }

    /// Has bios of the image submitted again, to their own disk. For any context.
    pub(crate) fn requeue(self: &Arc<Self>, bios: BioList) {
        if bios.is_empty() {
            return;
        }
        self.requeued.lock().append(bios);
        let _ = self.resources.images.enqueue::<_, REQUEUE>(self.clone());
    }
}

impl WorkItem<REQUEUE> for Cow {
    type Pointer = Arc<Cow>;

    fn run(this: Arc<Cow>) {
        let mut bios: BioList = this.requeued.lock().take();
        while let Some(bio) = bios.pop() {
            bio.resubmit();
        }
    }
}
