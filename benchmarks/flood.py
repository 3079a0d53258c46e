"""Whether the reader keeps up: a program that executes flat out on one CPU, JSON lines written on the other."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.cost import tracer
from sqltrace.backends.choice import load

SCRIPT = """
import sqlite3, time
c = sqlite3.connect(":memory:")
c.execute("CREATE TABLE t(a INTEGER PRIMARY KEY)")
rows = [(n % 1000,) for n in range(1_000_000)]
start = time.perf_counter()
c.executemany("INSERT OR REPLACE INTO t VALUES(?)", rows)
print(time.perf_counter() - start)
"""


def table() -> None:
    """Measure and print."""
    if not load("bcc").available().ok:
        return
    print("\nA million executions flat out, bcc to JSON lines, ring of 16 MiB unless said")
    for name, options in (
        ("every statement", ()),
        ("every statement, ring of 256 MiB", ("--ring-size", "256m")),
        ("--min-duration 1s, decided in the kernel", ("--min-duration", "1s")),
    ):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            command = [
                *tracer("run", "--backend", "bcc", "-o", str(log), *options),
                "--",
                "/usr/bin/python3",
                "-c",
                SCRIPT,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            with log.open("rb") as stream:
                stream.seek(max(log.stat().st_size - 4096, 0))
                end = json.loads(stream.read().splitlines()[-1])
        lost = sum(entry["count"] for entry in end["lost"])
        rate = end["hits"] / float(done.stdout)
        print(f"{name:<44}{rate:>10,.0f} executions a second{lost / end['hits']:>8.1%} lost")
