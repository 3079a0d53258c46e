"""What it takes to find SQLite in a binary: CPU time and memory from nothing, time from the cache, and dismissals.

Only what is on the machine is measured: Debian's library, its fossil, and what lies in build/real (nothing is
fetched).  Each figure comes from a process of its own; importing sqltrace is not part of the times, but is of the
memory, as is what is mapped of the file itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqltrace.errors import NoSQLiteError, NotAnImageError, ResolutionError
from sqltrace.resolve import resolve, resolve_cached

MULTIARCH = str(sysconfig.get_config_var("MULTIARCH"))
INSTALLED = (Path("/usr/lib", MULTIARCH, "libsqlite3.so.0"), Path("/usr/bin/fossil"))
REAL = Path("build/real")
LEAST_SIZE = 300_000
LIBRARIES = 150
"""So many does a large desktop program map; the largest that are installed are more than any program's own."""


def binaries() -> Iterator[Path]:
    """Yield what may be measured, smallest first."""
    found = {p for p in INSTALLED if p.exists()}
    for path in REAL.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size >= LEAST_SIZE:
            with path.open("rb") as file:
                if file.read(4) in (b"\x7fELF", b"\xcf\xfa\xed\xfe"):
                    found.add(path)
    return iter(sorted(found, key=lambda p: p.stat().st_size))


def libraries() -> list[Path]:
    """Return the largest shared libraries that are installed."""
    found = [p for p in Path("/usr/lib", MULTIARCH).glob("*.so*") if p.is_file() and not p.is_symlink()]
    return sorted(found, key=lambda p: p.stat().st_size)[-LIBRARIES:]


def measured(what: str, *arguments: str, cache: str) -> list[str]:
    """Run one of the measurements below in a new process and return the words that it prints."""
    command = [sys.executable, "-m", "benchmarks.resolver", what, *arguments]
    done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": cache}, capture_output=True, check=True)
    return done.stdout.decode().split()


def table() -> None:
    """Measure and print."""
    print("\nResolver")
    print(f"{'':<54}{'MB':>8}{'CPU s':>8}{'peak MB':>9}{'cached ms':>11}")
    with tempfile.TemporaryDirectory() as cache:
        for path in binaries():
            measured("read", str(path), cache=cache)
            cpu, peak, what = measured("cold", str(path), cache=cache)
            cached = measured("cached", str(path), cache=cache)[0]
            name = str(path.relative_to(REAL)) if path.is_relative_to(REAL) else str(path)
            name = name if len(name) <= 52 else f"{name[:24]}...{name[-25:]}"
            size = path.stat().st_size / 1e6
            print(f"{name:<54}{size:>8.1f}{cpu:>8}{peak:>9}{cached:>11}{'' if what == 'found' else '  ' + what}")
        several = libraries()
        names = [str(p) for p in several]
        measured("read", *names, cache=cache)
        cpu, rate, count = measured("dismiss", *names, cache=cache)
        print(
            f"\nthe {len(names)} largest libraries, {sum(p.stat().st_size for p in several) / 1e6:.0f} MB: {cpu} s CPU;"
        )
        print(f"{count} of them without SQLite dismissed at {rate} GB/s")


def _read(names: list[str]) -> None:
    """Bring files into the page cache."""
    for name in names:
        Path(name).read_bytes()


def _cold(name: str) -> None:
    start = time.process_time()
    what = _outcome(name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.process_time() - start:.2f} {peak:.0f} {what}")


def _cached(name: str) -> None:
    """Let a process remember what this one then asks for."""
    subprocess.run([sys.executable, "-m", "benchmarks.resolver", "remember", name], check=True)
    start = time.perf_counter()
    _remembered(name)
    print(f"{1000 * (time.perf_counter() - start):.1f}")


def _remembered(name: str) -> None:
    with contextlib.suppress(NoSQLiteError, ResolutionError):
        resolve_cached(name)


def _dismiss(names: list[str]) -> None:
    begin = time.process_time()
    size = count = 0
    taken = 0.0
    for name in names:
        start = time.process_time()
        if _outcome(name) == "none":
            taken += time.process_time() - start
            size += Path(name).stat().st_size
            count += 1
    print(f"{time.process_time() - begin:.2f} {size / taken / 1e9:.1f} {count}")


def _outcome(name: str) -> str:
    try:
        resolve(name)
    except (NoSQLiteError, NotAnImageError):
        return "none"
    except ResolutionError:
        return "unresolved"
    return "found"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read", *files]:
            _read(files)
        case ["cold", file]:
            _cold(file)
        case ["cached", file]:
            _cached(file)
        case ["remember", file]:
            _remembered(file)
        case ["dismiss", *files]:
            _dismiss(files)
