# SPDX-License-Identifier: GPL-2.0
"""What hostile programs give to commands, and whether anything has come of it."""

import ctypes
import mmap
from pathlib import Path

import blksnap
import blksnap2
from tap import equal, filters

# The last ones belong to the kernel, or to nobody.
BAD_POINTERS = (0, 1, 0x7ffffffff000, 0xffff888000000000, 0xffffffffffffffff)


class Page:
    """A page, with one behind it that nobody may touch."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.end = self.start + mmap.PAGESIZE
        self._protect(self.end, 0)

    @staticmethod
    def _protect(at, how):
        equal(ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), mmap.PAGESIZE, how), 0, "mprotect")

    def at_end(self, data):
        """Where the data is: there is nothing behind it."""
        ctypes.memmove(self.end - len(data), bytes(data), len(data))
        return self.end - len(data)

    def show(self, length):
        """The last bytes of the page."""
        return ctypes.string_at(self.end - length, length)

    def read_only(self, data):
        """Where the data is; from now on it cannot be written."""
        self._protect(self.start, mmap.PROT_READ | mmap.PROT_WRITE)
        at = self.at_end(data)
        self._protect(self.start, mmap.PROT_READ)
        return at


def world():
    """All that a command of either ABI could change."""
    with blksnap.Control() as one, blksnap2.Control2() as two:
        return (one.trackers(), one.snapshots(), two.snapshots(), filters(), blksnap.states(),
                sorted(map(str, Path("/dev").glob("blksnap*"))))


class unchanged:
    """`with unchanged():` — nothing may come of what is done."""

    def __enter__(self):
        self.before = world()

    def __exit__(self, kind, *_):
        if kind is None:
            equal(world(), self.before, "the state")
