# SPDX-License-Identifier: GPL-2.0
"""Whether the storage is the client's again when it is told that the images are lost."""

import errno

import devices
from blksnap import CORRUPTED, LOW_FREE_SPACE, Snapshot, parameters
from blockio import MIB, Threads, pattern, read, same, write
from tap import equal

SIZE = 8 * MIB
UNITS = 400


def storage_is_free(storage, removed, delay=300):
    """Loses the images while stores are in flight that take so many milliseconds: by using up the
    storage or, if `removed`, as the device goes. AssertionError if something is stored after the event."""
    disk = devices.NullBlk(SIZE)
    try:
        with devices.dm(devices.delay(storage, 0, delay)) as slow, parameters(copy_ahead_maximum_ratio=1):
            write(disk.path, pattern(SIZE, "before"))
            room = UNITS * (2 if removed else 1)
            with Snapshot(disk.path, [(slow, [(0, room * 8)])]) as snapshot:
                threads = Threads()

                def writer(number):
                    for block in range(number, UNITS if removed else 1000, 8):
                        write(disk.path, b"w" * 4096, block * 4096)

                for number in range(8):
                    threads.spawn(writer, number)
                with threads:
                    if removed:
                        threads.join()
                        disk.power_off()
                    event = snapshot.wait_event(60000)
                    while event.code == LOW_FREE_SPACE:
                        event = snapshot.wait_event(60000)
                    equal((event.code, event.errno), (CORRUPTED, errno.ENODEV if removed else errno.ENOSPC), "event")
                    # As a file system would that has the blocks back.
                    mine = pattern(room * 4096, "mine")
                    write(storage, mine)
                # It passes the stores that were in flight.
                write(slow, b"z" * 4096, 8 * MIB)
                same(read(storage, 0, len(mine)), mine, "what was written after the event")
    finally:
        disk.remove()
