# SPDX-License-Identifier: GPL-2.0
"""A machine with arm64 processors, emulated on one that has others. What scripts/stock has built for it
has two links: `emulator`, to a root of this machine's processor with an emulator in it, and `guest`, to what
the machine has for its root in the place of the host's.

An emulated processor sees memory as the host's does: on x86-64 that is in an order closer to the program's than
arm64 promises. So what a barrier is missing for seldom shows.
"""

import os

# Puts these directories of the host into the guest's root, each where it is here, for this process only.
IN_ROOT = """set -e
guest=$1
shift
while [ "$1" != -- ]; do
	mkdir -p "$guest$1"
	mount --bind "$1" "$guest$1"
	shift
done
shift
exec "$@"
"""


def wanted(image):
    """Whether an image is for such a machine."""
    return (image / "guest").exists()


def root(image):
    """The directory of the host that is the machine's root."""
    return (image / "guest").resolve()


def emulator(image, places):
    """The beginning of its command. The machine's root has these directories of the host."""
    tools = (image / "emulator").resolve()
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "sh", "-c", IN_ROOT, "arm64", root(image), *places, "--",
            tools / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", tools / "usr/lib/x86_64-linux-gnu",
            tools / "usr/bin/qemu-system-aarch64", "-L", tools / "usr/share/qemu"]


# All that such a processor can do to check itself, with a signature of return addresses that is quick to emulate.
PROCESSOR = ["-machine", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on,sve=off,sme=off"]
CONSOLE = "ttyAMA0"
