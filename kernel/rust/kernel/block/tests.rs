// SPDX-License-Identifier: GPL-2.0

//! Tests of what needs a disk, or an interrupt.

use super::{
    bdev::BdevFile,
    bio::{
        Op,
        OwnedBio, //
    },
    bio_disk::{
        self,
        BioDisk,
        Major,
        Options, //
    },
    bio_set::{
        BioSet,
        Buffer,
        EndIo,
        NewBio,
        Piece,
        TargetRef,
        Wait, //
    },
    queue::{
        Freezing,
        NoIoScope,
        QuickFreeze, //
    },
};
use crate::{
    bindings,
    impl_has_hr_timer,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Completion, //
    },
    sysfs::Group,
    time::{
        hrtimer::{
            HrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart,
            RelativeMode, //
        },
        Delta,
        Monotonic, //
    }, //
};

/// Reads as zeroes; takes any write.
struct Zeroes;

#[vtable]
impl bio_disk::Operations for Zeroes {
    fn submit_bio(_this: ArcBorrow<'_, Self>, mut bio: OwnedBio) {
        bio.zero_fill();
        bio.end(Ok(()));
    }
}

/// A disk of zeroes, opened.
struct ZeroDisk {
    file: Arc<BdevFile>,
    _disk: BioDisk<Zeroes>,
}

impl ZeroDisk {
    fn new(major: &Arc<Major>) -> Result<Self> {
        let options = Options {
            major,
            sectors: 2048,
            like: None,
            group: &Group::new(None, &[], &[])?,
        };
        let data = Arc::new(Zeroes, GFP_KERNEL)?;
        let disk = BioDisk::new(
            |minor, out| write!(out, "kunit-zeroes{minor}"),
            options,
            data,
        )?;
        Ok(Self {
            file: BdevFile::open(disk.id())?,
            _disk: disk,
        })
    }
}

/// How a bio ended.
#[pin_data]
struct Outcome {
    #[pin]
    ended: Completion,
    errno: Atomic<i32>,
}

impl Outcome {
    fn new() -> Result<Arc<Self>> {
        let init = pin_init!(Self {
            ended <- Completion::new(),
            errno: Atomic::new(1),
        });
        Arc::pin_init(init, GFP_KERNEL)
    }
}

/// The context of a bio, which may have the last reference to its set.
struct Io {
    set: Arc<BioSet<Io>>,
    file: Arc<BdevFile>,
    outcome: Arc<Outcome>,
}

impl EndIo for Io {
    fn set(&self) -> &BioSet<Self> {
        &self.set
    }

    fn target(&self) -> TargetRef<'_> {
        TargetRef::from(&self.file)
    }

    fn end_io(self, _cloned: Option<OwnedBio>, result: Result) {
        let errno = result.map_or_else(Error::to_errno, |()| 0);
        self.outcome.errno.store(errno, Relaxed);
        self.outcome.ended.complete_all();
    }
}

/// What it takes to make a bio that reads a page.
struct Parts {
    buffer: Arc<Buffer>,
    io: Io,
}

impl Parts {
    fn new(disk: &ZeroDisk, wait: Wait) -> Result<Self> {
        Ok(Self {
            buffer: Buffer::new(4096, GFP_KERNEL)?,
            io: Io {
                set: Arc::new(BioSet::new(1, wait)?, GFP_KERNEL)?,
                file: disk.file.clone(),
                outcome: Outcome::new()?,
            },
        })
    }

    fn make(self) -> Result<NewBio<Io>, Io> {
        let piece = Piece {
            buffer: &self.buffer,
            offset: 0,
            bytes: 4096,
        };
        NewBio::new(Op::Read, 0, [piece], self.io)
    }
}

/// Makes bios in an interrupt, and drops what becomes of them. With `PREEMPT_RT` nobody may
/// allocate in a hard one, and the timer runs in another.
#[pin_data]
struct Interrupt {
    #[pin]
    timer: HrTimer<Self>,
    parts: [Option<Parts>; 2],
    report: Arc<Report>,
}

/// What the interrupt tells.
#[pin_data]
struct Report {
    #[pin]
    done: Completion,
    /// Whether each of the bios was made: 1 if so, else -1.
    made: [Atomic<i32>; 2],
}

