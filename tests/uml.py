# SPDX-License-Identifier: GPL-2.0
"""A machine that is a process of this one: a kernel of ARCH=um.

It needs no emulator, so it is many times faster. Its root is the host's (hostfs), and its disks are
virtio ones, as in the other machine: qemu-storage-daemon serves them by vhost-user.
"""

import contextlib
import os
import signal
import subprocess
import time


class Disks:
    """Files as virtio disks; each has its name as serial."""

    def __init__(self, job):
        self.job = job
        self.exports = []
        self.parameters = []

    def add(self, name, file, block="", writable=True):
        """Adds a disk, of blocks of so many bytes."""
        path = self.job / f"socket-{name}"
        self.exports += [
            "--blockdev", f"driver=file,node-name={name},filename={file},cache.no-flush=on,discard=unmap,"
            f"read-only={'off' if writable else 'on'}",
            "--export", f"type=vhost-user-blk,id={name},node-name={name},addr.type=unix,addr.path={path},num-queues=2,"
            f"writable={'on' if writable else 'off'}" + (f",logical-block-size={block}" if block else "")]
        self.parameters.append(f"virtio_uml.device={path}:2")

    @contextlib.contextmanager
    def served(self, errors):
        """As long as the block runs."""
        ready = self.job / "disks"
        # Of a boot that did not get far.
        ready.unlink(missing_ok=True)
        with subprocess.Popen(["qemu-storage-daemon", *self.exports, "--pidfile", ready],
                              stdin=subprocess.DEVNULL, stdout=errors, stderr=errors) as daemon:
            try:
                # It writes that file when all of them are there.
                while not ready.exists():
                    if daemon.poll() is not None:
                        raise OSError(f"qemu-storage-daemon: exit status {daemon.returncode}")
                    time.sleep(0.02)
                yield
            finally:
                daemon.kill()


def command(image, cpus, memory, disks, log, output, append):
    """What starts the kernel: its log goes to the first descriptor, what the guest says to the other."""
    # What it says of itself to others goes with the rest.
    return [image / "linux", f"ncpus={cpus}", f"mem={memory}", "seccomp=on", f"uml_dir={disks.job}",
            "root=/dev/root rootfstype=hostfs rootflags=/ ro",
            f"con=null con0=null,fd:{log} ssl=null ssl0=null,fd:{output} console=tty0",
            *disks.parameters, append]


def end_all(process):
    """Ends it, and the processes that are those of the guest."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
