#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Applies rbd-diff files to an image file, as `rbd import-diff` does to an image of Ceph.

    rbd_diff.py IMAGE DIFF...

Written from the description of the format in Ceph's documentation
(doc/dev/rbd-diff.rst), not from what it is to check. The image is made if it does
not exist. Each diff must begin at the snapshot that the one before has led to.
"""

import os
import struct
import sys


class Damaged(Exception):
    """The file is not as described."""


def take(file, count):
    """Reads count bytes, or fails."""
    data = file.read(count)
    if len(data) != count:
        raise Damaged(f"ends {count - len(data)} bytes early")
    return data


def number(file):
    return struct.unpack("<Q", take(file, 8))[0]


def text(file):
    return take(file, struct.unpack("<I", take(file, 4))[0]).decode()


def apply(diff, image, snapshot):
    """Applies an open diff to an open image that is at a snapshot; gives the new one."""
    if take(diff, 12) != b"rbd diff v1\n":
        raise Damaged("not an rbd-diff of version 1")
    start = end = size = None
    while True:
        tag = take(diff, 1)
        if tag == b"f":
            start = text(diff)
        elif tag == b"t":
            end = text(diff)
        elif tag == b"s":
            size = number(diff)
        else:
            break
    if start != snapshot:
        raise Damaged(f"starts from the snapshot {start}, the image is at {snapshot}")
    if end is None or size is None:
        raise Damaged("has no name or no size")
    image.truncate(size)
    while tag != b"e":
        if tag not in (b"w", b"z"):
            raise Damaged(f"has a record {tag} after the first data")
        offset, length = number(diff), number(diff)
        if offset + length > size:
            raise Damaged(f"has {length} bytes at {offset} of {size}")
        image.seek(offset)
        while length:
            count = min(length, 1 << 20)
            image.write(take(diff, count) if tag == b"w" else bytes(count))
            length -= count
        tag = take(diff, 1)
    if diff.read(1):
        raise Damaged("goes on behind its end")
    return end


def main(path, *diffs):
    snapshot = None
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as image:
        for name in diffs:
            with open(name, "rb") as diff:
                try:
                    snapshot = apply(diff, image, snapshot)
                except Damaged as error:
                    sys.exit(f"{name} {error}")
    print(snapshot)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
