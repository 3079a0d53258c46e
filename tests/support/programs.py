"""The workload program (tests/programs/*.c), linked with SQLite in each of the ways that targets are.

Everything lands under build/ in the checkout, keyed by the sources and the flags, so that the second run
builds nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.sqlite_builds import amalgamation, sqlite_object

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "workload"
SOURCES: Final = ROOT / "tests" / "programs"

_WARNINGS: Final = ("-Wall", "-Wextra", "-Werror")
_AMALGAMATION_FLAGS: Final = (
    "-O2",
    "-fPIE",
    "-DSQLITE_ENABLE_FTS4",
    "-DSQLITE_ENABLE_FTS5",
    "-DSQLITE_ENABLE_RTREE",
    "-DSQLITE_ENABLE_DBSTAT_VTAB",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one kind of workload is compiled and linked."""

    link: Sequence[str]
    flags: Sequence[str] = ("-O2", "-fPIE")
    strip: bool = False
    release: str | None = None
    """Of SQLite's amalgamation, linked in; None: the library that `link` names."""


KINDS: Final = {
    "dynamic": Recipe(link=("-pie", "-lsqlite3")),
    "static": Recipe(link=("-pie", "-l:libsqlite3.a", "-lm", "-ldl"), strip=True),
    "static-nopie": Recipe(
        link=("-static", "-no-pie", "-l:libsqlite3.a", "-lm", "-ldl"), flags=("-O2", "-fno-pie"), strip=True
    ),
    "amalgamation": Recipe(link=("-pie", "-lm", "-ldl"), strip=True, release="3.50.4"),
    "old": Recipe(link=("-pie", "-lm", "-ldl"), strip=True, release="3.31.1"),
}
"""dynamic: Debian's libsqlite3.so.0; static: Debian's libsqlite3.a in a stripped PIE; static-nopie: the same
without PT_INTERP and without symbols; amalgamation, old: a release of SQLite compiled in, stripped."""


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")


def workload(kind: str = "dynamic") -> Path:
    """Return the workload of this kind, built when it is not there yet.  Raises RuntimeError with gcc's words."""
    recipe = KINDS[kind]
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(repr(recipe).encode())
    for file in [*sources, *sorted(SOURCES.glob("*.h"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    directory = BUILD / f"{kind}-{digest.hexdigest()[:16]}"
    program = directory / "workload"
    if program.exists():
        return program
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            objects: list[str | Path] = []
            include: list[str | Path] = []
            if recipe.release:
                include = ["-I", amalgamation(recipe.release)]
                objects = [sqlite_object(recipe.release, _AMALGAMATION_FLAGS)]
            partial = directory / "partial"
            _run(
                "gcc", *_WARNINGS, *recipe.flags, *include, "-o", partial, *sources, *objects, "-pthread", *recipe.link
            )
            if recipe.strip:
                _run("strip", partial)
            partial.rename(program)
    return program
