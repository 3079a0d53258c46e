"""The files that a process has mapped as code, by paths that work for us too.

The name in /proc/PID/maps is the process's own: in another mount namespace it leads elsewhere for us, and a deleted
or replaced file has no name at all.  /proc/PID/map_files/RANGE always leads to the very inode (root only).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from sqltrace.errors import NoSQLiteError, TargetError

Inode = tuple[int, int]
"""st_dev, st_ino."""


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file with at least one executable mapping.  `name` as the process sees it, `path` for us to open."""

    name: str
    path: str
    inode: Inode


def comm(pid: int) -> str:
    """Return the short name of a process, `?` when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return "?"


def no_sqlite(pids: Sequence[int]) -> NoSQLiteError:
    """Return the error for processes of which none has SQLite mapped."""
    names = ", ".join(f"{pid} ({comm(pid)})" for pid in pids)
    return NoSQLiteError(
        f"no SQLite in process {names}: none of the files it has mapped holds any. "
        "If it is loaded later, start the program with sqltrace run."
    )


def mapped_files(pid: int) -> list[MappedFile]:
    """Return each file that the process has mapped executable, once; raises TargetError when it cannot be read."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        raise TargetError(f"there is no process {pid}.") from None
    except ProcessLookupError:
        raise TargetError(f"process {pid} ended.") from None
    except PermissionError:
        raise TargetError(
            f"cannot look at process {pid}: it belongs to somebody else. Run as its user, or with sudo."
        ) from None
    found: dict[Inode, MappedFile] = {}
    for line in lines:
        parts = line.split(maxsplit=5)
        if len(parts) < 6 or b"x" not in parts[1] or not parts[5].startswith(b"/"):
            continue
        name = os.fsdecode(parts[5])
        number = int(parts[4])
        mapped = _reachable(pid, name.removesuffix(" (deleted)"), os.fsdecode(parts[0]), number)
        if mapped is not None:
            found.setdefault(mapped.inode, mapped)
    return list(found.values())


def _reachable(pid: int, name: str, addresses: str, number: int) -> MappedFile | None:
    start, _, end = addresses.partition("-")
    exact = f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"
    for path in (name, f"/proc/{pid}/root{name}", exact):
        try:
            info = os.stat(path)
        except OSError:
            continue
        if info.st_ino == number and stat.S_ISREG(info.st_mode):
            return MappedFile(name, path, (info.st_dev, info.st_ino))
    return None
