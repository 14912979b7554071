// SPDX-License-Identifier: GPL-2.0

//! Who meets whom; and the faults that must be found.

use core::{ops::Range, sync::atomic::Ordering::Relaxed as Counting};
use kernel::planted::{Fault, plant};
use loom::sync::Arc;

use crate::{
    Failed, OLD, ZERO,
    cow::{Cow, Setup},
    image_io::{self, ImageBio},
};

/// What a thread does; the numbers are chunks.
#[derive(Clone, Debug)]
enum Step {
    /// Overwrites the original.
    Write(Range<u64>),
    /// Reads the image.
    Read(Range<u64>),
    /// Writes to the image.
    WriteImage(Range<u64>),
    /// Has a chunk copied for a write to the image.
    CopyForImage(u64),
    /// Says that chunks were not used at the instant.
    Give(Range<u64>),
    /// The snapshot fails: because of another one of its devices.
    Fail,
}
use Step::*;

const SETUP: Setup = Setup {
    chunks: 3,
    units: 4,
    copies: 3,
    ahead: false,
    bad: None,
    copied: 0..0,
    strict: false,
};

/// What is written to the image, and to the original by a thread.
const TO_IMAGE: u32 = 100;

fn to_original(thread: usize) -> u32 {
    1 + thread as u32
}

/// Runs threads in all orders, the last one in the main thread; and looks at all when they have
/// ended.
fn check(setup: Setup, threads: &[&[Step]]) {
    let threads: Vec<Vec<Step>> = threads.iter().map(|steps| steps.to_vec()).collect();
    // How often one is interrupted by another; LOOM_MAX_PREEMPTIONS=n chooses another number.
    let preemptions = if threads.len() < 3 { 2 } else { 1 };
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(preemptions));
    model.check(move || {
        let cow = Arc::new(Cow::new(&setup));
        let steps = |number: usize| {
            let (cow, threads) = (cow.clone(), threads.clone());
            move || {
                for step in &threads[number] {
                    perform(&cow, &threads, step.clone(), number);
                }
            }
        };
        let last = threads.len() - 1;
        let others: Vec<_> = (0..last).map(|n| loom::thread::spawn(steps(n))).collect();
        steps(last)();
        for other in others {
            other.join().unwrap();
        }
        look(&cow, &threads);
    });
}

fn is_image_write(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, WriteImage(_)))
}

fn gives(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Give(_)))
}

fn perform(cow: &Cow, threads: &[Vec<Step>], step: Step, thread: usize) {
    let written = threads.iter().any(|steps| is_image_write(steps));
    let given = threads.iter().any(|steps| gives(steps));
    let more = [written.then_some(TO_IMAGE), given.then_some(ZERO)];
    let bio = |chunks, write| ImageBio {
        chunks,
        write,
        written: more.into_iter().flatten().collect(),
    };
    match step {
        Write(chunks) => cow.filter(crate::cow::Write {
            chunks,
            data: to_original(thread),
            thread,
        }),
        Read(chunks) => image_io::submit(cow, bio(chunks, None)),
        WriteImage(chunks) => image_io::submit(cow, bio(chunks, Some(TO_IMAGE))),
        CopyForImage(chunk) => cow.copy_for_image(chunk),
        Give(chunks) => cow.give_unused(chunks),
        Fail => cow.fail(),
    }
}

/// When all threads have ended.
fn look(cow: &Cow, threads: &[Vec<Step>]) {
    assert!(cow.is_idle(), "something waits for ever");
    let steps = || threads.iter().flatten();
    let writes = steps().filter(|step| matches!(step, Write(_))).count();
    assert_eq!(
        cow.written.load(Counting),
        writes as u32,
        "writes that ended"
    );
    let parts = steps().map(|step| match step {
        Read(chunks) | WriteImage(chunks) => (chunks.end - chunks.start) as u32,
        Write(_) | CopyForImage(_) | Give(_) | Fail => 0,
    });
    assert_eq!(
        cow.ended.load(Counting),
        parts.sum(),
        "parts of image bios that ended"
    );
    for chunk in 0..cow.setup.chunks {
        let touches = |step: &Step, image: bool| match step {
            Write(chunks) => !image && chunks.contains(&chunk),
            WriteImage(chunks) => image && chunks.contains(&chunk),
            Read(_) | CopyForImage(_) | Give(_) | Fail => false,
        };
        let writers = threads.iter().enumerate();
        let writers = writers.filter(|(_, steps)| steps.iter().any(|s| touches(s, false)));
        let wanted: Vec<_> = writers.map(|(thread, _)| to_original(thread)).collect();
        let found = cow.origin.read_optimistic(chunk);
        assert!(
            wanted.contains(&found) || wanted.is_empty() && found == OLD,
            "the original has {found}"
        );
        let image = if steps().any(|step| touches(step, true)) {
            TO_IMAGE
        } else {
            OLD
        };
        match cow.final_image(chunk) {
            // What was not used.
            Ok(ZERO) => assert!(image == OLD && threads.iter().any(|steps| gives(steps))),
            Ok(found) => {
                assert_eq!(found, image, "the image lies in the end");
                let zeroes = cow.zeroes[chunk as usize].load(Counting) != 0;
                assert!(found != OLD || !zeroes, "zeroes have become data");
            }
            Err(Failed) => assert!(cow.failures.load(Counting) > 0),
        }
    }
}

