"""What a statement costs more when it is observed: CPU time in the target's thread, ratios within one run.

Tools that stop the program at each hit (ltrace, gdb) or each system call (strace) do their work elsewhere: for them
the elapsed time counts.  Every tool is asked for less than sqltrace reports.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqltrace.backends.choice import BACKENDS, load

KINDS = ("INSERT, 2 parameters", "SELECT ?", "100 rows")
ROUNDS = 3
LIBRARY = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/libsqlite3.so.0"
STEPS = f"""
uprobe:{LIBRARY}:sqlite3_step {{ @start[tid] = nsecs; }}
uretprobe:{LIBRARY}:sqlite3_step /@start[tid]/ {{ @ns = sum(nsecs - @start[tid]); delete(@start[tid]); }}
"""
GDB = ["-ex", "set breakpoint pending on", "-ex", "break sqlite3_step if 0", "-ex", "run"]
SLOW_PARTS = 100
ROWS = 100


@dataclass(frozen=True)
class Mode:
    """A way to observe: the command; whether elapsed time counts; whether another process is the observed one."""

    name: str
    command: list[str]
    elapsed: bool = False
    beside: bool = False


def build(folder: Path) -> Path:
    """Compile the program to observe against the system's SQLite."""
    program = folder / "hot_loop"
    source = Path(__file__).with_name("hot_loop.c")
    subprocess.run(["gcc", "-O2", "-o", program, source, "-lsqlite3"], check=True)
    return program


def tracer(*arguments: str) -> list[str]:
    """Return the command of sqltrace."""
    return [sys.executable, "-m", "sqltrace", *arguments, "-q", "--force"]


def modes(program: Path) -> Iterator[Mode]:
    """Yield each way to observe that works here."""
    plain, slow = [str(program), "none"], [str(program), "none", str(SLOW_PARTS)]
    yield Mode("not observed", plain)
    yield Mode("sqlite3_trace_v2 PROFILE", [str(program), "profile"])
    usable = [name for name in BACKENDS if load(name).available().ok]
    if "bcc" in usable:
        yield Mode("empty probes at the same sites", [sys.executable, "-m", "benchmarks.empty", LIBRARY, *plain])
    for name in usable:
        yield Mode(f"sqltrace --backend {name}", [*tracer("run", "--backend", name, "-o", "/dev/null"), "--", *plain])
    if "bcc" in usable:
        yield Mode("another process is observed, bcc", plain, beside=True)
    others = [
        Mode("bpftrace, sqlite3_step in and out", ["bpftrace", "-e", STEPS, "-c", " ".join(plain)]),
        Mode("not observed, elapsed", slow, elapsed=True),
        Mode("ltrace -e sqlite3_step", ["ltrace", "-o", "/dev/null", "-e", "sqlite3_step", *slow], elapsed=True),
        Mode(
            "gdb, break sqlite3_step if 0",
            ["gdb", "-q", "-nx", "-batch", *GDB, "--args", *slow],
            elapsed=True,
        ),
        Mode("strace -f", ["strace", "-f", "-o", "/dev/null", *slow], elapsed=True),
    ]
    for mode in others:
        if shutil.which(mode.command[0]) is None:
            print(f"{mode.command[0]} is not installed: left out.")
        else:
            yield mode


@contextmanager
def another_observed(program: Path) -> Iterator[None]:
    """Observe an idle process with the same library, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        idle = subprocess.Popen([program, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert idle.stdout
        assert idle.stdin
        idle.stdout.readline()
        observer = subprocess.Popen([*tracer("attach", "--backend", "bcc", "-o", str(log)), "-p", str(idle.pid)])
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end and not (log.exists() and b'"probe"' in log.read_bytes()):
                time.sleep(0.05)
            yield
        finally:
            observer.send_signal(signal.SIGINT)
            observer.wait()
            idle.stdin.close()
            idle.wait()
            idle.stdout.close()


def measure(mode: Mode, program: Path) -> list[float] | None:
    """Run once; return nanoseconds by kind of statement, None when the tool does not work here."""
    if mode.beside:
        with another_observed(program):
            done = subprocess.run(mode.command, capture_output=True, text=True, check=False)
    else:
        done = subprocess.run(
            mode.command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
        )
    found = re.search(r"^\d+\.\d(?: \d+\.\d){5}$", done.stdout, re.MULTILINE)
    if found is None:
        return None
    times = [float(word) for word in found[0].split()]
    return times[3:] if mode.elapsed else times[:3]


def table() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        all_modes = list(modes(program))
        best: dict[str, list[float]] = {}
        for turn in range(ROUNDS):
            for mode in all_modes:
                if mode.elapsed and turn:
                    continue
                times = measure(mode, program)
                if times is None:
                    print(f"{mode.name}: does not work here, left out.")
                    continue
                best[mode.name] = [min(a, b) for a, b in zip(best.get(mode.name, times), times, strict=True)]
    print(f"\nOne execution, ns of CPU time in the program (smallest of {ROUNDS} rounds); +: more than not observed")
    print(f"{'':<36}" + "".join(f"{kind:>32}" for kind in KINDS) + f"{'a row':>10}")
    for mode in all_modes:
        if mode.name in best:
            base = best["not observed, elapsed" if mode.elapsed else "not observed"]
            times = best[mode.name]
            cells = (f"{t:>12.0f} {t - b:>+10.0f} x{t / b:<7.2f}" for t, b in zip(times, base, strict=True))
            row = (times[2] - base[2] - (times[1] - base[1])) / (ROWS - 1)
            print(f"{mode.name:<36}" + "".join(cells) + f"{row:>+10.0f}")
    ratios(best)


def ratios(best: dict[str, list[float]]) -> None:
    """Print what bcc's events cost beside probes that do less."""
    if "sqltrace --backend bcc" not in best:
        return
    base, ours = best["not observed"], best["sqltrace --backend bcc"]
    for name in ("empty probes at the same sites", "bpftrace, sqlite3_step in and out"):
        if name in best:
            cost = [(o - b) / (t - b) for o, b, t in zip(ours, base, best[name], strict=True)]
            total = [o / t for o, t in zip(ours, best[name], strict=True)]
            print(f"bcc beside {name}: what is added x" + " x".join(f"{c:.2f}" for c in cost), end="; ")
            print("in all x" + " x".join(f"{c:.2f}" for c in total))
