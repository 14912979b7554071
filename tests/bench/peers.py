# SPDX-License-Identifier: GPL-2.0
"""L of tests/bench/guest: backups beside those of other programs, of the same ext4 at one instant.

All read the image of one snapshot, or begin with a snapshot of their own (blksnap), and store what
they make on an ext4 of another device; then each gives it back, as a file there. Said of each: the
speed beside that of dd doing the same, what was read of the device, what is stored, and the most
memory that one of its processes has had (a Python is the least that can be told: some 20 MiB).
partclone waits for whole seconds.

The file system is half full; what is full of it, is half of noise, half of text.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME, TITLE = "L", "backups beside other programs"
MIB = 1 << 20
# The devices, and MiB of the first one.
DEVICE, STORE = "bench_peers", "bench_stored"
SMALL, FULL = 384, 1536
SOURCE, TARGET, STORAGE = (Path("/mnt") / name for name in ("source", "target", "storage"))
IMAGE = "$BLKSNAP_IMAGE"
RESTIC = {"RESTIC_REPOSITORY": str(TARGET / "restic"), "RESTIC_PASSWORD": "bench",
          "RESTIC_CACHE_DIR": "/tmp/bench.restic"}

# What each program runs: to back up the image, and to give back as `back` what it has stored. (No `&&`: a
# failure must end it.)
PEERS = {
    "dd": (f"dd if={IMAGE} of=dd bs=1M iflag=direct conv=fsync",
           "dd if=dd of=back bs=1M iflag=direct conv=fsync"),
    "qemu-img": (f"qemu-img convert -f raw -O qcow2 -T none {IMAGE} qemu; sync qemu",
                 "qemu-img convert -f qcow2 -O raw qemu back; sync back"),
    "restic": (f"restic backup -q --stdin --stdin-filename image <{IMAGE}; sync .",
               "restic dump -q latest /image >back; sync back"),
    "partclone": (f"partclone.ext4 -c -q -L /dev/null -s {IMAGE} -o part; sync part",
                  "truncate -s $BYTES back; partclone.ext4 -r -q -C -L /dev/null -s part -O back"
                  "; sync back"),
}


def run(command, env=(), cwd="/"):
    """Runs a command of the shell; how long it took, and the most memory of a process, in bytes."""
    start = time.monotonic()
    with open("/tmp/bench.said", "wb+") as said:
        with subprocess.Popen(["sh", "-ec", command], cwd=cwd, stdout=said, stderr=said,
                              env=os.environ | {"LC_ALL": "C"} | dict(env)) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        said.seek(0)
        if child.returncode != 0:
            print(f"bench: {command}: {said.read().decode(errors='replace')}", flush=True)
            sys.exit(1)
    return seconds, usage.ru_maxrss << 10


def read_of(device):
    """Bytes read of a device since the boot."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[2]) * 512


def stored():
    """Bytes that all files of the target have."""
    return sum(file.lstat().st_blocks * 512 for file in TARGET.rglob("*"))


