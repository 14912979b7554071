# SPDX-License-Identifier: GPL-2.0
"""Load on a file system: threads that create, write, rename, truncate, punch, link and remove
files, as fsstress does; one that knows what is in its file, as fsx does; and fio's io_uring."""

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import threading

from blockio import MIB, Threads, same
from tap import rng

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
PUNCH, KEEP_SIZE, ZERO = 2, 1, 16

# More than that in a directory, and files are removed.
FILES = 40
LARGEST = 512 << 10


def fallocate(fd, mode, offset, length):
    """Whether the file system can do it; other errors are raised."""
    if not _libc.fallocate(fd, mode, offset, length):
        return True
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENODEV):
        raise OSError(number, os.strerror(number))
    return False


class KnownFile(Threads):
    """A thread that does to a file what it does to a copy in memory, and compares them."""

    def __init__(self, path, name=""):
        super().__init__()
        self.path = path
        self.copy = bytearray()
        self.done = 0
        self.lock = threading.Lock()
        self.spawn(self._body, rng(f"known {name}"))

    @contextlib.contextmanager
    def at_rest(self):
        """What is in the file, and stays so for the time of a `with` block."""
        with self.lock:
            yield bytes(self.copy)

    def _body(self, random):
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        operations = [self._write, self._write, self._write, self._map, self._map, self._truncate,
                      self._zero, self._read, self._read]
        try:
            while not self.stopping:
                with self.lock:
                    at = random.randrange(LARGEST)
                    random.choice(operations)(fd, at, 1 + random.randrange(LARGEST // 8), random)
                    if not random.randrange(16):
                        os.fsync(fd)
                self.done += 1
            self._read(fd, 0, len(self.copy), random)
        finally:
            os.close(fd)

    def _write(self, fd, at, length, random):
        data = random.randbytes(length)
        if os.pwrite(fd, data, at) != length:
            raise AssertionError("a short write")
        self.copy.extend(bytes(max(at - len(self.copy), 0)))
        self.copy[at:at + length] = data

    def _map(self, fd, at, length, random):
        end = min(at + length, len(self.copy))
        if at < end:
            with mmap.mmap(fd, len(self.copy)) as memory:
                self.copy[at:end] = memory[at:end] = random.randbytes(end - at)

    def _truncate(self, fd, at, _length, _random):
        os.ftruncate(fd, at)
        del self.copy[at:]
        self.copy.extend(bytes(at - len(self.copy)))

    def _zero(self, fd, at, length, random):
        if fallocate(fd, random.choice((PUNCH, ZERO)) | KEEP_SIZE, at, length):
            end = min(at + length, len(self.copy))
            self.copy[at:end] = bytes(max(end - at, 0))

    def _read(self, fd, at, length, _random):
        same(os.pread(fd, length, at), self.copy[at:at + length], self.path)


class FileLoad(Threads):
    """Threads, each in a directory of its own. `done` counts the operations of each."""

    def __init__(self, where, threads=3, name=""):
        super().__init__()
        self.done = [0] * threads
        for number in range(threads):
            self.spawn(self._body, number, f"{where}/load{number}", rng(f"files {name} {number}"))

    def _body(self, number, where, random):
        os.mkdir(where)
        operations = [self._write] * 8 + [self._rename, self._link, self._truncate, self._symlink,
                                          self._directory, self._sync, self._remove] + [self._punch] * 3
        while not self.stopping:
            try:
                random.choice(operations)(where, random)
                if len(os.listdir(where)) > FILES:
                    self._remove(where, random)
            except OSError as error:
                # Full, or the name of a directory where a file was meant.
                if error.errno not in (errno.ENOSPC, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ELOOP,
                                       errno.ENOTDIR, errno.ENOTEMPTY, errno.EMLINK, errno.EPERM):
                    raise
                if error.errno == errno.ENOSPC:
                    for _ in range(4):
                        self._remove(where, random)
            self.done[number] += 1

    @staticmethod
    def _new(where, random):
        return f"{where}/{random.randrange(100)}"

    @staticmethod
    def _old(where, random):
        return f"{where}/{random.choice(os.listdir(where) or ['0'])}"

    def _write(self, where, random):
        fd = os.open(random.choice((self._new, self._old))(where, random), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            data = random.randbytes(random.choice((100, 4096, 20000))) * random.randrange(1, 9)
            os.pwrite(fd, data, random.randrange(LARGEST))
            if not random.randrange(8):
                os.fsync(fd)
        finally:
            os.close(fd)

    def _punch(self, where, random):
        fd = os.open(self._old(where, random), os.O_RDWR)
        try:
            mode = random.choice((PUNCH | KEEP_SIZE, ZERO | KEEP_SIZE, KEEP_SIZE, 0))
            fallocate(fd, mode, random.randrange(LARGEST), 1 + random.randrange(LARGEST // 4))
        finally:
            os.close(fd)

    def _rename(self, where, random):
        os.rename(self._old(where, random), self._new(where, random))

    def _link(self, where, random):
        os.link(self._old(where, random), self._new(where, random), follow_symlinks=False)

    def _symlink(self, where, random):
        os.symlink("x" * random.randrange(1, 200), self._new(where, random))

    def _directory(self, where, random):
        path = self._new(where, random)
        os.mkdir(path)
        for number in range(random.randrange(20)):
            with open(f"{path}/{number}", "w", encoding="ascii") as out:
                out.write("x" * random.randrange(5000))

    def _truncate(self, where, random):
        os.truncate(self._old(where, random), random.randrange(LARGEST))

    def _sync(self, where, random):
        fd = os.open(where, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _remove(self, where, random):
        path = self._old(where, random)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


@contextlib.contextmanager
def io_uring(where, size=16 * MIB):
    """fio writes a file by io_uring, with NOWAIT: what would wait fails with EAGAIN, and nothing else
    may fail."""
    with subprocess.Popen(
            ["fio", "--name=nowait", f"--filename={where}/nowait", f"--size={size}", "--ioengine=io_uring",
             "--nowait=1", "--direct=1", "--rw=randrw", "--bs=4k", "--iodepth=8", "--rate_iops=200",
             "--ignore_error=EAGAIN,EAGAIN", "--thread", "--time_based", "--runtime=100000",
             "--output-format=terse"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as fio:
        try:
            yield
            if fio.poll() is not None:
                raise AssertionError(f"fio ended with {fio.returncode}: {fio.stdout.read()}")
        finally:
            fio.kill()
