#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Numbered transactions in PostgreSQL, and which of them a copy of the database must have.

    commits.py write DSN LOG           commits one after the other, until a signal comes
    commits.py await LOG COUNT         until so many more have been committed
    commits.py check DSN LOG REPORT    after the recovery of a copy

The log says when each was begun and when its commit had returned, in nanoseconds of
CLOCK_MONOTONIC. REPORT is what `blksnap backup --json` has printed: the instant of the copy
lies between two times. A commit that had returned before is in the copy, none is that was
begun after, and each is there as a whole.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import psycopg2

PARTS = 3


def payload(number, part):
    """The contents of a row, which follow from its number: up to 3 KiB, in one page or two."""
    return hashlib.md5(f"{number}.{part}".encode()).hexdigest() * (1 + (number * 7 + part) % 96)


def write(dsn, path):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    database = psycopg2.connect(dsn)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with database, database.cursor() as cursor:
        cursor.execute("CREATE TABLE commits "
                       "(number integer, part integer, data text, PRIMARY KEY (number, part))")
    number = 0
    while True:
        number += 1
        os.write(log, f"begin {number} {time.monotonic_ns()}\n".encode())
        with database, database.cursor() as cursor:
            for part in range(PARTS):
                cursor.execute("INSERT INTO commits VALUES (%s, %s, %s)",
                               (number, part, payload(number, part)))
        os.write(log, f"end {number} {time.monotonic_ns()}\n".encode())
        time.sleep(0.02)


def logged(path):
    """When each was begun, and when it had been committed."""
    times = {"begin": {}, "end": {}}
    for line in Path(path).read_text(encoding="ascii").splitlines():
        what, number, when = line.split()
        times[what][int(number)] = int(when)
    return times["begin"], times["end"]


def await_more(path, count, seconds=120):
    limit = time.monotonic() + seconds
    goal = int(count)
    if Path(path).exists():
        goal += len(logged(path)[1])
    while not Path(path).exists() or len(logged(path)[1]) < goal:
        if time.monotonic() > limit:
            sys.exit(f"not {count} more transactions in {seconds} s")
        time.sleep(0.1)


def check(dsn, path, report):
    taken = json.loads(Path(report).read_text(encoding="utf-8"))["taken"]
    begin, end = logged(path)
    must = {number for number, when in end.items() if when < taken["before"]["monotonic_ns"]}
    may = {number for number, when in begin.items() if when <= taken["after"]["monotonic_ns"]}
    found = {}
    wrong = []
    with psycopg2.connect(dsn) as database, database.cursor() as cursor:
        cursor.execute("SELECT number, part, data FROM commits")
        for number, part, data in cursor:
            found.setdefault(number, set()).add(part)
            if data != payload(number, part):
                wrong.append((number, part))
    problems = {
        "lost": sorted(must - found.keys()),
        "from after the instant": sorted(found.keys() - may),
        "torn": sorted(n for n, parts in found.items() if parts != set(range(PARTS))),
        "rows with wrong data": wrong,
    }
    later = len(begin) - len(may)
    summary = (f"{len(found)} transactions; {len(must)} committed before the instant, "
               f"{len(may) - len(must)} under way, {later} begun later")
    for problem, numbers in problems.items():
        if numbers:
            print(f"{problem}: {len(numbers)}, such as {numbers[:5]}", file=sys.stderr)
    if any(problems.values()) or not must or not later:
        sys.exit(f"the copy has {summary}")
    print(summary)


def main(what, *arguments):
    {"write": write, "await": await_more, "check": check}[what](*arguments)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
