# SPDX-License-Identifier: GPL-2.0
"""Storage that the kernel holds: file systems for it, and load that uses it up."""

import contextlib
import hashlib
import itertools
import os
from pathlib import Path

import devices
from blksnap import parameters, until
from blockio import MIB, pattern, write
from tap import Skip, cases, rng, sh

# Sectors: a portion, and what a snapshot here may have at the most.
PORTION = 8192
HALF = PORTION // 2
LIMIT = 3 * PORTION
SIZE = 32 * MIB
KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
# Of these it is known where a file lies, and it can be kept there.
WITH_EXTENTS = ("ext4", "xfs")

_numbers = itertools.count()


def some(count, all_of_them):
    """As `cases`, for so many of them, others in each run; with ALL=1, as make soak says, for all."""
    if os.environ.get("ALL"):
        return cases(all_of_them)
    names = list(all_of_them)
    chosen = rng(names[0]).sample(names, count)
    return cases({name: all_of_them[name] for name in names if name in chosen})


@contextlib.contextmanager
def portions(size=PORTION, **more):
    """Small portions, and no more copied than is overwritten."""
    with parameters(diff_storage_minimum=size, copy_ahead_maximum_ratio=1, **more):
        yield


@contextlib.contextmanager
def _mount(*arguments):
    """Mounts; at the end it is unmounted at once, for nobody may hold it any more."""
    where = f"/mnt/held{next(_numbers)}"
    os.makedirs(where)
    sh("mount", *arguments, where)
    try:
        yield where
    except BaseException:
        sh("umount", "-l", where)
        raise
    sh("umount", where)


def have(kind):
    """Skips the case if this kernel has no such file system."""
    sh("modprobe", "-q", kind, check=False)
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        raise Skip(f"the kernel has no {kind}")


def make(kind, device, blocks=4096):
    """Makes one with blocks of that size, if it can be chosen: a small ext4 has others."""
    have(kind)
    if kind == "ext4":
        sh("mkfs.ext4", "-q", "-F", "-b", blocks, "-E", "nodiscard,lazy_itable_init=0", device)
    else:
        devices.make_fs(kind, device)


@contextlib.contextmanager
def file_system(kind, device="/dev/vda", options=None, blocks=4096):
    """A new file system; gives a directory on it. It is whole at the end."""
    if kind == "tmpfs":
        with _mount("-t", "tmpfs", "-o", options or "size=192M", "tmpfs") as where:
            yield where
        return
    real = "ext4" if kind == "overlay" else kind
    make(real, device, blocks)
    with _mount(*(["-o", options] if options else []), device) as where:
        if kind != "overlay":
            yield where
        else:
            for name in ("lower", "upper", "work"):
                os.mkdir(f"{where}/{name}")
            with _mount("-t", "overlay", "-o",
                        f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work", "overlay") as merged:
                yield merged
    devices.check_fs(real, device)


def new_file(path, size=0):
    """A file with so many bytes that are allocated."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
    finally:
        os.close(fd)
    return path


def hog(where, leave=0):
    """Takes all space that there is, or all but that much, and gives the file."""
    path = new_file(f"{where}/hog")
    with open(path, "r+b") as file:
        at = 0
        for piece in (16 * MIB, MIB, 65536, 4096):
            with contextlib.suppress(OSError):
                while _free(where) >= leave + piece:
                    os.posix_fallocate(file.fileno(), at, piece)
                    at += piece
        os.fsync(file.fileno())
    return path


def _free(where):
    """Bytes that are free for root: of ext4, also those that are reserved for him."""
    status = os.statvfs(where)
    return status.f_bfree * status.f_frsize


def sectors_free(where):
    """Sectors that are free for everybody."""
    status = os.statvfs(where)
    return status.f_bavail * status.f_frsize // 512


@contextlib.contextmanager
def disk(size=SIZE):
    """A disk to be captured, and what is on it."""
    with devices.null_blk(size) as path:
        data = pattern(size, "held")
        write(path, data)
        yield path, data


def fill(path, first, end, piece=128):
    """Overwrites these sectors, so that as many are copied."""
    for at in range(first, end, piece):
        write(path, b"f" * (min(piece, end - at) * 512), at * 512)


def fill_slowly(snapshot, path, first, end, limit=LIMIT, piece=128):
    """The same, but no faster than the storage grows, which has that limit.

    It grows when half a portion is left. That much is room for what is read, but not stored yet."""
    def has_room():
        state = snapshot.state()
        return state["capacity"] - state["filled"] >= HALF or state["capacity"] > limit - HALF
    for at in range(first, end, piece):
        until(has_room)
        fill(path, at, min(at + piece, end), piece)


def usable(snapshot):
    """The size of the storage in sectors."""
    return snapshot.state()["capacity"]


def grown(snapshot, sectors):
    """Waits until the storage has become so large."""
    try:
        until(lambda: usable(snapshot) == sectors, 30)
    except AssertionError as error:
        raise AssertionError(f"not {sectors} sectors: state {snapshot.state()}") from error


def sums(where):
    """What is in each file below that directory."""
    return {str(path.relative_to(where)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(where).rglob("*")) if path.is_file()}


def drop_caches():
    sh("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")
