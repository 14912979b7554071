# SPDX-License-Identifier: GPL-2.0
"""Reading, writing and comparing devices; and load that knows what it wrote."""

import functools
import math
import mmap
import os
import threading
from pathlib import Path

from blksnap import size_of
from tap import join, note, rng

MIB = 1 << 20
SECTOR = 512
# Numbers of system calls, for waits_in(); Device.read() and Device.write() make the last two.
IOCTL, EPOLL_PWAIT, OPENAT, PREADV2, PWRITEV2 = \
    (29, 22, 56, 286, 287) if os.uname().machine == "aarch64" else (16, 281, 257, 327, 328)


class Device:
    """A node opened for reading, and for writing if it can be; O_DIRECT unless `direct` is
    False. Not to be shared by threads: there is one buffer."""

    def __init__(self, path, direct=True, write=True, buffer=MIB):
        flags = os.O_RDWR if write else os.O_RDONLY
        self.fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        self.memory = mmap.mmap(-1, buffer)
        self.view = memoryview(self.memory)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def read(self, offset, length):
        """At most the buffer's size; all of it or an error."""
        done = os.preadv(self.fd, [self.view[:length]], offset)
        if done != length:
            raise AssertionError(f"read of {length} at {offset}: {done} bytes")
        return bytes(self.view[:length])

    def write(self, offset, data, flags=0):
        length = len(data)
        self.view[:length] = data
        done = os.pwritev(self.fd, [self.view[:length]], offset, flags)
        if done != length:
            raise AssertionError(f"write of {length} at {offset}: {done} bytes")


def read(path, offset=0, length=None, direct=True, piece=MIB):
    """All of a device, or a part."""
    with Device(path, direct, write=False, buffer=piece) as device:
        end = size_of(path) if length is None else offset + length
        return b"".join(device.read(at, min(piece, end - at)) for at in range(offset, end, piece))


def write(path, data, offset=0, direct=True, piece=MIB):
    """Data to a device, on stable storage when this returns."""
    view = memoryview(data)
    with Device(path, direct, buffer=piece) as device:
        for at in range(0, len(data), piece):
            device.write(offset + at, view[at:at + piece])
        os.fsync(device.fd)


def pattern(size, name):
    """Data in which no two sectors are alike; with other names, none of the sectors."""
    return (_pattern_again if size <= 16 * MIB else _pattern)(size, name)


