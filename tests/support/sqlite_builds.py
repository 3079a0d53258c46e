"""SQLite built at many releases and options: the oracles of the resolver, and targets for everyone else.

The better-sqlite3 packages on npm carry SQLite's amalgamation, one release each, so that `npm pack` is all
that is needed to have nearly every release of the last ten years.
`build_twin` compiles one of them twice over: an unstripped file, whose symbols and DWARF are the truth,
and a stripped copy of it, which is what users trace.
Everything lands under build/ in the checkout, keyed by what went in, so that the second run builds nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BUILD: Final = Path(__file__).resolve().parents[2] / "build"

PACKAGES: Final = {
    "3.19.3": "4.0.3",
    "3.21.0": "4.1.1",
    "3.24.0": "4.2.0",
    "3.26.0": "5.4.0",
    "3.29.0": "5.4.3",
    "3.31.1": "7.0.1",
    "3.34.0": "7.1.2",
    "3.35.2": "7.1.5",
    "3.36.0": "7.4.5",
    "3.37.0": "7.4.6",
    "3.37.2": "7.5.0",
    "3.38.2": "7.5.1",
    "3.38.5": "7.5.3",
    "3.39.0": "7.6.0",
    "3.39.1": "7.6.2",
    "3.40.1": "8.1.0",
    "3.41.0": "8.2.0",
    "3.42.0": "8.4.0",
    "3.43.0": "8.6.0",
    "3.43.2": "9.0.0",
    "3.45.3": "9.6.0",
    "3.47.2": "11.7.0",
    "3.49.2": "11.10.0",
    "3.50.4": "12.4.1",
    "3.51.3": "12.8.0",
    "3.53.4": "13.0.3",
    "3.54.1": "13.2.0",
}
"""SQLite release: the version of better-sqlite3 that carries it."""

DEFAULT_VERSION: Final = "3.50.4"

_DRIVER: Final = Path(__file__).with_name("driver.c")


@dataclass(frozen=True, slots=True)
class Twin:
    """One build of SQLite: with its symbols and DWARF, and stripped."""

    unstripped: Path
    stripped: Path


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


def _sqlite_files(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield sqlite3.c and its headers, which older packages keep in an archive within the archive."""
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            if name in ("sqlite3.c", "sqlite3.h", "sqlite3ext.h"):
                yield name, file.read()
            elif "/deps/" in member.name and name.endswith(".tar.gz"):
                yield from _sqlite_files(file.read())


def amalgamation(version: str = DEFAULT_VERSION) -> Path:
    """Return the directory that holds sqlite3.c, sqlite3.h and sqlite3ext.h of one release of PACKAGES."""
    directory = BUILD / "amalgamation" / version
    if (directory / "complete").exists():
        return directory
    with _locked(directory):
        if not (directory / "complete").exists():
            name = _run("npm", "pack", "--silent", f"better-sqlite3@{PACKAGES[version]}", cwd=directory).split()[-1]
            for file, content in _sqlite_files((directory / name).read_bytes()):
                (directory / file).write_bytes(content)
            (directory / name).unlink()
            if f'"{version}"'.encode() not in (directory / "sqlite3.h").read_bytes():
                raise RuntimeError(f"better-sqlite3 {PACKAGES[version]} does not hold SQLite {version}")
            (directory / "complete").touch()
    return directory


def sqlite_object(version: str, flags: Sequence[str]) -> Path:
    """Compile the amalgamation with -g and these flags; return the object file."""
    source = amalgamation(version)
    key = hashlib.sha256("\0".join([version, *flags]).encode()).hexdigest()[:16]
    directory = BUILD / "sqlite" / key
    target = directory / "sqlite3.o"
    with _locked(directory):
        if not target.exists():
            partial = directory / "partial.o"
            _run("gcc", "-g", "-w", *flags, "-c", source / "sqlite3.c", "-o", partial)
            partial.rename(target)
            (directory / "flags").write_text(" ".join([version, *flags]))
    return target


def build_twin(
    version: str = DEFAULT_VERSION,
    flags: Sequence[str] = ("-O2",),
    *,
    link: Sequence[str] = (),
    shared: bool = False,
) -> Twin:
    """Build driver.c with SQLite inside (or, with `shared`, an addon that exports nothing of SQLite).

    `flags` are the compiler's, `link` the linker's.  The driver executes its arguments:
    `twin.stripped DATABASE SQL...` prepares, steps and finalizes each SQL once.
    """
    if shared:
        flags = (*flags, "-fPIC", "-fvisibility=hidden")
        link = (
            *link,
            "-shared",
            "-Wl,-Bsymbolic",
            f"-Wl,--version-script={Path(__file__).with_name('driver.map')}",
        )
    compiled = sqlite_object(version, flags)
    key = hashlib.sha256("\0".join([*link, _DRIVER.read_text()]).encode()).hexdigest()[:16]
    unstripped = compiled.parent / f"driver-{key}"
    stripped = unstripped.with_suffix(".stripped")
    with _locked(compiled.parent):
        if not stripped.exists():
            partial = unstripped.with_suffix(".partial")
            _run(
                "gcc", "-g", "-w", *flags, f"-I{amalgamation(version)}", _DRIVER, compiled,
                "-o", partial, *link, "-lm", "-ldl", "-lpthread",
            )  # fmt: skip
            partial.rename(unstripped)
            shutil.copy2(unstripped, partial)
            _run("strip", partial)
            partial.rename(stripped)
    return Twin(unstripped, stripped)
