# SPDX-License-Identifier: GPL-2.0
"""Test cases that print TAP.

A file of tests defines functions with @case("what it shows") and ends with run(). Each
case begins with the module loaded, and with no snapshot and no tracker; what one leaves
behind fails it. A case that raises has failed. Arguments of the file choose the cases
whose titles contain one of them. SEED=n repeats what a run with that seed did.
"""

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import blksnap
import blksnap2
from hooks import hooked

# Everything takes ten times longer with KASAN and lockdep: do less.
DEBUG = Path("/sys/kernel/debug/kmemleak").exists()

SEED = int(os.environ.get("SEED", "0")) or int.from_bytes(os.urandom(4), "little") | 1

_cases = []


class Skip(Exception):
    """Raised by a case that cannot run here."""


def case(title):
    """Makes a function a test case."""
    def add(function):
        _cases.append((title, function))
        return function
    return add


def cases(titles_and_arguments):
    """Makes a function several cases: `{title: (arguments…)}`."""
    def add(function):
        for title, arguments in titles_and_arguments.items():
            _cases.append((title, lambda arguments=arguments: function(*arguments)))
        return function
    return add


def note(*words):
    """A diagnostic line."""
    for line in " ".join(map(str, words)).splitlines():
        print("#", line, flush=True)


def rng(name=""):
    """A source of random numbers for one purpose: the same with the same seed."""
    return random.Random(f"{SEED} {name}")


def sh(*command, check=True, **options):
    """Runs a program; returns its output. A failure shows what it printed."""
    if len(command) == 1:
        command = ["bash", "-c", command[0]]
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def equal(found, wanted, what=""):
    """Fails with both values unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what or 'value'}: found {found!r}, wanted {wanted!r}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def log_lines():
    """How many lines of the kernel log are of the driver or of the filter."""
    return int(sh("dmesg | grep -cE 'blksnap|blk[-_]filter' || true"))


class raises:
    """`with raises(errno.EINVAL):` — the block must fail with just that."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        wanted = "/".join(os.strerror(number) for number in self.numbers)
        if kind is None:
            raise AssertionError(f"no failure, wanted: {wanted}")
        if not isinstance(error, OSError):
            return False
        if error.errno not in self.numbers:
            raise AssertionError(f"found {error}, wanted: {wanted}") from error
        return True


def module_loaded():
    return Path("/sys/module/blksnap").exists()


# Whether this kernel does not know of filters: the module is of the stock flavour.
STOCK = any(Path("/sys/block").iterdir()) and not any(Path("/sys/block").glob("*/filters"))
# What is not served, an ioctl of a device says so.
NOT_SERVED = errno.ENOTTY if STOCK else errno.ENOENT


def filters():
    """All attached filters, as `{disk or partition: names}`."""
    found = {}
    if STOCK:
        shown = Path("/sys/module/blksnap/parameters/filters")
        return {name: ["blksnap"] for name in shown.read_text().split()} if shown.exists() else {}
    for path in [*Path("/sys/block").glob("*/filters"), *Path("/sys/block").glob("*/*/filters")]:
        if names := path.read_text().split():
            found[path.parent.name] = names
    return found


def _run_case(function):
    if not module_loaded():
        sh("modprobe", "blksnap")
    left = []
    try:
        function()
    finally:
        if module_loaded():
            left = blksnap2.remove_all() + blksnap.remove_all()
    if left:
        raise AssertionError(f"left behind: {left}")
    # Of a device that has gone, the filter goes by a worker that the look for trackers has queued.
    with contextlib.suppress(AssertionError):
        blksnap.until(lambda: not filters())
    equal(filters(), {}, "filters left attached")


def _unload():
    """The module goes, and nothing of it stays."""
    if module_loaded():
        sh("modprobe", "-r", "blksnap")
    equal(filters(), {}, "filters without module")
    equal(hooked(), set(), "hooks without module")
    equal(sorted(map(str, Path("/dev").glob("blksnap*"))), [], "device nodes without module")


def within(seconds, function, *arguments):
    """Calls a function that must not hang; returns what it returns, or raises what it raises."""
    result = []

    def body():
        try:
            result.append((function(*arguments), None))
        except BaseException as error:
            result.append((None, error))
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        hang(function.__qualname__)
    value, error = result[0]
    if error:
        raise error
    return value


def join(thread, seconds=60):
    """Waits for a thread that must not hang."""
    thread.join(seconds)
    if thread.is_alive():
        hang(thread.name)


class _Run:
    """The cases of this run: a title and a function each."""

    def __init__(self, chosen, report):
        self.chosen = chosen
        self.report = report
        self.at = 0

    def verdict(self, good, start=None, remark=""):
        if start:
            note(f"{time.monotonic() - start:.1f} s")
        print(f"{'ok' if good else 'not ok'} {self.at + 1} - {self.chosen[self.at][0]}{remark}", flush=True)
        self.at += 1

    def run(self):
        failed = False
        for _, function in self.chosen:
            start = time.monotonic()
            try:
                function()
            except Skip as reason:
                self.verdict(True, start, f" # SKIP {reason}")
            except Exception:
                failed = True
                note(traceback.format_exc())
                self.verdict(False, start)
            else:
                self.verdict(True, start)
        self.end(failed)

    def end(self, failed):
        os.write(self.report, bytes([failed]))


_running = None


def hang(what):
    """Something does not end, in the kernel. Cleaning up would not end either, and what comes
    after it would mean nothing: the run ends here."""
    note("".join(traceback.format_stack()))
    note(f"hangs: {what}; the kernel log has the blocked tasks")
    _running.verdict(False)
    while _running.at < len(_running.chosen):
        _running.verdict(False, remark=": not run after a hang")
    Path("/proc/sysrq-trigger").write_text("w")
    _running.end(True)
    while True:
        time.sleep(3600)


def run():
    """Runs the cases of this file, then unloads the module."""
    global _running
    wanted = sys.argv[1:]
    for word in wanted:
        if not any(word in title for title, _ in _cases):
            print(f"Bail out! no case is named {word}")
            sys.exit(1)
    chosen = [(title, lambda function=function: _run_case(function)) for title, function in _cases
              if not wanted or any(word in title for word in wanted)]
    chosen.append(("the module unloads", _unload))
    note(f"seed {SEED}")
    print(f"1..{len(chosen)}", flush=True)
    # A process with a thread that hangs in the kernel cannot end: that is the child.
    reader, writer = os.pipe()
    if not os.fork():
        _running = _Run(chosen, writer)
        _running.run()
        os._exit(0)
    os.close(writer)
    sys.exit(os.read(reader, 1) != b"\0")