class Peers:
    """Measures backups of a device, which gets an ext4; two others take what is stored."""

    def __init__(self, bench, device, target, storage):
        self.bench = bench
        self.name, self.device = device, f"/dev/{device}"
        self.bytes = int(Path(f"/sys/block/{device}/size").read_text()) * 512
        self.places = {SOURCE: device, TARGET: target, STORAGE: storage}

    def __enter__(self):
        for place, device in self.places.items():
            place.mkdir(exist_ok=True)
            run(f"mkfs.ext4 -q -F /dev/{device} && mount /dev/{device} {place}")
        self.fill()
        return self

    def __exit__(self, *_):
        for place in self.places:
            run(f"umount {place}")
        shutil.rmtree(RESTIC["RESTIC_CACHE_DIR"], ignore_errors=True)

    def fill(self):
        """Files in half of the file system; as much again was deleted."""
        size = self.bytes // 4
        text = b"".join(b"%d: the quick brown fox\n" % number for number in range(1 << 16))
        with open(SOURCE / "text", "wb") as file:
            while file.tell() < size:
                file.write(text)
        run(f"head -c {size} /dev/urandom >noise && head -c {size} /dev/urandom >gone && sync . && rm gone",
            cwd=SOURCE)

    def mark(self, variant, phase):
        """Commands that mark the begin and the end of what is counted, if that is wanted."""
        if not self.bench.marks:
            return "true", "true"
        number = len(self.bench.counted) * 2
        self.bench.counted.append({"variant": variant, "workload": NAME, "phase": phase,
                                   "ios": self.bytes // MIB})
        return tuple(f"{self.bench.marks}/mark {number + step} >/dev/null" for step in (0, 1))

    def measure(self, variant, phase, command, **how):
        """Runs something, and keeps what it took."""
        # Each reads what it has stored from there.
        Path("/proc/sys/vm/drop_caches").write_text("3")
        before, read = stored(), read_of(self.name)
        begin, end = self.mark(variant, phase)
        seconds, memory = run(f"{begin}; {command}; {end}", cwd=TARGET, **how)
        key = (variant, NAME, phase)
        self.bench.rates.setdefault(key, []).append(self.bytes / seconds)
        self.bench.costs[key] = {"bytes_read": read_of(self.name) - read,
                                 "bytes_stored": stored() - before, "memory": memory}

    def of_image(self, command):
        """A command that has the image of a snapshot."""
        return (f"blksnap snapshot {self.device} --storage {STORAGE} --limit 64M -- "
                f"sh -ec {shlex.quote(command)}")

    @staticmethod
    def check():
        """What was given back is a whole file system, with the same in it."""
        run(f"e2fsck -fn {TARGET}/back")
        for name in ("text", "noise"):
            run(f"debugfs -R 'cat /{name}' {TARGET}/back | cmp - {SOURCE}/{name}")
        (TARGET / "back").unlink()

    def peers(self):
        """All that are not ours."""
        for name, (backup, restore) in PEERS.items():
            if not shutil.which(backup.split()[0]):
                print(f"bench: there is no {name}", flush=True)
                continue
            if name == "restic":
                run("restic init -q", env=RESTIC)
            self.measure(name, "full", self.of_image(backup), env=RESTIC)
            self.measure(name, "restore", restore, env=RESTIC | {"BYTES": str(self.bytes)})
            self.check()
            if name == "restic":
                self.measure(name, "verify", "restic check -q --read-data", env=RESTIC)
                self.change()
                self.measure(name, "incremental", self.of_image(backup), env=RESTIC)
            for path in TARGET.iterdir():
                if path.name != "lost+found":
                    run(f"rm -r {path}")

    def change(self):
        """A hundredth of what is used becomes something else."""
        size = self.bytes // 4
        with open(SOURCE / "noise", "rb+") as file:
            for at in range(0, size, size // 50):
                file.seek(at)
                file.write(os.urandom(size // 2500))
            os.fsync(file.fileno())

    def ours(self):
        """The same by blksnap; and a comparison, when what has changed is not known."""
        place = TARGET / "blksnap"
        backup = (f"blksnap backup {self.device} --to {place} --storage {STORAGE} --limit 64M"
                  " --json >/tmp/bench.report")
        for phase, more in (("full", "--create"), ("all blocks", "--create --all-blocks --full")):
            self.measure("blksnap", phase, f"{backup} {more}")
            if phase == "full":
                self.measure("blksnap", "restore", f"blksnap restore {place} --to back")
                self.check()
                self.measure("blksnap", "verify", f"blksnap verify {place}")
            shutil.rmtree(place)
        run(f"{backup} --create")
        self.change()
        self.measure("blksnap", "incremental", backup)
        self.kind("incremental")
        self.change()
        run(f"blksnap tracker_remove -d {self.device}")
        self.measure("blksnap", "compared", backup)
        self.kind("compared")
        self.measure("blksnap", "restore a chain", f"blksnap restore {place} --to back")
        self.check()
        shutil.rmtree(place)

    @staticmethod
    def kind(wanted):
        """Fails if a backup was not of that kind."""
        found = re.search(r'"kind": "(\w+)"', Path("/tmp/bench.report").read_text())
        if not found or found[1] != wanted:
            print(f"bench: not {wanted}: {found and found[1]}", flush=True)
            sys.exit(1)

    def repetition(self):
        """All of it, once."""
        self.peers()
        self.ours()


def table(bench):
    """What people read."""
    print(f"== {NAME} {TITLE}: ratio of speed to dd; MiB read of the device, stored, and of memory")
    for variant, name, phase in bench.costs:
        reached = bench.rate(variant, name, phase)
        other = bench.rate("dd", NAME, "restore" if phase.startswith("restore") else "full")
        cost = bench.costs[variant, name, phase]
        cells = [f"{cost[key] / MIB:.0f}" for key in ("bytes_read", "bytes_stored", "memory")]
        print(f"{NAME} {variant:<12}{phase:<16}{reached / other:>6.2f}{reached / MIB:>8.0f} MiB/s"
              + "".join(f"{cell:>8}" for cell in cells))
