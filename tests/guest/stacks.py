# SPDX-License-Identifier: GPL-2.0
"""Devices made of others, of kinds that a distribution's kernel has and our own test kernels do not. As
in devices.py, each for the time of a `with` block, and each gives the path of a node."""

import contextlib
import itertools
import os
from pathlib import Path

import devices
from blksnap import size_of, until
from devices import MIB
from tap import sh

_numbers = itertools.count()

# Without udev, in a machine that has no daemons, and no larger than need be.
LVM = """
devices/obtain_device_list_from_udev=0 devices/external_device_info_source="none" devices/use_devicesfile=0
activation/udev_sync=0 activation/udev_rules=0 activation/monitoring=0
global/use_lvmpolld=0 global/event_activation=0 backup/backup=0 backup/archive=0
"""


KEY = "/tmp/luks.key"


@contextlib.contextmanager
def luks(device):
    """LUKS, with a password that takes no time to check."""
    Path(KEY).write_text("password")
    sh("modprobe", "dm-crypt")
    sh("cryptsetup", "luksFormat", "-q", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", device, KEY)
    with luks_opened(device) as path:
        yield path


@contextlib.contextmanager
def luks_opened(device, *options):
    """What is in a device that luks() has made, or in a copy of it."""
    name = f"luks{next(_numbers)}"
    sh("cryptsetup", "open", f"--key-file={KEY}", *options, device, name)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        sh("cryptsetup", "close", name)


class VolumeGroup:
    """A volume group on some disks, and on no others that look the same."""

    def __init__(self, disks, name=None):
        """A new one, or one of that name which is there, on copies of its disks."""
        self.name = name or f"vg{next(_numbers)}"
        self.disks = disks
        accepted = ", ".join(f'"a|^{disk}$|"' for disk in disks)
        self.config = " ".join(LVM.split()) + f' devices/global_filter=[{accepted}, "r|.*|"]'
        if name:
            self("vgchange", "-ay", name)
        else:
            self("vgcreate", "-y", "-s", "1m", self.name, *disks)

    def __call__(self, command, *arguments):
        """A command of LVM; gives what it prints."""
        os.makedirs("/run/lock/lvm", exist_ok=True)
        return sh(command, "--config", self.config, *arguments)

    def volume(self, name, size, *options):
        """A new volume of so many bytes; gives its path."""
        options = [str(option) for option in options]
        places = [option for option in options if option in self.disks]
        options = [option for option in options if option not in places]
        self("lvcreate", "-y", "-Wn", "-Zn", "-n", name, "-L", f"{size}b", *options, self.name, *places)
        return f"/dev/mapper/{self.name}-{name}"

    def remove(self):
        self("vgchange", "-an", self.name)
        self("vgremove", "-f", "-y", self.name)
        self("pvremove", "-f", "-y", *self.disks)


@contextlib.contextmanager
def volume_group(*disks, name=None):
    """A VolumeGroup. Its volumes go with it."""
    group = VolumeGroup(disks, name)
    try:
        yield group
    finally:
        group.remove()


@contextlib.contextmanager
def bcache(backing, cache):
    """bcache that writes to the cache first."""
    sh("modprobe", "bcache")
    sh("wipefs", "-qa", backing, cache)
    sh("make-bcache", "--wipe-bcache", "--writeback", "--bucket", "16k", "-B", backing, "-C", cache)
    for device in (cache, backing):
        Path("/sys/fs/bcache/register").write_text(device)
    found = until(lambda: list(Path("/sys/block").glob("bcache*")))
    caches = [path for path in Path("/sys/fs/bcache").iterdir() if (path / "cache0").exists()]
    # All of it is to go by way of the cache, whatever its order.
    (found[0] / "bcache/sequential_cutoff").write_text("0")
    try:
        yield f"/dev/{found[0].name}"
    finally:
        (found[0] / "bcache/stop").write_text("1")
        for path in caches:
            (path / "stop").write_text("1")
        until(lambda: not found[0].exists() and not any(path.exists() for path in caches))


def _zeros(device, length=MIB):
    sh("dd", "if=/dev/zero", f"of={device}", f"bs={min(length, size_of(device))}", "count=1", "conv=fsync")


@contextlib.contextmanager
def dm_cache(origin, fast):
    """dm-cache that writes back, with its metadata at the beginning of the fast device."""
    sh("modprobe", "dm-cache-smq")
    _zeros(fast)
    with devices.dm(devices.linear(fast, 8192)) as metadata, devices.dm(devices.linear(fast, offset=8192)) as data:
        with devices.dm(f"0 {size_of(origin) // 512} cache {metadata} {data} {origin} 128 1 writeback smq 0") as path:
            yield path


@contextlib.contextmanager
def dm_writecache(origin, fast):
    """dm-writecache, on a device that is no memory."""
    sh("modprobe", "dm-writecache")
    _zeros(fast)
    with devices.dm(f"0 {size_of(origin) // 512} writecache s {origin} {fast} 512 0") as path:
        try:
            yield path
        finally:
            sh("dmsetup", "message", path, "0", "flush")


@contextlib.contextmanager
def integrity(device):
    """dm-integrity with a journal."""
    sh("modprobe", "dm-integrity")
    _zeros(device)
    # It tells how large it is only when it has made its metadata.
    with devices.dm(f"0 1 integrity {device} 0 4 J 1 internal_hash:crc32c"):
        pass
    size = _provided(device)
    with devices.dm(f"0 {size} integrity {device} 0 4 J 1 internal_hash:crc32c") as path:
        yield path


def _provided(device):
    """The sectors that dm-integrity has on the device, as its superblock says."""
    with open(device, "rb") as file:
        superblock = file.read(512)
    # magic[8], version, log2_interleave, integrity_tag_size (2), journal_sections (4), provided_data_sectors
    return int.from_bytes(superblock[16:24], "little")


@contextlib.contextmanager
def multipath(one, other):
    """A device with two paths, which end at the same place."""
    sh("modprobe", "dm-multipath")
    sh("modprobe", "dm-round-robin")
    paths = " ".join(f"round-robin 0 1 1 {path} 1" for path in (one, other))
    with devices.dm(f"0 {size_of(one) // 512} multipath 0 0 2 1 {paths}") as path:
        yield path


@contextlib.contextmanager
def nbd(size):
    """A network block device that is served by qemu on this machine."""
    sh("modprobe", "nbd", "nbds_max=2", "max_part=0")
    with devices.file(size) as backing:
        sh("qemu-nbd", "-c", "/dev/nbd0", "-f", "raw", "--cache=writeback", "--discard=unmap", backing)
        until(lambda: size_of("/dev/nbd0") == size)
        try:
            yield "/dev/nbd0"
        finally:
            sh("qemu-nbd", "-d", "/dev/nbd0")
            until(lambda: not Path("/sys/block/nbd0/pid").exists())


@contextlib.contextmanager
def array(level, *disks):
    """A RAID of md."""
    sh("modprobe", {"5": "raid456", "6": "raid456"}.get(level, f"raid{level}"))
    path = f"/dev/md{100 + next(_numbers)}"
    sh("mdadm", "--create", path, "--run", f"--level={level}", f"--raid-devices={len(disks)}", "--metadata=1.2",
       "--assume-clean", *disks)
    try:
        yield path
    finally:
        sh("mdadm", "--stop", path)
        sh("mdadm", "--zero-superblock", *disks)
