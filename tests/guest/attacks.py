# SPDX-License-Identifier: GPL-2.0
"""What root may try with a file that is storage: everything that takes its blocks away, moves them,
shares them or writes to them. Each attack gets a Target, and raises OSError if it is refused."""

import contextlib
import ctypes
import errno
import mmap
import os
import struct

from blksnap import ioctl
from devices import extents
from tap import sh

MIB = 1 << 20
BLOCK = 4096

FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
IMMUTABLE, APPEND_ONLY, NO_COW, COMPRESSED = 0x10, 0x20, 0x800000, 0x4
EXT4_MIGRATE, EXT4_MOVE_EXT, EXT4_SWAP_BOOT = 0x6609, 0xC028660F, 0x6611
XFS_UNRESVSP64, XFS_FREESP64, XFS_ZERO_RANGE = 0x4030582B, 0x40305825, 0x40305839
XFS_EXCHANGE_RANGE = 0x40285881
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Target:
    """A file, and what was opened and mapped before anybody wanted it as storage."""

    def __init__(self, path, mapped=True):
        self.path = path
        self.directory = os.path.dirname(path)
        self.reader = os.open(path, os.O_RDONLY)
        self.writer = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.memory = mmap.mmap(self.writer, MIB) if mapped else None
        # Another file, of the same size and with blocks, to be exchanged with it.
        self.other_path = f"{path}.other"
        self.other = os.open(self.other_path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self.other, 0, 4 * MIB)
        os.pwrite(self.other, b"o" * 4 * MIB, 0)
        os.fsync(self.other)

    def close(self):
        if self.memory:
            self.memory.close()
        for fd in (self.reader, self.writer, self.direct, self.other):
            os.close(fd)
        for path in (self.other_path, f"{self.path}.link", f"{self.path}.moved", f"{self.path}.clone"):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def fallocate(fd, mode, offset, length):
    if _libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def by_mode(mode):
    return lambda target: fallocate(target.writer, mode, 0, MIB)


def aligned(length):
    memory = mmap.mmap(-1, length)
    memory[:] = b"a" * length
    return memory


def append(target):
    os.pwrite(target.writer, b"a" * BLOCK, os.fstat(target.writer).st_size)


def copy_into(target):
    os.copy_file_range(target.other, target.writer, BLOCK, 0, 0)


def move_extents(target):
    ioctl(target.writer, EXT4_MOVE_EXT, bytearray(struct.pack("2I4Q", 0, target.other, 0, 0, 64, 0)))


def move_extents_as_donor(target):
    ioctl(target.other, EXT4_MOVE_EXT, bytearray(struct.pack("2I4Q", 0, target.writer, 0, 0, 64, 0)))


def exchange_range(target):
    ioctl(target.writer, XFS_EXCHANGE_RANGE, bytearray(struct.pack("iI4Q", target.other, 0, 0, 0, MIB, 0)))


def exchange_range_as_donor(target):
    ioctl(target.other, XFS_EXCHANGE_RANGE, bytearray(struct.pack("iI4Q", target.writer, 0, 0, 0, MIB, 0)))


def swap_extents(target):
    said = sh("xfs_io", "-c", f"swapext {target.other_path}", target.path, check=False)
    if said.strip():
        raise OSError(errno.EINVAL, said)


def clone_into(target):
    ioctl(target.writer, FICLONERANGE, bytearray(struct.pack("q3Q", target.other, 0, MIB, 0)))


def clone_from(target):
    """Then its blocks belong to another file as well, which keeps what is in them."""
    ioctl(target.other, FICLONERANGE, bytearray(struct.pack("q3Q", target.reader, 0, MIB, 0)))


def dedupe(target):
    os.pwrite(target.other, os.pread(target.reader, MIB, 0), 0)
    asked = bytearray(struct.pack("2Q2HI", 0, MIB, 1, 0, 0) + struct.pack("q2QiI", target.other, 0, 0, 0, 0))
    ioctl(target.reader, FIDEDUPERANGE, asked)
    status = struct.unpack_from("i", asked, 24 + 24)[0]
    if status < 0:
        raise OSError(-status, "dedupe")


def flock64(word, start, length):
    return lambda target: ioctl(target.writer, word, bytearray(struct.pack("2h4x2qiI16x", 0, 0, start, length, 0, 0)))


def set_flags(bits):
    def attack(target):
        old = bytearray(8)
        ioctl(target.reader, FS_IOC_GETFLAGS, old)
        number = struct.unpack_from("I", old)[0]
        ioctl(target.reader, FS_IOC_SETFLAGS, bytearray(struct.pack("Q", number | bits)))
        ioctl(target.reader, FS_IOC_SETFLAGS, bytearray(struct.pack("Q", number)))
    return attack


def number(word, argument=b"\0" * 8):
    return lambda target: ioctl(target.writer, word, bytearray(argument))


def map_again(target):
    with mmap.mmap(target.writer, MIB) as memory:
        memory[0] = 1


def write_to_map(target):
    """In a process of its own, as it may be killed."""
    if target.memory is None:
        raise OSError(errno.ENOTSUP, "not mapped")
    child = os.fork()
    if not child:
        for at in range(0, MIB, 65536):
            target.memory[at:at + 8] = b"mapped!!"
        target.memory.flush()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(errno.EFAULT, f"ended with {status}")


