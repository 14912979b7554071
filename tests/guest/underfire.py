# SPDX-License-Identifier: GPL-2.0
"""Whether the images of a file system that is worked on are whole, each as of its instant."""

import contextlib
from pathlib import Path

import devices
from blksnap import Snapshot, until
from blockio import same
from fsload import FileLoad, KnownFile, io_uring
from tap import equal, note, sh, true

# Operations on files while a snapshot is held, of each thread.
OPERATIONS = 40


def check_image(kind, image, number, known):
    """The image has a whole file system, as of the take, when `known` was in a file."""
    if kind != "xfs":
        devices.check_fs(kind, image)
    if kind == "btrfs":
        return  # two with the same name are not mounted at once
    with devices.mounted(image, "nouuid" if kind == "xfs" else "") as where:
        equal(Path(f"{where}/number").read_text(), str(number), "what was written before the take")
        same(Path(f"{where}/known").read_bytes(), known, "the file that is known, in the image")
        sh("cp", "-r", f"{where}/load0", f"{where}/copy")
        sh("rm", "-r", f"{where}/copy")
    # The log has been replayed, the image was written.
    devices.check_fs(kind, image)


def under_fire(kind, disk, storage, snapshots, operations=OPERATIONS, nowait=True):
    """So many snapshots in a row of a new file system on the disk. `nowait`: it and its driver know that."""
    sh("modprobe", "-q", kind, check=False)
    devices.make_fs(kind, disk)
    with devices.mounted(disk, "discard") as where:
        with io_uring(where) if nowait else contextlib.nullcontext(), \
                FileLoad(where, name=kind) as load, KnownFile(f"{where}/known", kind) as file:
            def go_on():
                goals = [done + operations for done in load.done]
                until(lambda: load.errors or all(done >= goal for done, goal in zip(load.done, goals)), 300)
            go_on()
            copied = 0
            for number in range(snapshots):
                Path(f"{where}/number").write_text(str(number))
                with Snapshot(disk, storage, take=False) as snapshot:
                    with file.at_rest() as known:
                        snapshot.take()
                    go_on()
                    check_image(kind, snapshot.image, number, known)
                    true(snapshot.is_good(), f"state {snapshot.state()}")
                    copied += snapshot.state()["copied"]
            load.stop()
            note(f"{sum(load.done)} operations, {file.done} on the known file, {copied // 2048} MiB copied")
            true(copied > 0, "nothing was copied")
    devices.check_fs(kind, disk)
