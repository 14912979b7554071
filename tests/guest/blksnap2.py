# SPDX-License-Identifier: GPL-2.0
"""The control ABI of 2025 by hand, as blksnap.py has that of 2022: numbers and layouts written
down a second time, independently of the driver, of its headers and of our library."""

import contextlib
import errno
import os
import struct
import uuid
from collections import namedtuple

from blksnap import address_of, dev_of, ioctl, size_of, state_of, until

CONTROL = "/dev/blksnap-control"
NAME = b"blksnap"

# Of the block device.
ATTACH = 0xC030128E
DETACH = 0xC020128F
CTL = 0xC0301290
CBTINFO, CBTMAP, CBTDIRTY, SNAPSHOTADD, SNAPSHOTINFO = range(5)
# The sizes of the structures of these commands; of the first, 33 bytes are enough.
SIZES = {CBTINFO: 40, CBTMAP: 16, CBTDIRTY: 16, SNAPSHOTADD: 16, SNAPSHOTINFO: 36}

# Of the control device.
VERSION = 0x80085600
SNAPSHOT_CREATE = 0xC0205601
SNAPSHOT_DESTROY = 0x40105602
SNAPSHOT_TAKE = 0x40105603
SNAPSHOT_COLLECT = 0x80105604
SNAPSHOT_WAIT_EVENT = 0x90005605

CORRUPTED, NO_SPACE = 0, 1

CbtInfo = namedtuple("CbtInfo", "capacity block_size block_count generation changes_number")
Event = namedtuple("Event", "code time dev errno sectors")

# More sectors than there is room for anywhere.
NO_LIMIT = 1 << 40


class Control2:
    """One open file of the control device."""

    def __init__(self):
        self.fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, command, buffer):
        return ioctl(self.fd, command, buffer)

    def version(self):
        buffer = bytearray(8)
        self.call(VERSION, buffer)
        return struct.unpack("4H", buffer)

    def create(self, path, limit=NO_LIMIT):
        """A snapshot with that storage, which may become so many sectors large; its name."""
        text = bytearray(os.fsencode(path) + b"\0")
        buffer = bytearray(struct.pack("2Q16x", limit, address_of(text)))
        self.call(SNAPSHOT_CREATE, buffer)
        return uuid.UUID(bytes=bytes(buffer[16:]))

    def destroy(self, name):
        self.call(SNAPSHOT_DESTROY, bytearray(name.bytes))

    def take(self, name):
        self.call(SNAPSHOT_TAKE, bytearray(name.bytes))

    def snapshots(self):
        """The names, in the order in which they are told."""
        asked = bytearray(16)
        self.call(SNAPSHOT_COLLECT, asked)
        count = struct.unpack_from("I", asked)[0]
        while True:
            array = bytearray(16 * max(count, 1))
            asked = bytearray(struct.pack("I4xQ", count, address_of(array)))
            try:
                self.call(SNAPSHOT_COLLECT, asked)
            except OSError as error:
                # There may be more by now; not for ever.
                more = struct.unpack_from("I", asked)[0]
                if error.errno != errno.ENODATA or more <= count:
                    raise
                count = more
                continue
            count = struct.unpack_from("I", asked)[0]
            return [uuid.UUID(bytes=bytes(array[at:at + 16])) for at in range(0, 16 * count, 16)]

    def wait_event(self, name, timeout_ms=0):
        buffer = bytearray(4096)
        struct.pack_into("16sI", buffer, 0, name.bytes, timeout_ms)
        self.call(SNAPSHOT_WAIT_EVENT, buffer)
        code, label = struct.unpack_from("=Iq", buffer, 20)
        if code == CORRUPTED:
            major, minor, number = struct.unpack_from("=2Ii", buffer, 32)
            return Event(code, label, (major, minor), number, None)
        if code == NO_SPACE:
            return Event(code, label, None, None, struct.unpack_from("Q", buffer, 32)[0])
        raise AssertionError(f"event with code {code}")

    def poll_events(self, name):
        """All events that wait."""
        events = []
        while True:
            try:
                events.append(self.wait_event(name, 0))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return events

    def losses(self, name, count):
        """The events that tell of lost images, at least so many."""
        found = []
        until(lambda: found.extend(event for event in self.poll_events(name) if event.code == CORRUPTED)
              or len(found) >= count)
        return found