def unlink(target):
    os.unlink(target.path)


def link_and_unlink(target):
    os.link(target.path, f"{target.path}.link")
    os.unlink(target.path)
    os.rename(f"{target.path}.link", target.path)


def rename_over(target):
    new = f"{target.path}.new"
    with open(new, "wb") as file:
        file.write(b"new" * 1000)
    try:
        os.rename(new, target.path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def rename_away(target):
    os.rename(target.path, f"{target.path}.moved")
    os.rename(f"{target.path}.moved", target.path)


def rename_onto_other(target):
    os.rename(target.path, target.other_path)
    os.rename(target.other_path, target.path)


def program(*command):
    """An attack by a program, which says by its exit status whether it was refused."""
    def attack(target):
        words = [word.format(path=target.path, directory=target.directory) for word in command]
        said = sh(" ".join([*words, "2>&1 || echo FAILED"]))
        if "FAILED" in said:
            raise OSError(errno.EBUSY, said)
        return said
    return attack


def loop_device(target):
    """Writes to it below what looks like a disk."""
    sh("modprobe", "loop")
    device = program("losetup", "-f", "--show", "{path}")(target).strip()
    try:
        program("dd", "if=/dev/urandom", f"of={device}", "bs=64k", "count=16", "oflag=direct")(target)
    finally:
        sh("losetup", "-d", device)


def as_swap(target):
    program("swapon", "{path}")(target)
    sh("swapoff", target.path)


# By name: what is done, on which file systems (all, if none is said), and whether it works with a file that
# nobody holds: so it is known that the test tries what it means to try.
ATTACKS = {
    "truncate to nothing": (lambda target: os.truncate(target.path, 0), (), True),
    "ftruncate to half": (lambda target: os.ftruncate(target.writer, 2 * MIB), (), True),
    "write": (lambda target: os.pwrite(target.writer, b"w" * MIB, 0), (), True),
    "direct write": (lambda target: os.pwritev(target.direct, [aligned(65536)], 0), (), True),
    "write behind its end": (append, (), True),
    "write by a new file": (lambda target: os.close(os.open(target.path, os.O_WRONLY | os.O_TRUNC)), (), True),
    "copy_file_range": (copy_into, (), True),
    "fallocate: punch": (by_mode(PUNCH | KEEP_SIZE), (), True),
    "fallocate: collapse": (by_mode(COLLAPSE), (), True),
    "fallocate: insert": (by_mode(INSERT), (), True),
    "fallocate: zero": (by_mode(ZERO), (), True),
    "fallocate: unshare": (by_mode(UNSHARE), ("xfs",), True),
    "fallocate: more": (lambda target: fallocate(target.writer, 0, 0, 24 * MIB), (), True),
    "FREESP": (flock64(XFS_FREESP64, 0, 0), ("xfs",), False),
    "UNRESVSP": (flock64(XFS_UNRESVSP64, 0, MIB), ("xfs",), True),
    "ZERO_RANGE": (flock64(XFS_ZERO_RANGE, 0, MIB), ("xfs",), True),
    "MOVE_EXT": (move_extents, ("ext4",), True),
    "MOVE_EXT, as the donor": (move_extents_as_donor, ("ext4",), True),
    "MIGRATE": (number(EXT4_MIGRATE), ("ext4",), False),
    "SWAP_BOOT": (number(EXT4_SWAP_BOOT), ("ext4",), False),
    "e4defrag": (program("e4defrag", "-v", "{path}"), ("ext4",), False),
    "EXCHANGE_RANGE": (exchange_range, ("xfs",), False),
    "EXCHANGE_RANGE, as the donor": (exchange_range_as_donor, ("xfs",), False),
    "SWAPEXT": (swap_extents, ("xfs",), False),
    "xfs_fsr": (program("xfs_fsr", "-v", "{path}"), ("xfs",), False),
    "FICLONERANGE into it": (clone_into, ("xfs",), True),
    "FICLONERANGE from it": (clone_from, ("xfs",), True),
    "cp --reflink": (program("cp", "--reflink=always", "{path}", "{path}.clone"), ("xfs",), True),
    "FIDEDUPERANGE": (dedupe, ("xfs",), True),
    "write to a map": (write_to_map, (), True),
    "map again": (map_again, (), True),
    "chattr +i": (set_flags(IMMUTABLE), (), True),
    "chattr +a": (set_flags(APPEND_ONLY), (), True),
    "a loop device": (loop_device, (), True),
    "swapon": (as_swap, (), False),
    "fstrim": (program("fstrim", "{directory}"), (), False),
    "remount,ro": (program("mount", "-o", "remount,ro", "{directory}"), (), False),
    "umount": (program("umount", "{directory}"), (), False),
    "rename away": (rename_away, (), True),
    "rename onto another": (rename_onto_other, (), False),
    "link and unlink": (link_and_unlink, (), True),
    "rename over": (rename_over, (), True),
    "unlink": (unlink, (), True),
}


def of(kind):
    return {name: (attack, works) for name, (attack, kinds, works) in ATTACKS.items() if not kinds or kind in kinds}


def places(target):
    """Where its blocks are, each of 4 KiB, by what was opened before."""
    return [sector for first, count in extents(f"/proc/self/fd/{target.reader}")
            for sector in range(first, first + count, 8)]
