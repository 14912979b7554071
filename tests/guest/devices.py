# SPDX-License-Identifier: GPL-2.0
"""Devices of all kinds, for the time of a `with` block. Each gives the path of a node."""

import contextlib
import itertools
import os
import re
import struct
import time
from pathlib import Path

from blksnap import ioctl, size_of, until
from tap import sh

_numbers = itertools.count()

MIB = 1 << 20

# What the check of a vfat says of one that is whole, but mounted.
VFAT_SAYS = re.compile(r"fsck\.fat |Dirty bit is set|\s*Automatically removing dirty bit|"
                       r"\s*Leaving filesystem unchanged|\S+: \d+ files|$")


def _name(kind):
    return f"{kind}{next(_numbers)}"


@contextlib.contextmanager
def file(size, directory="/tmp"):
    """A sparse file."""
    path = f"{directory}/{_name('file')}"
    with open(path, "wb") as out:
        out.truncate(size)
    try:
        yield path
    finally:
        os.unlink(path)


@contextlib.contextmanager
def loop(size=None, backing=None, options=()):
    """A loop device on a file, or on a new one of that size."""
    with contextlib.ExitStack() as stack:
        backing = backing or stack.enter_context(file(size))
        sh("modprobe", "loop")
        path = sh("losetup", "-f", "--show", *options, backing).strip()
        stack.callback(sh, "losetup", "-d", path, check=False)
        yield path


@contextlib.contextmanager
def brd(size, count=1):
    """RAM disks: bio based. Gives the first one, or a list if there are more."""
    sh("modprobe", "brd", f"rd_nr={count}", f"rd_size={size >> 10}")
    try:
        paths = [f"/dev/ram{n}" for n in range(count)]
        yield paths[0] if count == 1 else paths
    finally:
        sh("modprobe", "-r", "brd")


class NullBlk:
    """A null_blk made by configfs; memory backed unless told otherwise."""

    def __init__(self, size, **attributes):
        sh("modprobe", "null_blk", "nr_devices=0")
        self.name = _name("nb")
        self.config = Path("/sys/kernel/config/nullb") / self.name
        self.config.mkdir()
        attributes = {"size": size // MIB, "memory_backed": 1, "irqmode": 0, "queue_mode": 2,
                      "submit_queues": 2, "hw_queue_depth": 64, "max_sectors": 2048,
                      "discard": 1, **attributes}
        for key, value in attributes.items():
            (self.config / key).write_text(str(value))
        (self.config / "power").write_text("1")
        self.path = f"/dev/{self.name}"

    def power_off(self):
        (self.config / "power").write_text("0")

    def remove(self):
        if self.config.exists():
            self.config.rmdir()


@contextlib.contextmanager
def null_blk(size, **attributes):
    disk = NullBlk(size, **attributes)
    try:
        yield disk.path
    finally:
        disk.remove()


@contextlib.contextmanager
def zram(size):
    sh("modprobe", "zram", "num_devices=0")
    number = Path("/sys/class/zram-control/hot_add").read_text().strip()
    Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
    try:
        yield f"/dev/zram{number}"
    finally:
        Path("/sys/class/zram-control/hot_remove").write_text(number)