fn write_and_read() {
    check(SETUP, &[&[Write(0..1)], &[Read(0..1)]]);
}

fn two_writes() {
    check(SETUP, &[&[Write(0..1)], &[Write(0..1)]]);
}

fn two_writes_and_a_read() {
    check(SETUP, &[&[Write(0..1)], &[Write(0..1)], &[Read(0..1)]]);
}

/// A write that needs two copies, and one that needs the first of them, too.
fn around_a_copied_chunk() {
    let setup = Setup {
        copied: 1..2,
        ..SETUP
    };
    check(setup, &[&[Write(0..3)], &[Write(0..1)]]);
}

/// The write replaces the window in which the reader looks.
fn read_of_what_was_copied() {
    let setup = Setup {
        copied: 0..1,
        ..SETUP
    };
    check(setup, &[&[Write(0..2)], &[Read(0..2)]]);
}

fn no_copy_is_free() {
    let setup = Setup { copies: 1, ..SETUP };
    check(setup, &[&[Write(0..1)], &[Write(1..2)]]);
}

fn image_write() {
    check(SETUP, &[&[Write(0..1)], &[WriteImage(0..1)]]);
}

fn image_write_and_read() {
    check(SETUP, &[&[WriteImage(0..1)], &[Read(0..1)]]);
}

fn image_write_without_a_free_copy() {
    let setup = Setup { copies: 1, ..SETUP };
    check(setup, &[&[Write(0..1)], &[WriteImage(1..2)]]);
}

/// What was copied ahead is overwritten while its neighbour is.
fn copied_ahead() {
    let setup = Setup {
        ahead: true,
        chunks: 2,
        ..SETUP
    };
    check(setup, &[&[Write(0..1)], &[Write(1..2)]]);
}

fn copied_ahead_and_read() {
    let setup = Setup {
        ahead: true,
        chunks: 2,
        ..SETUP
    };
    check(setup, &[&[Write(0..1)], &[Read(0..2)]]);
}

/// Copying ahead fails, and what is needed is copied again without it.
fn neighbour_cannot_be_read() {
    let setup = Setup {
        ahead: true,
        chunks: 2,
        bad: Some(1),
        ..SETUP
    };
    check(setup, &[&[Write(0..1)], &[Read(0..1)]]);
}

fn cannot_be_read() {
    let setup = Setup {
        bad: Some(0),
        ..SETUP
    };
    check(setup, &[&[Write(0..1)], &[Read(0..1)]]);
}

fn no_storage() {
    let setup = Setup { units: 0, ..SETUP };
    check(setup, &[&[Write(0..1)], &[Read(0..1)]]);
}

fn storage_ends() {
    let setup = Setup {
        units: 1,
        copied: 0..1,
        ..SETUP
    };
    check(setup, &[&[Write(1..2)], &[Read(0..2)]]);
}

/// A write that passes because of a failure is seen by a reader.
fn failure_elsewhere() {
    check(SETUP, &[&[Fail], &[Write(0..1)], &[Read(0..1)]]);
}

fn failure_and_another_write() {
    let setup = Setup {
        units: 0,
        chunks: 2,
        ..SETUP
    };
    check(setup, &[&[Write(0..1), Write(1..2)], &[Read(1..2)]]);
}

/// Of two copies of one write, the first fails.
fn nothing_is_stored_after_a_failure() {
    let setup = Setup {
        copied: 1..2,
        bad: Some(0),
        strict: true,
        ..SETUP
    };
    check(setup, &[&[Write(0..3)]]);
}