impl HrTimerCallback for Interrupt {
    type Pointer<'a> = Pin<KBox<Self>>;

    fn run(this: Pin<&mut Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        let this = this.project();
        for (parts, made) in this.parts.iter_mut().zip(&this.report.made) {
            if let Some(parts) = parts.take() {
                // The last reference to the set goes here, too.
                made.store(if parts.make().is_ok() { 1 } else { -1 }, Relaxed);
            }
        }
        this.report.done.complete_all();
        HrTimerRestart::NoRestart
    }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Interrupt {
        mode: RelativeMode<Monotonic>, field: self.timer
    }
}

/// Whether the usage counter of a disk's queue is one for all processors.
fn is_atomic(disk: &ZeroDisk) -> bool {
    let queue = disk.file.bdev().queue();
    // SAFETY: The queue is valid, as the device is open. The field may change beside us, which the
    // volatile read allows for.
    let flags = unsafe { (&raw const (*queue).q_usage_counter.percpu_count_ptr).read_volatile() };
    // CAST: A small constant.
    flags & bindings::__PERCPU_REF_ATOMIC as c_ulong != 0
}

#[kunit_tests(rust_block)]
mod cases {
    use super::*;

    #[test]
    fn bio_reads() -> Result {
        let disk = ZeroDisk::new(&Major::register(c"kunit")?)?;
        for wait in [Wait::Never, Wait::ForBio] {
            let parts = Parts::new(&disk, wait)?;
            let outcome = parts.io.outcome.clone();
            parts.make().map_err(|_| ENOMEM)?.submit();
            outcome.ended.wait_for_completion();
            assert_eq!(outcome.errno.load(Relaxed), 0);
        }
        Ok(())
    }

    /// A set with caches gives no bio to an interrupt, and gives the data back. The last reference
    /// to a set may go there.
    #[test]
    fn bio_in_interrupt() -> Result {
        let disk = ZeroDisk::new(&Major::register(c"kunit")?)?;
        let report = Arc::pin_init(
            pin_init!(Report {
                done <- Completion::new(),
                made: [Atomic::new(0), Atomic::new(0)],
            }),
            GFP_KERNEL,
        )?;
        let told = report.clone();
        let parts = [
            Some(Parts::new(&disk, Wait::ForBio)?),
            Some(Parts::new(&disk, Wait::Never)?),
        ];
        let init = pin_init!(Interrupt {
            timer <- HrTimer::new(),
            parts,
            report,
        });
        let interrupt = KBox::pin_init(init, GFP_KERNEL)?;
        let _handle = interrupt.start(Delta::from_micros(200));
        told.done.wait_for_completion();
        assert_eq!(told.made[0].load(Relaxed), -1);
        assert_eq!(told.made[1].load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn quick_freeze_is_alone() -> Result {
        let disk = ZeroDisk::new(&Major::register(c"kunit")?)?;
        let mut files = KVec::new();
        // The same queue twice, as with two partitions of a disk.
        files.push(disk.file.clone(), GFP_KERNEL)?;
        files.push(disk.file.clone(), GFP_KERNEL)?;
        assert!(!is_atomic(&disk));
        let first = QuickFreeze::start(files);
        assert!(first.is_some());
        assert!(is_atomic(&disk));
        let mut files = KVec::new();
        files.push(disk.file.clone(), GFP_KERNEL)?;
        assert!(QuickFreeze::start(files).is_none());
        assert!(is_atomic(&disk));
        {
            let scope = NoIoScope::new();
            drop(Freezing::start(&disk.file, &scope).complete());
        }
        assert!(is_atomic(&disk));
        drop(first);
        assert!(!is_atomic(&disk));
        assert!(QuickFreeze::start(KVec::new()).is_some());
        Ok(())
    }

    #[test]
    fn disk_keeps_major() -> Result {
        let major = Major::register(c"kunit")?;
        let number = major.number();
        let disk = ZeroDisk::new(&major)?;
        drop(major);
        // The number is not free.
        assert!(Major::register(c"kunit-other")?.number() != number);
        drop(disk);
        assert_eq!(Major::register(c"kunit-other")?.number(), number);
        Ok(())
    }
}
