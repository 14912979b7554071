# SPDX-License-Identifier: GPL-2.0
"""K of tests/bench/guest: `blksnap backup` beside dd of the same image.

The image is of a memory-backed device; what is made of it goes nowhere (an rbd-diff to
/dev/null), to memory (tmpfs), and to an ext4 on a memory-backed device. `raw` is dd with direct
I/O, 1 MiB at a time, to /dev/null. The times are those that dd and blksnap tell of copying
alone. Last, what an incremental backup of an unchanged device reads.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NAME, TITLE = "K", "backup of a device"
MIB = 1 << 20
STORAGE, EXT4, MEMORY = (Path("/mnt") / name for name in ("storage", "ext4", "memory"))
STORED = ["--storage", STORAGE, "--limit", "64M"]  # nothing is overwritten

# What is measured beside dd, and blksnap's options for it.
BACKUPS = {
    "rbd-diff to /dev/null": ["--format", "rbd-diff", "--to", "-"],
    "raw to tmpfs": ["--create", "--to", MEMORY / "backup"],
    "raw to ext4": ["--create", "--to", EXT4 / "backup"],
    "qcow2 to ext4": ["--format", "qcow2", "--create", "--to", EXT4 / "backup"],
}


def run(*command, out=subprocess.PIPE):
    """Runs a command; what it says on standard output and standard error."""
    done = subprocess.run([str(word) for word in command], check=False, text=True, stdout=out,
                          stderr=subprocess.PIPE, env=os.environ | {"LC_ALL": "C"})
    if done.returncode != 0:
        print(f"bench: {' '.join(map(str, command))}: {done.stderr}", flush=True)
        sys.exit(1)
    return done.stdout, done.stderr


def bytes_read(device):
    """What was read of a device since the boot."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[2]) * 512


class Backups:
    """Measures backups of one device; two others take file systems."""

    def __init__(self, bench, device, target, storage):
        self.bench = bench
        self.device = f"/dev/{device}"
        self.bytes = int(Path(f"/sys/block/{device}/size").read_text()) * 512
        self.places = {STORAGE: storage, EXT4: target}

    def __enter__(self):
        for place, device in self.places.items():
            place.mkdir(exist_ok=True)
            run("mkfs.ext4", "-q", "-F", f"/dev/{device}")
            run("mount", f"/dev/{device}", place)
        MEMORY.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=80%", "tmpfs", MEMORY)
        return self

    def __exit__(self, *_):
        for place in (*self.places, MEMORY):
            run("umount", place)

    def mark(self, variant, phase):
        """Commands that mark the begin and the end of what is counted, if that is wanted."""
        if not self.bench.marks:
            return ["true", "true"]
        number = len(self.bench.counted) * 2
        self.bench.counted.append({"variant": variant, "workload": NAME, "phase": phase,
                                   "ios": self.bytes // MIB})
        return [f"{self.bench.marks}/mark {number + step}" for step in (0, 1)]

    def note(self, variant, phase, seconds):
        self.bench.rates.setdefault((variant, NAME, phase), []).append(self.bytes / seconds)

    def dd(self, variant, phase, *options):
        """dd of the image, to somewhere."""
        begin, end = self.mark(variant, phase)
        _, told = run("blksnap", "snapshot", self.device, *STORED, "--", "sh", "-ec",
                      f"{begin}; dd if=$BLKSNAP_IMAGE bs=1M iflag=direct {' '.join(options)}; {end}")
        self.note(variant, phase, float(re.search(r"copied, ([\d.e-]+) s", told)[1]))

    def backup(self, phase, options):
        """A full backup."""
        begin, end = self.mark("blksnap", phase)
        command = ["blksnap", "backup", self.device, "--full", *STORED,
                   "--exec-after-take", begin, *options]
        if "-" in options:
            with open("/dev/null", "wb") as nothing:
                _, told = run(*command, out=nothing)
        else:
            told, _ = run(*command)
        run("sh", "-c", end)
        self.note("blksnap", phase, float(re.search(r" stored in ([\d.]+) s", told)[1]))

    def unchanged(self):
        """An incremental backup right after a full one: what it reads, and how long all takes."""
        place = MEMORY / "unchanged"
        command = ["blksnap", "backup", self.device, "--create", "--to", place, *STORED, "--json"]
        full, _ = run(*command)
        before = Path("/tmp/bench.before")
        name = Path(self.device).name
        report, _ = run(*command, "--exec-after-take", f"cat /sys/block/{name}/stat >{before}")
        read = bytes_read(name) - int(before.read_text().split()[2]) * 512
        full, report = json.loads(full), json.loads(report)
        shutil.rmtree(place)
        device = report["devices"][0]
        if device["kind"] != "incremental":
            print(f"bench: a full backup in place of an incremental one: {device['reason']}")
            sys.exit(1)
        self.bench.unchanged.append({"bytes_read": read, "bytes_copied": device["bytes_copied"],
                                     "seconds": report["seconds"],
                                     "seconds_of_full": full["seconds"]})

    def repetition(self):
        """All of it, once."""
        self.dd("raw", "write", "of=/dev/null")
        for phase, options in BACKUPS.items():
            self.backup(phase, options)
            for place in (MEMORY, EXT4):
                shutil.rmtree(place / "backup", ignore_errors=True)
        self.dd("dd", "dd to ext4", f"of={EXT4}/dd", "conv=fsync")
        (EXT4 / "dd").unlink()
        if not self.bench.marks:
            self.unchanged()


def table(bench):
    """What people read."""
    lines = []
    raw = bench.rate("raw", NAME, "write")
    for phase in (*BACKUPS, "dd to ext4"):
        variant = "dd" if phase.startswith("dd") else "blksnap"
        reached = bench.rate(variant, NAME, phase)
        lines.append([f"{NAME} {TITLE}: {phase}", f"{reached / raw:.2f}", f"{reached / MIB:.0f}"])
    print(f"== {NAME}: ratio to `dd bs=1M iflag=direct of=/dev/null` of the same image, "
          f"{raw / MIB:.0f} MiB/s")
    for line in lines:
        print(f"{line[0]:<48}{line[1]:>6}{line[2]:>8} MiB/s")
    for one in bench.unchanged:
        print(f"{NAME} incremental of an unchanged device: {one['bytes_read']} bytes read of it, "
              f"{one['seconds']:.2f} s; a full one {one['seconds_of_full']:.2f} s")
