# SPDX-License-Identifier: GPL-2.0
"""The control ABI of blksnap by hand: numbers and layouts written down a second time,
independently of the driver and of our library, so that the tests check them."""

import contextlib
import ctypes
import errno
import os
import struct
import threading
import time
import uuid
from collections import namedtuple
from pathlib import Path

CONTROL = "/dev/blksnap"
PARAMETERS = Path("/sys/module/blksnap/parameters")
SYSFS = Path("/sys/class/blksnap")

VERSION = 0x40085600
TRACKER_REMOVE = 0x40085601
TRACKER_COLLECT = 0x40105602
TRACKER_READ_CBT_MAP = 0x80185603
TRACKER_MARK_DIRTY_BLOCKS = 0x80185604
SNAPSHOT_CREATE = 0x40205605
SNAPSHOT_DESTROY = 0x80105606
SNAPSHOT_APPEND_STORAGE = 0x40285607
SNAPSHOT_TAKE = 0x80105608
SNAPSHOT_COLLECT = 0x40105609
SNAPSHOT_COLLECT_IMAGES = 0x4020560A
SNAPSHOT_WAIT_EVENT = 0x5000560B
# Of this module only, and of each ABI.
UNUSED = 0x40285641

LOW_FREE_SPACE, CORRUPTED = 0, 1