class Tracked:
    """The commands of one block device, opened as clients do it."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def attach(self, name=NAME, opt=0, optlen=0):
        ioctl(self.fd, ATTACH, bytearray(struct.pack("32sQI4x", name, opt, optlen)))

    def detach(self, name=NAME):
        ioctl(self.fd, DETACH, bytearray(struct.pack("32s", name)))

    def ctl(self, command, buffer, name=NAME, optlen=None):
        """A command with a buffer that is changed in place, or with an address and a length."""
        address = buffer if isinstance(buffer, int) else address_of(buffer)
        length = len(buffer) if optlen is None else optlen
        outer = bytearray(struct.pack("32s2IQ", name, command, length, address))
        before = bytes(outer)
        result = ioctl(self.fd, CTL, outer)
        if result or bytes(outer) != before:
            raise AssertionError(f"command {command}: result {result}, {bytes(outer).hex()} was {before.hex()}")

    def cbtinfo(self):
        buffer = bytearray(40)
        self.ctl(CBTINFO, buffer)
        capacity, size, count, generation, number = struct.unpack("Q2I16sB7x", buffer)
        return CbtInfo(capacity, size, count, uuid.UUID(bytes=generation), number)

    def cbtmap(self, offset=0, length=None):
        """The part of the map that was asked for, or all of it. What is past its end is 0xee."""
        if length is None:
            length = self.cbtinfo().block_count - offset
        buffer = bytearray(b"\xee" * length)
        self.ctl(CBTMAP, bytearray(struct.pack("2IQ", offset, length, address_of(buffer))))
        return bytes(buffer)

    def cbtdirty(self, ranges):
        array = bytearray(b"".join(struct.pack("2Q", *item) for item in ranges))
        self.ctl(CBTDIRTY, bytearray(struct.pack("I4xQ", len(ranges), address_of(array))))

    def snapshot_add(self, name):
        self.ctl(SNAPSHOTADD, bytearray(name.bytes))

    def snapshot_info(self):
        """The error and the image's name."""
        buffer = bytearray(b"\xee" * 36)
        self.ctl(SNAPSHOTINFO, buffer)
        number, image = struct.unpack("i32s", buffer)
        text, _, rest = image.partition(b"\0")
        if len(text) == 32 or rest.strip(b"\0"):
            raise AssertionError(f"name of the image: {image}")
        return number, text.decode()

    def add(self, name):
        """As clients do it: the device is attached if it was not."""
        try:
            self.snapshot_add(name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            try:
                self.attach()
            except OSError as other:
                # Somebody else was just doing that.
                if other.errno != errno.EALREADY:
                    raise
            self.snapshot_add(name)


@contextlib.contextmanager
def attached(*paths):
    """Devices with the filter, each as a Tracked, for the time of a `with` block."""
    with contextlib.ExitStack() as stack:
        found = []
        for path in paths:
            device = stack.enter_context(Tracked(path))
            device.attach()
            stack.callback(device.detach)
            found.append(device)
        yield found[0] if len(paths) == 1 else found


def image_of(device):
    """The node that the image of a device has."""
    return "/dev/blksnap-{}-{}".format(*dev_of(device))


class Snapshot2:
    """A snapshot of devices with that storage, destroyed at the end of a `with` block. The
    devices stay attached."""

    def __init__(self, devices, storage, limit=NO_LIMIT, take=True):
        self.control = Control2()
        self.devices = [devices] if isinstance(devices, str) else list(devices)
        self.id = None
        try:
            self.id = self.control.create(storage, limit)
            for path in self.devices:
                with Tracked(path) as device:
                    device.add(self.id)
            if take:
                self.take()
        except BaseException:
            self.destroy()
            raise

    @classmethod
    def adopt(cls, name, devices):
        """One that somebody else has made; these devices are added."""
        snapshot = cls.__new__(cls)
        snapshot.control, snapshot.devices, snapshot.id = Control2(), list(devices), name
        for path in devices:
            with Tracked(path) as device:
                device.add(name)
        return snapshot

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def destroy(self):
        """May be called again."""
        if self.id:
            try:
                self.control.destroy(self.id)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
        self.id = None
        self.control.close()

    def take(self):
        self.control.take(self.id)

    @property
    def images(self):
        """The paths of the images, in the order of the devices."""
        found = []
        for path in self.devices:
            with Tracked(path) as device:
                found.append("/dev/" + device.snapshot_info()[1])
        return found

    @property
    def image(self):
        return self.images[0]

    def events(self):
        return self.control.poll_events(self.id)

    def wait_event(self, timeout_ms):
        return self.control.wait_event(self.id, timeout_ms)

    def losses(self, count):
        return self.control.losses(self.id, count)

    def state(self):
        """What sysfs shows of this snapshot."""
        return state_of(self.id)

    def is_good(self):
        return self.state()["state"] == "taken"


def map_size(path, block=65536):
    return -(-size_of(path) // block)


def remove_all():
    """Destroys all snapshots of this ABI; says what there was. The trackers are those of blksnap.py."""
    if not os.path.exists(CONTROL):
        return []
    found = []
    with Control2() as control:
        for name in control.snapshots():
            found.append(f"snapshot {name} of the ABI of 2025")
            try:
                control.destroy(name)
            except OSError as error:
                # Somebody else was just doing that.
                if error.errno != errno.ENODEV:
                    raise
    return found
