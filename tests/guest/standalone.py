# SPDX-License-Identifier: GPL-2.0
"""The wrapping of agents that bring their own module, by hand: snapshots on one node, devices by path
on another one. It is the only way to storage that the kernel holds where block devices do not have
the commands of 2025: on a kernel that nobody patched."""

import contextlib
import errno
import os
import struct
import uuid

import blksnap2
from blksnap import address_of, ioctl
from blksnap2 import Control2, Snapshot2
from tap import sh

ATTACH, ATTACH_OLDER, DETACH, CTL, LOG = 0xC038468C, 0xC028468C, 0xC028468D, 0xC038468E, 0x4018468F
MOD, SETLOG, APPEND_STORAGE = 0x80285620, 0x40185621, 0x40285622


@contextlib.contextmanager
def served(names):
    """The module with those front ends, for the time of a `with` block."""
    sh("modprobe", "-r", "blksnap")
    sh("modprobe", "blksnap", f"frontends={names}")
    try:
        yield
    finally:
        sh("modprobe", "-r", "blksnap")
        sh("modprobe", "blksnap")


class Agent(Control2):
    """What such an agent does: snapshots on one node, devices by path on another one."""

    def __init__(self):
        self.fd = os.open("/dev/veeamblksnap", os.O_RDWR | os.O_CLOEXEC)
        self.devices = os.open("/dev/bdevfilter", os.O_RDWR | os.O_CLOEXEC)

    def close(self):
        if self.fd >= 0:
            os.close(self.devices)
        super().close()

    def device(self, word, layout, path, *rest, name=b"blksnap"):
        self.path = bytearray(path.encode() + b"\0")
        return ioctl(self.devices, word, bytearray(struct.pack(layout, address_of(self.path), name, *rest)))

    def attach(self, path, **options):
        self.device(ATTACH, "Q32sQI4x", path, 0, 0, **options)

    def detach(self, path, **options):
        self.device(DETACH, "Q32s", path, **options)

    def ctl(self, path, command, buffer, **options):
        self.device(CTL, "Q32s2IQ", path, command, len(buffer), address_of(buffer), **options)

    def create_empty(self):
        buffer = bytearray(struct.pack("2Q16x", 0, 0))
        self.call(blksnap2.SNAPSHOT_CREATE, buffer)
        return uuid.UUID(bytes=bytes(buffer[16:]))

    def append(self, name, path, ranges):
        device = bytearray(path.encode() + b"\0")
        array = bytearray(b"".join(struct.pack("2Q", *item) for item in ranges))
        self.call(APPEND_STORAGE, bytearray(struct.pack(
            "16sQI4xQ", name.bytes, address_of(device), len(ranges), address_of(array))))

    def info(self, path):
        buffer = bytearray(36)
        self.ctl(path, blksnap2.SNAPSHOTINFO, buffer)
        number, image = struct.unpack("i32s", buffer)
        return number, image.rstrip(b"\0").decode()


class AgentSnapshot(Snapshot2):
    """As Snapshot2, by these nodes."""

    def __init__(self, devices, storage, limit=blksnap2.NO_LIMIT, take=True):
        self.control = Agent()
        self.devices = [devices] if isinstance(devices, str) else list(devices)
        self.id = None
        try:
            self.id = self.control.create(storage, limit)
            for path in self.devices:
                try:
                    self.control.attach(path)
                except OSError as error:
                    if error.errno != errno.EALREADY:
                        raise
                self.control.ctl(path, blksnap2.SNAPSHOTADD, bytearray(self.id.bytes))
            if take:
                self.take()
        except BaseException:
            self.destroy()
            raise

    @property
    def images(self):
        return ["/dev/" + self.control.info(path)[1] for path in self.devices]
