# SPDX-License-Identifier: GPL-2.0
"""What is hooked in a kernel that nobody patched."""

import os
import subprocess
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")


def hooked():
    """The functions that somebody traces; none where nothing can be traced."""
    enabled = TRACING / "enabled_functions"
    if TRACING.exists() and not os.path.ismount(TRACING):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    return {line.split()[0] for line in enabled.read_text().splitlines()} if enabled.exists() else set()
