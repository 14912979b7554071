# SPDX-License-Identifier: GPL-2.0
"""Whether an image is what its original was at the instant, whatever is written then."""

from blksnap import Snapshot, size_of
from blockio import MIB, Readers, Writers, differs, pattern, read, same, write
from tap import DEBUG, equal, true

COUNT = 20 if DEBUG else 40


def fidelity(device, storage="/dev/vdb", targets=None, count=COUNT, threads=4, largest=MIB, writers=None):
    """Load before the take, load while the image is read, and all of it overwritten.

    `targets` are the nodes through which the device is written, and where each begins there."""
    targets = targets or [(device, 0)]
    size = size_of(device)
    options = {"largest": largest, **(writers or {})}
    before = bytearray(pattern(size, "before"))
    write(device, before)
    Writers(targets, before, threads, count // 4, name="early", **options).start().join()
    same(read(device), before, "original before the snapshot")
    shadow = bytearray(before)
    with Snapshot(device, storage) as snapshot:
        image = snapshot.image
        with Readers(image, before, **options) as readers:
            Writers(targets, shadow, threads, count, **options).start().join()
        true(min(readers.done) >= 20, f"reads: {readers.done}")
        same(read(device), shadow, "original after the load")
        differs(shadow, before, "original after the load", size // 512 // 10)
        same(read(image), before, "image after the load")
        # Every sector, through every node.
        for path, base in targets:
            write(path, pattern(size_of(path), f"after {path}"))
            shadow[base:base + size_of(path)] = pattern(size_of(path), f"after {path}")
        same(read(device), shadow, "original when all was overwritten")
        same(read(image, direct=False), before, "image when all was overwritten")
        state = snapshot.state()
        equal(state["state"], "taken")
        covered = sum(size_of(path) for path, _ in targets)
        true(covered <= state["copied"] * 512 <= size, f"each chunk once: {state}")
        equal([event.code for event in snapshot.events()], [0], "events")
    same(read(device), shadow, "original when all is over")
