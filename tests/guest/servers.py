# SPDX-License-Identifier: GPL-2.0
"""Network file systems, served by this machine's kernel to itself, for the time of a `with` block. Each
gives where it is mounted."""

import contextlib
import os
import subprocess
from pathlib import Path

from blksnap import until
from tap import Skip, sh

NFSD = Path("/proc/fs/nfsd")
RPC = Path("/proc/net/rpc")
# The time at which what the kernel was told ends: never.
NEVER = 0x7FFFFFFF
# Of an export: any port, no check of the path above a file, a number instead of the file system's UUID.
FLAGS = 0x2 | 0x400 | 0x2000
KSMBD = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blksnap/ksmbd"


def _loopback():
    sh("busybox", "ip", "link", "set", "lo", "up")


@contextlib.contextmanager
def nfs(directory, version="4.2"):
    """NFS 4, without the daemons: nfsd is told beforehand what it would ask mountd."""
    _loopback()
    sh("modprobe", "nfsd")
    sh("mount", "-t", "nfsd", "nfsd", NFSD)
    try:
        (RPC / "auth.unix.ip/channel").write_text(f"nfsd 127.0.0.1 {NEVER} here\n")
        (RPC / "nfsd.export/channel").write_text(f"here {directory} {NEVER} {FLAGS} 65534 65534 0\n")
        # The root of all that is served, by the number 0.
        (RPC / "nfsd.fh/channel").write_text(f"here 1 \\x00000000 {NEVER} {directory}\n")
        for name, text in (("versions", "-2 -3 +4 +4.1 +4.2"), ("nfsv4gracetime", "10"), ("nfsv4leasetime", "10"),
                           ("portlist", "tcp 2049"), ("threads", "4")):
            _tell(name, text)
        with _mounted("nfs4", "127.0.0.1:/", f"addr=127.0.0.1,clientaddr=127.0.0.1,proto=tcp,sec=sys,vers={version}") as where:
            yield where
    finally:
        _tell("threads", "0")
        for cache in ("nfsd.fh", "nfsd.export", "auth.unix.ip"):
            (RPC / cache / "flush").write_text(f"{NEVER}\n")
        sh("umount", NFSD)


def _tell(name, text):
    # In one write, and without what there was before.
    fd = os.open(NFSD / name, os.O_RDWR)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def cifs(directory):
    """SMB 3.1.1, by ksmbd, whose programs scripts/deps has put into the cache."""
    if not KSMBD.exists():
        raise Skip("scripts/deps could not get the programs of ksmbd")
    _loopback()
    sh("modprobe", "ksmbd")
    for of_ksmbd in ("/run/ksmbd", "/etc/ksmbd"):
        os.makedirs(of_ksmbd, exist_ok=True)
    config, users = "/run/ksmbd/conf", "/run/ksmbd/users"
    Path(config).write_text(f"[global]\n\tnetbios name = here\n[share]\n\tpath = {directory}\n\tread only = no\n")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(KSMBD / "lib/x86_64-linux-gnu")}
    sh(KSMBD / "usr/sbin/ksmbd.adduser", "-i", users, "-a", "root", "-p", "password", env=environment)
    with subprocess.Popen([KSMBD / "usr/sbin/ksmbd.mountd", "-n", "-c", config, "-u", users], env=environment) as daemon:
        try:
            until(_serves_smb)
            with _mounted("cifs", "//127.0.0.1/share",
                          "ip=127.0.0.1,vers=3.1.1,username=root,password=password,file_mode=0600,dir_mode=0700") as where:
                yield where
        finally:
            Path("/sys/class/ksmbd-control/kill_server").write_text("hard")
            daemon.terminate()


def _serves_smb():
    """Whether somebody listens at the port 445, of either family."""
    return any(line.split()[1].endswith(":01BD") and line.split()[3] == "0A"
               for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:])


@contextlib.contextmanager
def _mounted(kind, source, options):
    where = f"/mnt/{kind}"
    os.makedirs(where, exist_ok=True)
    sh("modprobe", {"nfs4": "nfsv4"}.get(kind, kind))
    # Without the helpers of the packages, which we do not need.
    sh("mount", "-i", "-t", kind, "-o", options, source, where)
    try:
        yield where
    except BaseException:
        sh("umount", "-l", where, check=False)
        raise
    sh("umount", where)
