# SPDX-License-Identifier: GPL-2.0
"""The oracle (tools/oracle) on stacks of devices: each gives the originals as the program wants
them, each node with the other nodes through which it is written."""

import contextlib
import subprocess

import devices
from blksnap import parameters, size_of
from tap import DEBUG, SEED, note

MIB = 1 << 20
SIZE = (2 if DEBUG else 4) * MIB
DISK, STORAGE, SMALL = "/dev/vda", "/dev/vdb", "/dev/vdc"
PARTS = "label: gpt\\n2048,%d\\n%d,%d\\n" % (SIZE // 512 - 7, 2048 + SIZE // 512 - 7, SIZE // 512 + 5)


@contextlib.contextmanager
def drivers():
    """Whole disks of drivers with requests, and one without."""
    with devices.null_blk(SIZE) as requests, devices.null_blk(SIZE, queue_mode=0) as bios:
        yield SMALL, requests, bios


@contextlib.contextmanager
def partitions():
    """Partitions that are written through the disk, too, and what is stacked on one."""
    with devices.partitions(DISK, PARTS) as (one, two), \
            devices.dm(devices.linear(two, offset=3)) as linear:
        yield f"{one},{DISK}+2048", linear


@contextlib.contextmanager
def whole():
    """A whole disk that is written through its partitions, too. (The table is overwritten; the
    kernel keeps what it has read.)"""
    with devices.null_blk(3 * MIB + 2 * SIZE) as disk, devices.partitions(disk, PARTS) as (one, two):
        yield f"{disk},{one}+-2048,{two}+-{2048 + SIZE // 512 - 7}",


@contextlib.contextmanager
def stacks():
    """A raid1, and a file of a file system on another disk."""
    with devices.brd(SIZE + 2 * MIB, 2) as (one, two), devices.raid1(one, two) as raid:
        devices.make_fs("ext4", DISK)
        with devices.mounted(DISK) as where, devices.file(SIZE + 3 * 512, where) as file, \
                devices.loop(backing=file) as loop:
            yield f"{raid}", loop


@contextlib.contextmanager
def thin():
    """A thin device beside the disk that its data is on."""
    with devices.null_blk(4 * MIB) as metadata, devices.null_blk(2 * SIZE) as data, \
            devices.thin(SIZE, metadata, data) as path:
        yield path, SMALL


@contextlib.contextmanager
def held():
    """A directory for storage that the kernel holds, and lets grow."""
    with devices.null_blk(96 * MIB) as disk, parameters(diff_storage_minimum=8192):
        devices.make_fs("ext4", disk)
        with devices.mounted(disk) as where:
            yield where


STACKS = {"drivers": drivers, "partitions": partitions, "whole": whole, "stacks": stacks, "thin": thin}


def oracle(originals, *options, seed=SEED):
    """Runs it; returns whether it found nothing, and what it printed."""
    command = ["blksnap-oracle", "--seed", str(seed), "--storage", STORAGE, *map(str, options), *originals]
    note(" ".join(command))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    note(done.stdout)
    return done.returncode == 0, done.stdout
