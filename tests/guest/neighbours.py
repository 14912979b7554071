# SPDX-License-Identifier: GPL-2.0
"""Snapshots whose storage lies on devices that other snapshots capture."""

import contextlib

import devices
from blksnap import Snapshot, parameters
from blockio import MIB, pattern, read, same, write
from tap import true

SIZE = 8 * MIB
# Storage of one on a device of another: its last half.
HALF = [(SIZE // 1024, SIZE // 1024)]


@contextlib.contextmanager
def chain(storage, links, first_taken_last=False):
    """Disks with a snapshot each: the first one stores on `storage`, each other one on the disk before
    it. Gives the disks, what was on them at the instant, and the snapshots."""
    with contextlib.ExitStack() as stack:
        # There is room for what each has to store for itself and for those behind it.
        stack.enter_context(parameters(copy_ahead_maximum_ratio=1))
        disks = [stack.enter_context(devices.null_blk(SIZE)) for _ in range(links)]
        for disk in disks:
            write(disk, pattern(SIZE, disk))
        places = [[(storage, [(0, 3 * SIZE // 512)])], *([(disk, HALF)] for disk in disks[:-1])]
        snapshots = [stack.enter_context(Snapshot(disk, place, take=False)) for disk, place in zip(disks, places)]
        for snapshot in reversed(snapshots) if first_taken_last else snapshots:
            snapshot.take()
        # What others have stored before the instant is what was there.
        yield disks, [bytes(read(disk)) for disk in disks], snapshots


def others_storage_is_copied(storage, first_taken_last=False):
    """Each image shows what was there before another snapshot stored there; AssertionError if not."""
    with chain(storage, 3, first_taken_last) as (disks, before, snapshots):
        for disk in reversed(disks):
            # Not where it is storage itself; that would be a fault of whoever writes.
            write(disk, b"w" * (SIZE // 8), 4096)
        for disk, data, snapshot in zip(disks, before, snapshots):
            true(snapshot.is_good(), f"{disk}: {snapshot.state()}")
            same(read(snapshot.image), data, f"image of {disk}")
        stored = [read(disk, SIZE // 2) for disk in disks[:-1]]
        true(all(now != data[SIZE // 2:] for now, data in zip(stored, before)), "nothing was stored there")
