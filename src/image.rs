// SPDX-License-Identifier: GPL-2.0

//! The disk that shows a captured device as it was at the instant.
//!
//! This file is the disk; [`io`] sends each bio to where its data is.

use kernel::{
    block::{
        bdev::DevId,
        bio::{
            BioList,
            OwnedBio, //
        },
        bio_disk::Operations, //
    },
    fmt::{
        self,
        Write, //
    },
    prelude::*,
    sync::{
        new_spinlock,
        Arc,
        ArcBorrow,
        SetOnce,
        SpinLock, //
    }, //
};

use crate::{
    copying::cow::Cow,
    tracking::cbt::Cbt, //
};

use io::ImageIo;

pub(crate) mod io;

/// What images are called.
#[derive(Clone, Copy)]
pub(crate) enum Naming {
    /// This, and their own minor numbers.
    ByMinor(&'static str),
    /// This, and the major number of the original; this, and its minor number.
    ByOriginal(&'static str, &'static str),
}

impl Naming {
    /// Writes the name of the image with that minor number.
    pub(crate) fn write(self, original: DevId, minor: u32, out: &mut dyn Write) -> fmt::Result {
        let DevId { major, minor: of } = original;
        match self {
            Self::ByMinor(prefix) => write!(out, "{prefix}{minor}"),
            Self::ByOriginal(prefix, between) => write!(out, "{prefix}{major}{between}{of}"),
        }
    }
}

/// What serves an image.
///
/// The disk is added before the instant, when a failure can still be undone. Bios that come before
/// the instant wait.
#[pin_data]
pub(crate) struct Image {
    io: Arc<ImageIo>,
    /// The original's map, once the instant has come.
    cbt: SetOnce<Arc<Cbt>>,
    /// What came before; `None` if it will not come. A leaf; not taken in interrupts.
    #[pin]
    early: SpinLock<Option<BioList>>,
}

impl Image {
    /// Makes an image that is not ready yet.
    pub(crate) fn new(io: &Arc<ImageIo>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                io: io.clone(),
                cbt: SetOnce::new(),
                early <- new_spinlock!(Some(BioList::new())),
            }),
            GFP_KERNEL,
        )
    }

    /// The I/O of the image.
    pub(crate) fn io(&self) -> &Arc<ImageIo> {
        &self.io
    }

    /// The copy engine.
    pub(crate) fn cow(&self) -> &Cow {
        self.io.cow()
    }

    /// The instant has come; `cbt` is the original's map.
    pub(crate) fn set_ready(&self, cbt: Arc<Cbt>) {
        let mut bios = {
            let mut early = self.early.lock();
            self.cbt.populate(cbt);
            early.take().unwrap_or_default()
        };
        while let Some(bio) = bios.pop() {
            self.serve(bio);
        }
    }

    /// The take has failed: what came and comes gets an error. To be called before the disk is
    /// removed, which waits for it.
    pub(crate) fn give_up(&self) {
        let early = self.early.lock().take();
        let mut bios = early.unwrap_or_default();
        while let Some(bio) = bios.pop() {
            bio.end(Err(EIO));
        }
    }

    fn serve(&self, bio: OwnedBio) {
        let Some(cbt) = self.cbt.as_ref() else {
            return self.wait(bio);
        };
        if bio.is_write() {
            // The next increment has to read these blocks again.
            cbt.mark_both(bio.sector(), u64::from(bio.sectors()));
        }
        self.io.submit(bio);
    }

    fn wait(&self, bio: OwnedBio) {
        let mut early = self.early.lock();
        if self.cbt.as_ref().is_some() {
            drop(early);
            return self.serve(bio);
        }
        match &mut *early {
            Some(early) => early.push(bio),
            None => {
                drop(early);
                bio.end(Err(EIO));
            }
        }
    }
}

#[vtable]
impl Operations for Image {
    fn submit_bio(this: ArcBorrow<'_, Self>, bio: OwnedBio) {
        this.serve(bio);
    }
}
