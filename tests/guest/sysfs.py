# SPDX-License-Identifier: GPL-2.0
"""What /sys/class/blksnap has: where things are, and the values of files."""

import contextlib
from pathlib import Path

import devices
from blksnap import Snapshot, dev_of
from blockio import MIB, pattern, write

SIZE = 8 * MIB
CLASS = Path("/sys/class/blksnap")

# The files of the directories.
TRACKER = {"name", "since", "capacity", "block_size", "block_count", "generation", "snap_number",
           "map_memory", "snapshot", "cbt_map"}
SNAPSHOT = {"state", "error", "originals", "images", "created", "taken", "stopped_us", "storage_size",
            "storage_used", "storage_requested", "bytes_copied", "copies_in_flight", "memory",
            "writes_held", "reads_retried", "events"}
IMAGE = {"original", "snapshot", "error", "unused"}


def number(device):
    """A device's number as in names of files: `8:16`."""
    return "{}:{}".format(*dev_of(device))


def tracker(device):
    return CLASS / f"tracker-{number(device)}"


def snapshot_of(snapshot):
    return CLASS / f"snapshot-{snapshot.id}"


def image_of(path):
    return Path(f"/sys/block/{Path(path).name}/blksnap")


def value(path):
    """The value in a file: a line."""
    text = path.read_text()
    if not text.endswith("\n") or text.count("\n") != 1:
        raise AssertionError(f"{path}: not one line: {text!r}")
    return text[:-1]


def values(directory, *names):
    return {name: int(value(directory / name)) for name in names}


def entries():
    return sorted(path.name for path in CLASS.iterdir())


def track(device):
    Snapshot(device, take=False).destroy()


@contextlib.contextmanager
def disks(count=1):
    """Disks with known data."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(devices.null_blk(SIZE)) for _ in range(count)]
        for node in nodes:
            write(node, pattern(SIZE, node))
        yield nodes[0] if count == 1 else nodes