def _pattern(size, name):
    filler = rng(f"pattern {name}").randbytes(SECTOR - 8)
    tag = filler[:3]
    sectors = -(-size // SECTOR)
    return b"".join([n.to_bytes(5, "big") + tag + filler for n in range(sectors)])[:size]


# Most are asked for twice, to be written and to be compared.
_pattern_again = functools.lru_cache(4)(_pattern)


def same(found, wanted, what):
    """Fails, and says where, unless both are equal."""
    if found == wanted:
        return
    if len(found) != len(wanted):
        raise AssertionError(f"{what}: {len(found)} bytes, wanted {len(wanted)}")
    wrong = [at for at in range(0, len(wanted), SECTOR)
             if found[at:at + SECTOR] != wanted[at:at + SECTOR]]
    runs = []
    for at in wrong:
        if runs and runs[-1][1] == at // SECTOR:
            runs[-1][1] += 1
        else:
            runs.append([at // SECTOR, at // SECTOR + 1])
    at = wrong[0]
    note(f"{what}: found  {bytes(found[at:at + 32]).hex()}")
    note(f"{what}: wanted {bytes(wanted[at:at + 32]).hex()}")
    raise AssertionError(f"{what}: {len(wrong)} sectors differ, in {len(runs)} runs (from, to): {runs[:12]}")


def differs(found, other, what, least=1):
    """Fails unless at least so many sectors differ: so that a test cannot pass for lack of
    anything happening."""
    count = 0
    for at in range(0, len(other), SECTOR):
        count += found[at:at + SECTOR] != other[at:at + SECTOR]
        if count >= least:
            return
    raise AssertionError(f"{what}: only {count} sectors differ, wanted {least}")


class Threads:
    """Threads whose first failure is raised at the end."""

    def __init__(self):
        self.threads = []
        self.errors = []
        self.stopping = False

    def spawn(self, function, *arguments):
        def body():
            try:
                function(*arguments)
            except BaseException as error:
                self.errors.append(error)
                self.stopping = True
        thread = threading.Thread(target=body, daemon=True)
        self.threads.append(thread)
        return thread

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def join(self, seconds=300):
        for thread in self.threads:
            join(thread, seconds)
        if self.errors:
            raise self.errors[0]

    def stop(self):
        self.stopping = True
        self.join()

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        self.stopping = True
        try:
            self.join()
        except BaseException:
            if kind is None:
                raise


def waits_in(thread, call):
    """Whether a thread, ours or that of an id, sleeps, not to be interrupted, in that system call."""
    task = Path(f"/proc/{getattr(thread, 'native_id', thread)}")
    return (task / "syscall").read_text().split()[0] == str(call) and \
        (task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "D"


def any_size(random, smallest, largest, unit):
    """A length, small ones as likely as large ones."""
    length = int(2 ** random.uniform(math.log2(smallest), math.log2(largest)))
    return max(length // unit, 1) * unit


class Writers(Threads):
    """Threads that write random lengths at random places, each in a region of its own, and
    keep `shadow` (a bytearray) as the device should be.

    `targets` are pairs of a node and where it begins in the shadow (only so much of a node
    is written as the shadow has, after that); `count` writes are made by each thread, or as
    many as come until stop() if None. Half of the threads write through the page cache if
    `direct` is None. `before` is called before each write."""

    def __init__(self, targets, shadow, threads=4, count=60, direct=None, smallest=SECTOR,
                 largest=MIB, unit=SECTOR, name="writers", flags=0, before=None):
        super().__init__()
        self.before = before or (lambda: None)
        self.shadow = shadow
        self.count = count
        self.sizes = (smallest, largest, unit)
        self.flags = flags
        self.done = [0] * threads
        self.bytes = 0
        pool = rng(f"{name} pool")
        self.pool = pool.randbytes(2 * largest)
        for number in range(threads):
            path, base = targets[number % len(targets)]
            sharing = len(range(number % len(targets), threads, len(targets)))
            part = number // len(targets)
            size = min(size_of(path), len(shadow) - base)
            # Threads that use the page cache and others must not share pages.
            step = size // sharing // 4096 * 4096
            region = (part * step, size if part == sharing - 1 else (part + 1) * step)
            through_cache = number % 2 == 1 if direct is None else not direct
            self.spawn(self._write, number, path, base, region, not through_cache,
                       rng(f"{name} {number}"))

    def _write(self, number, path, base, region, direct, random):
        smallest, largest, unit = self.sizes
        first, end = region
        with Device(path, direct, buffer=largest) as device:
            while not self.stopping and (self.count is None or self.done[number] < self.count):
                length = min(any_size(random, smallest, largest, unit), end - first)
                at = first + random.randrange((end - first - length) // unit + 1) * unit
                source = random.randrange(largest // unit) * unit
                data = self.pool[source:source + length]
                self.before()
                device.write(at, data, self.flags)
                self.shadow[base + at:base + at + length] = data
                self.done[number] += 1
                self.bytes += length
                if not direct and self.done[number] % 8 == 0:
                    os.fsync(device.fd)
            if not direct:
                os.fsync(device.fd)


class Readers(Threads):
    """Threads that read random parts of an image and compare them, until stop(); each makes
    at least `least` reads. Half of them use the page cache."""

    def __init__(self, image, reference, threads=2, least=20, smallest=SECTOR, largest=MIB,
                 unit=SECTOR, name="readers"):
        super().__init__()
        self.reference = reference
        self.done = [0] * threads
        for number in range(threads):
            self.spawn(self._read, number, image, number % 2 == 0, least,
                       (smallest, largest, unit), rng(f"{name} {number}"))

    def _read(self, number, image, direct, least, sizes, random):
        smallest, largest, unit = sizes
        size = len(self.reference)
        with Device(image, direct, write=False, buffer=largest) as device:
            while self.done[number] < least or not self.stopping:
                if self.errors:
                    return
                length = min(any_size(random, smallest, largest, unit), size)
                at = random.randrange((size - length) // unit + 1) * unit
                if not direct and self.done[number] % 8 == 0:
                    os.posix_fadvise(device.fd, 0, 0, os.POSIX_FADV_DONTNEED)
                same(device.read(at, length), self.reference[at:at + length],
                     f"image at sector {at // SECTOR} ({'direct' if direct else 'buffered'})")
                self.done[number] += 1
