# SPDX-License-Identifier: GPL-2.0
"""Memory that is short, on kernels that can pretend it, and what a failure does to a snapshot."""

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from blksnap import dev_of, until
from blockio import Device
from tap import Skip, equal, raises, true

FAULTS = Path("/sys/kernel/debug")


def corrupted(snapshot, nodes, *numbers):
    """The snapshot is, with one event per device, and its images give nothing any more."""
    until(lambda: snapshot.state()["state"] == "corrupted")
    events = snapshot.losses(len(nodes))
    equal(sorted(event.dev for event in events), sorted(dev_of(node) for node in nodes), "devices of the events")
    for event in events:
        true(event.errno in numbers, f"{event}")
    for image in snapshot.images:
        with Device(image, write=False) as device, raises(errno.EIO):
            device.read(0, 65536)


def set_faults(kind, **values):
    directory = FAULTS / kind
    if not directory.exists():
        raise Skip(f"the kernel has no {kind}")
    for name, value in values.items():
        (directory / name.replace("_", "-")).write_text(str(value))


def prepare_failing():
    set_faults("failslab", ignore_gfp_wait="N", probability=0, times=-1, verbose=0, task_filter="N")
    set_faults("fail_page_alloc", ignore_gfp_wait="N", ignore_gfp_highmem="N", probability=0, times=-1,
               verbose=0, min_order=0, task_filter="N")


@contextlib.contextmanager
def _fail_nth(number):
    """In this task the n-th allocation of the block fails. Gives what tells how many are left."""
    fd = os.open(f"/proc/self/task/{ctypes.CDLL(None).gettid()}/fail-nth", os.O_RDWR)
    try:
        os.pwrite(fd, str(number).encode(), 0)
        yield lambda: int(os.pread(fd, 20, 0).split(b"\0")[0])
    finally:
        os.pwrite(fd, b"0", 0)
        os.close(fd)


@contextlib.contextmanager
def workers_failing_at(number):
    """In each of the kernel's workers that belong to no processor, the n-th allocation of the block
    fails. Gives what tells in how many it has."""
    files = [path.with_name("fail-nth") for path in Path("/proc").glob("[0-9]*/comm")
             if _first_line(path).startswith("kworker/u")]
    for file in files:
        with contextlib.suppress(OSError):
            file.write_text(str(number))
    try:
        yield lambda: sum(_first_line(file) == "0" for file in files)
    finally:
        for file in files:
            with contextlib.suppress(OSError):
                file.write_text("0")


def _first_line(path):
    """What is in it, unless it belongs to a task that is gone."""
    try:
        return path.read_text().partition("\n")[0].strip("\0")
    except OSError:
        return ""


def failing_at(number, function):
    """Calls it with its n-th allocation failing. Returns whether it was reached, and the errno."""
    error = None
    with _fail_nth(number) as left:
        try:
            function()
        except OSError as caught:
            error = caught.errno
        return left() == 0, error


def allocations(function):
    """Calls it; returns how many allocations that took, in this task."""
    most = 1 << 20
    with _fail_nth(most) as left:
        function()
        return most - left()