CbtInfo = namedtuple("CbtInfo", "dev blk_size capacity blk_count generation snap_number")
Event = namedtuple("Event", "code time sectors dev errno")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def ioctl(fd, command, argument):
    """Calls ioctl() with an address, or with a buffer that is changed in place. Other
    threads run meanwhile (fcntl.ioctl() would not let them)."""
    if isinstance(argument, bytearray):
        buffer = (ctypes.c_char * len(argument)).from_buffer(argument)  # keeps it alive
        argument = ctypes.addressof(buffer)
    result = _libc.ioctl(fd, command, argument)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{errno.errorcode.get(number, number)}: ioctl {command:#x}")
    return result


def address_of(buffer):
    """Where a bytearray is. Keep it alive."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer)) if buffer else 0


def give_unused(control, name, device, ranges, flags=0):
    """Tells a snapshot what was not used; of either ABI. The ranges may be an array of bytes."""
    if not isinstance(ranges, bytearray):
        ranges = bytearray(b"".join(struct.pack("2Q", *item) for item in ranges))
    control.call(UNUSED, bytearray(
        name.bytes + struct.pack("4IQ", *dev_of(device), flags, len(ranges) // 16, address_of(ranges))))


def dev_of(device):
    """The pair of numbers of a device, given as such or by path."""
    if isinstance(device, tuple):
        return device
    number = os.stat(device).st_rdev
    return os.major(number), os.minor(number)


class Control:
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

    def tracker_remove(self, device):
        self.call(TRACKER_REMOVE, bytearray(struct.pack("2I", *dev_of(device))))

    def _collect(self, command, size, room, head=b""):
        """The count, then the array; again if there have become more. Returns raw items."""
        while True:
            try:
                return self._collect_once(command, size, room, head)
            except OSError as error:
                if room is not None or error.errno not in (errno.ENOBUFS, errno.ENODATA):
                    raise

    def _collect_once(self, command, size, room, head):
        """Both calls of the protocol. Without `room`, there is as much as the first one tells."""
        def arguments(count, array):
            return bytearray(head + struct.pack("I4xQ", count, address_of(array)))
        asked = arguments(0, b"")
        self.call(command, asked)
        count = struct.unpack_from("I", asked, len(head))[0]
        while True:
            space = count if room is None else room
            array = bytearray(b"\xee" * (size * max(space, 1)))
            asked = arguments(space, array)
            try:
                self.call(command, asked)
                break
            except OSError as error:
                # There may be more by now than when it was asked how many; not for ever.
                more = struct.unpack_from("I", asked, len(head))[0]
                if room is not None or error.errno not in (errno.ENOBUFS, errno.ENODATA) or more <= count:
                    raise
                count = more
        count = struct.unpack_from("I", asked, len(head))[0]
        return [bytes(array[i * size:(i + 1) * size]) for i in range(count)]

    def trackers(self, room=None):
        infos = []
        for raw in self._collect(TRACKER_COLLECT, 48, room):
            major, minor, blk_size, capacity, count, generation, number = struct.unpack(
                "2II4xQI16sB3x", raw)
            infos.append(CbtInfo((major, minor), blk_size, capacity, count,
                                 uuid.UUID(bytes=generation), number))
        return infos

    def tracker(self, device):
        """What is said of one device, or None."""
        found = [info for info in self.trackers() if info.dev == dev_of(device)]
        return found[0] if found else None

    def read_cbt(self, device, offset=0, length=None):
        """The map, or the part asked for."""
        if length is not None:
            buffer = bytearray(length)
            done = self.call(TRACKER_READ_CBT_MAP, bytearray(
                struct.pack("2I2IQ", *dev_of(device), offset, length, address_of(buffer))))
            return bytes(buffer[:done])
        pieces = []
        while piece := self.read_cbt(device, offset, 1 << 20):
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def mark_dirty(self, device, ranges):
        array = bytearray(b"".join(struct.pack("2Q", *item) for item in ranges))
        self.call(TRACKER_MARK_DIRTY_BLOCKS, bytearray(
            struct.pack("2II4xQ", *dev_of(device), len(ranges), address_of(array))))

    def create(self, devices):
        array = bytearray(b"".join(struct.pack("2I", *dev_of(d)) for d in devices))
        buffer = bytearray(struct.pack("I4xQ16x", len(devices), address_of(array)))
        self.call(SNAPSHOT_CREATE, buffer)
        return uuid.UUID(bytes=bytes(buffer[16:]))

    def destroy(self, name):
        self.call(SNAPSHOT_DESTROY, bytearray(name.bytes))

    def append(self, name, device, ranges):
        array = bytearray(b"".join(struct.pack("2Q", *item) for item in ranges))
        self.call(SNAPSHOT_APPEND_STORAGE, bytearray(
            name.bytes + struct.pack("2II4xQ", *dev_of(device), len(ranges), address_of(array))))

    def take(self, name):
        self.call(SNAPSHOT_TAKE, bytearray(name.bytes))

    def snapshots(self, room=None):
        return [uuid.UUID(bytes=raw) for raw in self._collect(SNAPSHOT_COLLECT, 16, room)]

    def images(self, name, room=None):
        """Pairs of device numbers: the original's, the image's."""
        raw = self._collect(SNAPSHOT_COLLECT_IMAGES, 16, room, name.bytes)
        pairs = [struct.unpack("4I", item) for item in raw]
        return [((a, b), (c, d)) for a, b, c, d in pairs]

    def wait_event(self, name, timeout_ms=0):
        buffer = bytearray(4096)
        struct.pack_into("16sI", buffer, 0, name.bytes, timeout_ms)
        self.call(SNAPSHOT_WAIT_EVENT, buffer)
        code, label = struct.unpack_from("=Iq", buffer, 20)
        if code == LOW_FREE_SPACE:
            return Event(code, label, struct.unpack_from("Q", buffer, 32)[0], None, None)
        if code == CORRUPTED:
            major, minor, number = struct.unpack_from("3I", buffer, 32)
            return Event(code, label, None, (major, minor), number)
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
        """The events that tell of lost images, at least so many. They come when the last write to the
        storage has ended, and so later than errors of the images and the state in sysfs."""
        found = []
        until(lambda: found.extend(event for event in self.poll_events(name) if event.code == CORRUPTED)
              or len(found) >= count)
        return found


class Snapshot:
    """A snapshot of devices, destroyed at the end of a `with` block.

    `storage` is a device, used as a whole, or a list of (device, ranges)."""

    def __init__(self, devices, storage=(), take=True):
        self.control = Control()
        self.devices = [devices] if isinstance(devices, str) else list(devices)
        self.id = None
        try:
            self.id = self.control.create(self.devices)
            if isinstance(storage, str):
                storage = [(storage, None)]
            for device, ranges in storage:
                self.append(device, ranges)
            if take:
                self.take()
        except BaseException:
            self.destroy()
            raise

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

    def append(self, device, ranges=None):
        if ranges is None:
            ranges = [(0, size_of(device) // 512)]
        self.control.append(self.id, device, ranges)

    def take(self):
        self.control.take(self.id)

    @property
    def images(self):
        """The paths of the images, in the order of the devices."""
        return [f"/dev/blksnap-image{image[1]}" for _, image in self.control.images(self.id)]

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


def state_of(snapshot):
    """What sysfs shows of a snapshot, as a dictionary; sizes are in sectors, as in commands."""
    def show(name):
        return (SYSFS / f"snapshot-{snapshot}" / name).read_text().strip()
    sizes = {"capacity": "storage_size", "filled": "storage_used", "copied": "bytes_copied",
             "requested": "storage_requested"}
    return {"state": show("state"), "error": int(show("error")),
            "retried": int(show("reads_retried")), "copying": int(show("copies_in_flight")),
            **{key: int(show(name)) // 512 for key, name in sizes.items()}}


def states():
    """The same of all snapshots, by the names of their directories."""
    found = {}
    for path in SYSFS.glob("snapshot-*"):
        try:
            found[path.name] = state_of(path.name.removeprefix("snapshot-"))
        except OSError as error:
            # It has just been destroyed.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


class Feeder(threading.Thread):
    """Appends storage on each low-space event, as a client does, until stop()."""

    def __init__(self, snapshot, append):
        super().__init__(daemon=True)
        self.control = Control()
        self.id = snapshot.id
        self.append = append
        self.stopping = False
        self.requests = []
        self.others = []
        self.error = None

    def run(self):
        try:
            while not self.stopping:
                try:
                    event = self.control.wait_event(self.id, 100)
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        continue
                    if error.errno == errno.ESRCH:
                        return
                    raise
                if event.code == LOW_FREE_SPACE:
                    self.requests.append(event.sectors)
                    self.append(event.sectors)
                else:
                    self.others.append(event)
        except Exception as error:  # shown by stop()
            self.error = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def keep_pace(self):
        """Returns when more is free than the portion at which the next one is asked for. Writers do not
        wait for storage: without this the snapshot is lost if they are faster than this thread."""
        portion = int((PARAMETERS / "diff_storage_minimum").read_text()) // 2

        def has_room():
            state = state_of(self.id)
            return state["state"] != "taken" or state["capacity"] - state["filled"] > portion
        until(lambda: self.error or has_room())

    def stop(self):
        self.stopping = True
        self.join()
        self.control.close()
        if self.error:
            raise self.error


def size_of(device):
    """The size of a device in bytes."""
    fd = os.open(device, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


@contextlib.contextmanager
def parameters(**values):
    """Module parameters, for the time of a `with` block."""
    old = {name: (PARAMETERS / name).read_text() for name in values}
    try:
        for name, value in values.items():
            (PARAMETERS / name).write_text(str(value))
        yield
    finally:
        for name, value in old.items():
            (PARAMETERS / name).write_text(value)


def remove_all():
    """Destroys all snapshots and removes all trackers. Says what there was."""
    found = []
    with Control() as control:
        for name in control.snapshots():
            found.append(f"snapshot {name}")
            try:
                control.destroy(name)
            except OSError as error:
                # Somebody else was just doing that.
                if error.errno != errno.ENODEV:
                    raise
        for info in control.trackers():
            try:
                control.tracker_remove(info.dev)
            except OSError as error:
                # The device has gone, and its tracker when it was looked at again.
                if error.errno not in (errno.ENODATA, errno.ENXIO, errno.ENODEV):
                    raise
        found += [f"tracker {info}" for info in control.trackers()]
    return found


def until(condition, seconds=60):
    """Waits until a condition holds; fails if that takes unreasonably long."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.01)
    return result
