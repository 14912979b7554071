// SPDX-License-Identifier: GPL-2.0-or-later

//! What is left of a file when the power fails while it is updated: everything up to the last wait
//! for the disk, and any of the writes since.

use std::cell::RefCell;

use super::*;

/// Something done to the file.
#[derive(Clone)]
enum Event {
    Wrote(Vec<u8>, u64),
    Synced,
}

thread_local! {
    static LOG: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
}

/// Notes a write, if a test wants it.
pub fn wrote(bytes: &[u8], place: u64) {
    note(|| Event::Wrote(bytes.to_vec(), place));
}

/// Notes a wait for the disk.
pub fn synced() {
    note(|| Event::Synced);
}

fn note(event: impl FnOnce() -> Event) {
    LOG.with_borrow_mut(|log| {
        if let Some(log) = log {
            log.push(event());
        }
    });
}

/// Does something to a file, and gives what was written.
fn log(action: impl FnOnce()) -> Vec<Event> {
    LOG.set(Some(Vec::new()));
    action();
    LOG.take().unwrap()
}

#[test]
fn at_each_moment_the_file_is_an_image_and_the_merge_can_be_done_again() {
    cut_off_anywhere(false);
}

#[test]
fn and_so_it_is_if_it_is_compressed() {
    cut_off_anywhere(true);
}

fn cut_off_anywhere(compress: bool) {
    let mut chain = Chain::new();
    let step = |place, count, data| Step { place, count, data };
    // In an order that makes tables be written back and read again.
    let later = [
        step(13, 1, Some(7)),
        step(15, 1, Some(8)),
        step(1, 2, None),
        step(3, 3, Some(4)),
        step(7, 2, Some(5)),
        step(12, 4, Some(6)),
        step(16, 2, None),
    ];
    // The last L2 table is not there yet.
    chain.add_so(&[step(0, 4, Some(1)), step(8, 1, Some(2))], compress);
    chain.add_so(&later, compress);
    let (base, overlay) = (chain.image(0), chain.image(1));
    let before = chain.dir.path().join("before");
    std::fs::copy(&base, &before).unwrap();
    let merge = || {
        let mut image = Image::open_for_update(&base).unwrap();
        merge(&overlay, &ranges(&later), &mut image);
        image.finish().unwrap();
    };
    let events = log(merge);
    let mut torn = 0;
    for end in 0..=events.len() {
        let durable = events[..end]
            .iter()
            .rposition(|event| matches!(event, Event::Synced))
            .unwrap_or(0);
        // Of the writes since: all, only the last, or all but the first.
        let mut subsets = vec![durable..end, end.saturating_sub(1)..end, durable + 2..end];
        subsets.truncate(end - durable);
        for kept in subsets {
            std::fs::copy(&before, &base).unwrap();
            let file = File::options().write(true).open(&base).unwrap();
            for (index, event) in events[..end].iter().enumerate() {
                match event {
                    Event::Wrote(bytes, place) if index < durable || kept.contains(&index) => {
                        file.write_all_at(bytes, *place).unwrap()
                    }
                    _ => {}
                }
            }
            torn += qemu_img(&["check", "-q", "-f", "qcow2"], &[&base]);
            // The chain is still the later state; and becomes one image when it is done again.
            is_same(&chain.plain(1), &overlay);
            merge();
            qemu_img(&["check", "-q", "-f", "qcow2"], &[&base]);
            chain.reads_as(0, &ranges(&later), 1);
        }
    }
    assert!(torn > 0, "no crash has left anything behind");
}