/// A write passes, or is copied before.
fn unused_and_written() {
    check(SETUP, &[&[Give(0..1), Write(0..1)], &[Write(0..1)]]);
}

fn unused_and_read() {
    check(SETUP, &[&[Give(0..1), Write(0..1)], &[Read(0..1)]]);
}

fn unused_when_copied_and_read() {
    check(SETUP, &[&[Write(0..1), Give(0..1)], &[Read(0..1)]]);
}

/// Others were given before.
fn more_unused_and_read() {
    check(
        SETUP,
        &[&[Give(1..2), Give(0..1), Write(0..1)], &[Read(0..1)]],
    );
}

fn more_unused_when_copied_and_read() {
    check(
        SETUP,
        &[&[Give(1..2), Write(0..1), Give(0..1)], &[Read(0..1)]],
    );
}

/// It is being copied for somebody who came before it was given.
fn unused_while_copied() {
    check(
        SETUP,
        &[&[Give(0..1), Write(0..1)], &[Write(0..1), Read(0..1)]],
    );
}

fn unused_and_image_written() {
    check(SETUP, &[&[Give(0..1), Write(0..1)], &[WriteImage(0..1)]]);
}

/// A copy is made for the image of what is overwritten meanwhile.
fn unused_beside_what_is_copied() {
    let setup = Setup {
        ahead: true,
        chunks: 2,
        ..SETUP
    };
    check(setup, &[&[Give(1..2), Write(0..2)], &[Read(0..2)]]);
}

/// What is written to the image is not all of a chunk in the driver: so here what is under it shows.
fn unused_and_copied_for_the_image() {
    check(
        SETUP,
        &[&[Write(0..1)], &[Give(0..1), CopyForImage(0), Read(0..1)]],
    );
}

/// All scenarios are silent.
macro_rules! silent {
    ($($name:ident)*) => {
        mod silent {
            $(#[test] fn $name() { super::$name() })*
        }
    };
}

silent! {
    write_and_read two_writes two_writes_and_a_read around_a_copied_chunk
    read_of_what_was_copied no_copy_is_free image_write image_write_and_read
    image_write_without_a_free_copy copied_ahead copied_ahead_and_read neighbour_cannot_be_read
    cannot_be_read no_storage storage_ends failure_elsewhere failure_and_another_write
    nothing_is_stored_after_a_failure unused_and_written unused_and_read unused_while_copied
    unused_when_copied_and_read unused_and_image_written unused_beside_what_is_copied
    unused_and_copied_for_the_image more_unused_and_read more_unused_when_copied_and_read
}

/// A fault is found by a scenario, with these words.
macro_rules! found {
    ($($name:ident: $fault:ident by $scenario:ident as $words:literal;)*) => {
        mod found {
            $(
                #[test]
                #[should_panic(expected = $words)]
                fn $name() {
                    super::plant(Some(super::Fault::$fault));
                    super::$scenario();
                }
            )*
        }
    };
}

found! {
    release_before_read: ReleaseBeforeRead by write_and_read as "";
    no_look_after_read: NoLookAfterRead by write_and_read as "the image lies";
    copy_twice: CopyTwice by two_writes as "";
    stored_too_early: StoredTooEarly by write_and_read as "";
    store_after_failure: StoreAfterFailure by nothing_is_stored_after_a_failure as "stored after";
    no_error_check: NoErrorCheck by failure_and_another_write as "the image lies";
    end_in_two_steps: EndInTwoSteps by write_and_read as "image bios that ended";
    words_relaxed: WordsRelaxed by two_writes as "";
    words_relaxed_for_a_reader: WordsRelaxed by write_and_read as "";
    changes_relaxed: ChangesRelaxed by two_writes as "";
    publish_relaxed: PublishRelaxed by write_and_read as "";
    find_relaxed: FindRelaxed by write_and_read as "";
    store_unused: StoreUnused by unused_while_copied as "the image lies";
    store_unused_for_the_image: StoreUnused by unused_and_copied_for_the_image as "the image lies";
    no_look_for_unused: NoLookForUnused by more_unused_and_read as "the image lies";
    no_look_for_first_unused: NoLookForFirstUnused by unused_and_read as "the image lies";
    look_for_unused_late: LookForUnusedLate by more_unused_when_copied_and_read as "zeroes have become data";
}
