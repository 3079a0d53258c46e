"""Which processes are observed beside those that are named: those of an executable file, or all.

A process belongs to a file when /proc/PID/exe leads to the same inode.  A program that is replaced while we watch, as
by an upgrade, is another inode under the same path; processes of both belong to it.
"""

from __future__ import annotations

import contextlib
import glob
import os
from dataclasses import dataclass

from sqltrace.backends.launch.command import interpreted_by
from sqltrace.backends.proc_maps import Inode, MappedFile
from sqltrace.errors import TargetError


@dataclass(frozen=True, slots=True)
class Scope:
    """Everyone, or the processes of the file at `exe`, or (neither) those that are named one by one."""

    everyone: bool = False
    exe: str | None = None

    @property
    def open(self) -> bool:
        """Whether processes can join later, so that the end of those that are known is not the end."""
        return self.everyone or self.exe is not None


class ChosenFile:
    """The file whose processes are observed, and the inodes that it had.  Raises TargetError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inodes: set[Inode] = set()
        if interpreted_by(path) != path:
            raise TargetError(
                f"cannot watch {path}: it is a script, and its processes are those of {interpreted_by(path)}. "
                "Give that file, or the process ids."
            )
        try:
            self._add(os.stat(path))
        except OSError as error:
            raise TargetError(f"cannot watch {path}: {error.strerror}.") from error
        if not os.path.isfile(path):
            raise TargetError(f"cannot watch {path}: it is not a file.")

    def _add(self, info: os.stat_result) -> bool:
        inode = (info.st_dev, info.st_ino)
        new = inode not in self._inodes
        self._inodes.add(inode)
        return new

    @property
    def path(self) -> str:
        """Where it is."""
        return self._path

    @property
    def number(self) -> int:
        """Inode number of the file that is there now, or was last."""
        try:
            return os.stat(self._path).st_ino
        except OSError:
            return 0

    def renewed(self) -> bool:
        """Whether another file has taken its place since the last call."""
        try:
            return self._add(os.stat(self._path))
        except OSError:
            return False

    def runs_in(self, pid: int) -> bool:
        """Whether this process executes the file."""
        try:
            info = os.stat(f"/proc/{pid}/exe")
        except OSError:
            return False
        return (info.st_dev, info.st_ino) in self._inodes


def all_pids() -> list[int]:
    """Return the processes that there are now, without ourselves."""
    return [pid for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != os.getpid()]


_LIBRARIES = tuple(
    f"{folder}/{below}libsqlite3.so*"
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
    for below in ("", "*/")
)


def system_libraries() -> list[MappedFile]:
    """Return the SQLite libraries of this machine, whether or not somebody uses them now."""
    found: dict[Inode, MappedFile] = {}
    for path in (path for pattern in _LIBRARIES for path in glob.glob(pattern)):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            found.setdefault((info.st_dev, info.st_ino), MappedFile(path, path, (info.st_dev, info.st_ino)))
    return list(found.values())
