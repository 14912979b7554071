# SPDX-License-Identifier: GPL-2.0
"""What is hooked in a kernel that nobody patched."""

import subprocess
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")


def hooked():
    """The functions that somebody traces; none where nothing can be traced."""
    if not TRACING.exists():
        return set()
    if not (TRACING / "enabled_functions").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    return {line.split()[0] for line in (TRACING / "enabled_functions").read_text().splitlines()}
