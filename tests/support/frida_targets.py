"""Programs for the tests of the Frida backend.

They use a copy of Debian's libsqlite3: a uprobe of another test run that goes on at the same time belongs to the
library's inode, and a uprobe and a patch at one address kill the program.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "frida"
LIBRARY: Final = Path("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0")
PYTHON: Final = "/usr/bin/python3"  # its sqlite3 module loads the library with dlopen


def library_folder() -> Path:
    """Return a folder with our copy of libsqlite3."""
    folder = BUILD / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / LIBRARY.name
    if not copy.exists():
        partial = folder / f"partial-{os.getpid()}"
        shutil.copyfile(LIBRARY.resolve(), partial)
        partial.chmod(0o755)
        partial.rename(copy)
    return folder


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which programs use our copy."""
    return os.environ | {"LD_LIBRARY_PATH": str(library_folder())} | more


def compiled(source: Path, *flags: str) -> Path:
    """Return a program made from one C file, built when it is older than its source."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / ("-".join([source.stem, *(flag.strip("-") for flag in flags)]))
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", *flags, "-o", program, source, "-lsqlite3", "-lpthread", "-lm"], check=True)
    return program


def busy() -> Path:
    """Return the program that works all the time and checks every answer."""
    return compiled(Path(__file__).with_name("busy.c"))


def busy_static() -> Path:
    """Return the same as a static program."""
    return compiled(Path(__file__).with_name("busy.c"), "-static")
