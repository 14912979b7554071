# SPDX-License-Identifier: GPL-2.0
"""Load that knows when it wrote what, so that an image can be checked that was taken at an instant
that nobody knows: between two others."""

import struct
import time
from bisect import bisect_right

from blockio import Device, write
from tap import rng

BLOCK = 4096
# Blocks side by side that belong to one writer, the next ones to the next.
GROUP = 4


def stamp(disk, writer, number, block):
    """What the writer's write of that number puts into a block."""
    return struct.pack("<4I", disk, writer, number, block) * (BLOCK // 16)


class Writer:
    """One that writes to a disk, one thing after the other, and notes it before."""

    def __init__(self, disk, number, groups):
        self.disk = disk
        self.number = number
        self.groups = groups
        # By block: the numbers of the writes to it.
        self.history = {block: [0] for group in groups for block in range(group * GROUP, (group + 1) * GROUP)}
        self.begun = 0
        self.done = 0

    def write(self, random, device):
        block = random.choice(self.groups) * GROUP + random.randrange(GROUP)
        count = random.randint(1, GROUP - block % GROUP)
        number = self.begun + 1
        for at in range(block, block + count):
            self.history[at].append(number)
        self.begun = number
        device.write(block * BLOCK, b"".join(stamp(self.disk, self.number, number, at)
                                             for at in range(block, block + count)))
        self.done = number

    def check(self, data, floor, ceiling):
        """Fails unless the data is as of one instant, after the write `floor` and before any after
        `ceiling`. A write of that instant may be there in part."""
        found = {}
        for block in self.history:
            part = data[block * BLOCK:(block + 1) * BLOCK]
            disk, writer, number, where = struct.unpack_from("<4I", part)
            if part != stamp(self.disk, self.number, number, block):
                raise AssertionError(f"block {block} of disk {self.disk}: torn, or of disk {disk}, "
                                     f"writer {writer}, write {number}, block {where}")
            found[block] = number
        last = max(floor, *found.values())
        if last > ceiling:
            raise AssertionError(f"disk {self.disk}: has write {last} of writer {self.number}, "
                                 f"which began after the instant: {ceiling}")
        for block, number in found.items():
            history = self.history[block]
            at = bisect_right(history, last) - 1
            allowed = history[at:at + 1]
            if last > floor and allowed == [last]:
                allowed.append(history[at - 1])
            if number not in allowed:
                raise AssertionError(f"disk {self.disk}, block {block}: write {number} of writer {self.number}, "
                                     f"wanted {allowed}; the instant is after {last}, of {floor} to {ceiling}")


class Stamped:
    """A disk with nothing but stamps, and its writers."""

    def __init__(self, number, path, size, writers=2):
        self.number = number
        self.path = path
        groups = range(size // BLOCK // GROUP)
        self.writers = [Writer(number, writer, groups[writer::writers]) for writer in range(writers)]
        self.blocks = size // BLOCK
        write(path, b"".join(stamp(number, block // GROUP % writers, 0, block) for block in range(self.blocks)))

    def begun(self):
        return [writer.begun for writer in self.writers]

    def done(self):
        return [writer.done for writer in self.writers]

    def check(self, data, floors, ceilings):
        for writer, floor, ceiling in zip(self.writers, floors, ceilings):
            writer.check(data, floor, ceiling)

    def load(self, threads):
        """Has the writers write until the threads stop."""
        def body(writer):
            random = rng(f"writer {self.number} {writer.number}")
            with Device(self.path, buffer=GROUP * BLOCK) as device:
                while not threads.stopping:
                    writer.write(random, device)
                    # Others need the processor, too.
                    time.sleep(random.uniform(0, 0.004))
        for writer in self.writers:
            threads.spawn(body, writer)
