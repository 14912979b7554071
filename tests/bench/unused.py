# SPDX-License-Identifier: GPL-2.0
"""M and N of tests/bench/guest: what is written to the free space of an ext4, with a snapshot held.

A log is appended to, each piece made stable; files are unpacked. That on the raw device, while a
snapshot is held, and while one is held that was told what the file system does not use.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from blksnap import Control, dev_of, give_unused
from devices import unused_of_ext4

MIB = 1 << 20
WHERE = Path("/mnt/unused")
TREE = Path("/dev/shm/bench-tree.tar")
TOLD = "told what is unused"

# What is measured: what people read, the command, MiB of data, with --full.
WORKLOADS = {
    "M": ("append to a log, 16k with fdatasync",
          "dd if=/dev/zero of={where}/log bs=16k count={pieces} oflag=append,dsync conv=notrunc", 16, 64),
    "N": ("untar", "tar xf {tree} -C {where} && sync -f {where}", 64, 256),
}


def run(*command):
    """Runs a command; what it prints."""
    done = subprocess.run([str(word) for word in command], check=False, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=os.environ | {"LC_ALL": "C"})
    if done.returncode != 0:
        print(f"bench: {' '.join(map(str, command))}: {done.stdout}", flush=True)
        sys.exit(1)
    return done.stdout


def make_tree(mib):
    """An archive of files of 1 to 64 KiB."""
    directory = Path("/dev/shm/bench-tree")
    left = mib * MIB
    for number in range(1 << 20):
        size = min(left, 1024 << number % 7)
        place = directory / f"{number % 50}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}").write_bytes(os.urandom(size))
        left -= size
        if not left:
            break
    run("tar", "cf", TREE, "-C", directory, ".")
    run("rm", "-r", directory)


class Unused:
    """Measures on one device; `variants` are those of the bench: raw, and with a snapshot."""

    def __init__(self, bench, device, settled, untrack, raw, ours):
        self.bench = bench
        self.device = device
        self.settled = settled
        self.untrack = untrack
        self.variants = {"raw": raw, "blksnap": ours, TOLD: ours}

    def measure(self, name, variant):
        _, command, *sizes = WORKLOADS[name]
        mib = sizes[self.bench.full]
        path = f"/dev/{self.device}"
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
        unused = unused_of_ext4(path)
        if variant == "raw":
            self.untrack()
        with self.variants[variant]([self.device]) as (devices, _):
            if variant == TOLD:
                with Control() as control:
                    name_of_snapshot, = control.snapshots()
                    give_unused(control, name_of_snapshot, dev_of(path), unused)
            run("mount", devices[0], WHERE)
            command = command.format(where=WHERE, tree=TREE, pieces=mib << 6)
            if self.bench.marks:
                number = len(self.bench.counted) * 2
                command = f"{self.bench.marks}/mark {number}; {command}; {self.bench.marks}/mark {number + 1}"
                self.bench.counted.append({"variant": variant, "workload": name, "phase": "write", "ios": mib << 6})
            before = self.settled()
            start = time.monotonic()
            run("sh", "-ec", command)
            seconds = time.monotonic() - start
            copied = (self.settled() - before) / (mib * MIB)
            run("umount", WHERE)
        self.bench.rates.setdefault((variant, name, "write"), []).append(mib * MIB / seconds)
        if variant != "raw":
            self.bench.copied.setdefault((variant, name), []).append(copied)

    def repetition(self, names):
        """All of it, once."""
        WHERE.mkdir(exist_ok=True)
        if "N" in names and not TREE.exists():
            make_tree(WORKLOADS["N"][2 + self.bench.full])
        for name in names:
            for variant in self.variants:
                self.measure(name, variant)


def table(bench, names):
    """What people read."""
    for name in names:
        raw = bench.rate("raw", name, "write")
        print(f"== {name} {WORKLOADS[name][0]}, on ext4: ratio to raw, {raw / MIB:.1f} MiB/s")
        for variant in ("blksnap", TOLD):
            ratio = bench.rate(variant, name, "write") / raw
            print(f"{name} {variant:<30}{ratio:>6.2f} ×{bench.times(variant, name)}")