@contextlib.contextmanager
def dm(table, name=None):
    """A device mapper device from a table; `{n}` is not replaced: give whole lines."""
    name = name or _name("dm-test")
    sh("dmsetup", "create", name, "--table", table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        sh("dmsetup", "resume", name)  # if a failure has left it suspended
        # An opener that is just going away is no failure.
        until(lambda: not sh(f"dmsetup remove {name} 2>&1 || true"), 20)


def linear(device, sectors=None, offset=0):
    """The table line of dm-linear."""
    return f"0 {sectors or size_of(device) // 512 - offset} linear {device} {offset}"


@contextlib.contextmanager
def thin(size, metadata, data):
    """A thin device of a pool of its own, on these two devices."""
    sh("modprobe", "dm-thin-pool")
    sh("dd", "if=/dev/zero", f"of={metadata}", "bs=4096", "count=1", "conv=fsync")
    with dm(f"0 {size_of(data) // 512} thin-pool {metadata} {data} 128 0") as pool:
        sh("dmsetup", "message", pool, "0", "create_thin 0")
        with dm(f"0 {size // 512} thin {pool} 0") as path:
            yield path


def delay(device, read_ms, write_ms):
    sh("modprobe", "dm-delay")
    return f"0 {size_of(device) // 512} delay {device} 0 {read_ms} {device} 0 {write_ms}"


@contextlib.contextmanager
def partitions(disk, script):
    """Partitions a disk by an sfdisk script; gives the partitions' paths. The table is
    removed at the end."""
    write_table(disk, script)
    try:
        yield partition_paths(disk)
    finally:
        sh("wipefs", "-qa", "--force", disk)
        sh("blockdev", "--rereadpt", disk)


def write_table(disk, script):
    sh(f"printf '{script}' | sfdisk -q --wipe=never --no-tell-kernel {disk} && blockdev --rereadpt {disk}")


def partition_paths(disk):
    name = Path(disk).name
    found = [path.parent for path in Path(f"/sys/block/{name}").glob("*/partition")]
    found.sort(key=lambda path: int((path / "partition").read_text()))
    return [f"/dev/{path.name}" for path in found]


@contextlib.contextmanager
def raid1(first, second):
    sh("modprobe", "raid1")
    path = f"/dev/md{next(_numbers)}"
    sh("mdadm", "--create", path, "--run", "--level=1", "--raid-devices=2", "--metadata=1.2",
       "--assume-clean", first, second)
    try:
        yield path
    finally:
        sh("mdadm", "--stop", path)
        sh("mdadm", "--zero-superblock", first, second)


@contextlib.contextmanager
def mounted(device, options="", where=None):
    where = where or f"/mnt/{_name('at')}"
    os.makedirs(where, exist_ok=True)
    sh("mount", *(["-o", options] if options else []), device, where)
    try:
        yield where
    finally:
        # What has just closed a file in it may not be through.
        for _ in range(20):
            if not sh(f"umount {where} 2>&1 || true"):
                break
            time.sleep(0.1)
        else:
            sh("umount", where)


@contextlib.contextmanager
def frozen(where):
    sh("fsfreeze", "-f", where)
    try:
        yield
    finally:
        sh("fsfreeze", "-u", where)


def make_fs(kind, device, size=None):
    """Makes a file system, of the device's size or smaller."""
    if kind == "ext4":
        sh("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", device, *([f"{size >> 10}k"] if size else []))
    elif kind == "xfs":
        sh("mkfs.xfs", "-q", "-f", "-K", "--unsupported", *(["-d", f"size={size}"] if size else []), device)
    elif kind == "btrfs":
        sh("mkfs.btrfs", "-q", "-f", "-K", *(["-b", str(size)] if size else []), device)
    elif kind == "f2fs":
        sh("mkfs.f2fs", "-q", "-f", "-t", "0", device)
    elif kind == "vfat":
        sh("mkfs.vfat", device)
    else:
        raise ValueError(kind)


def check_fs(kind, device):
    """Fails unless the file system is clean."""
    if kind == "ext4":
        sh("e2fsck", "-fn", device)
    elif kind == "btrfs":
        # Its data, too.
        sh("btrfs", "check", "--readonly", "--check-data-csum", device)
    elif kind == "f2fs":
        found = sh("fsck.f2fs", "--dry-run", device)
        if "[Fail]" in found or "[Ok..]" not in found:
            raise AssertionError(found)
    elif kind == "vfat":
        found = sh("fsck.vfat", "-n", device, check=False).splitlines()
        # While it is mounted it is marked as such.
        if wrong := [line for line in found if not VFAT_SAYS.match(line)]:
            raise AssertionError("\n".join(wrong))
    else:
        sh("xfs_repair", "-n", device)


def unused_of_ext4(device):
    """The ranges of sectors that an ext4 which nobody has mounted, or an image of one, does not use: what its
    bitmaps call free, and its journal, which is empty, but for its first block."""
    text = sh("dumpe2fs", device)
    size = int(re.search(r"^Block size:\s+(\d+)$", text, re.MULTILINE)[1]) // 512
    found = []
    for line in re.findall(r"^\s+Free blocks: (.+)$", text, re.MULTILINE):
        for part in line.split(", "):
            first, _, last = part.partition("-")
            found.append((int(first) * size, (int(last or first) - int(first) + 1) * size))
    leaves = re.findall(r"(\d+) +- +(\d+) +(\d+) +- +(\d+) +\d+ *$", sh("debugfs", "-R", "dump_extents -l <8>", device),
                        re.MULTILINE)
    for logical, _, first, last in leaves:
        skip = int(logical) == 0
        found.append(((int(first) + skip) * size, (int(last) - int(first) + 1 - skip) * size))
    return found


def extents(path):
    """The ranges of a file on its device, as FIEMAP has them: (first sector, sectors)."""
    found = []
    fd = os.open(path, os.O_RDONLY)
    try:
        start = 0
        while True:
            room = 64
            request = bytearray(32 + 56 * room)
            # start, length, flags (FIEMAP_FLAG_SYNC), mapped, room, reserved
            struct.pack_into("2Q4I", request, 0, start, (1 << 64) - 1 - start, 1, 0, room, 0)
            ioctl(fd, 0xC020660B, request)
            count = struct.unpack_from("I", request, 20)[0]
            for number in range(count):
                logical, physical, length, _, _, flags = struct.unpack_from("3Q2QI", request, 32 + 56 * number)
                found.append((physical // 512, length // 512))
                start = logical + length
                if flags & 1:  # the last one
                    return found
            if not count:
                return found
    finally:
        os.close(fd)


def allocated(path, size):
    """A file with that much space; returns its ranges."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    return extents(path)


@contextlib.contextmanager
def failing(disk, *rules):
    """Block layer error injection: rules as `op=WRITE,start=8,nr_sectors=8,status=IOERR`."""
    control = Path(f"/sys/kernel/debug/block/{Path(disk).name}/error_injection")
    try:
        for rule in rules:
            control.write_text(f"add,{rule}")
        yield
    finally:
        control.write_text("removeall")
