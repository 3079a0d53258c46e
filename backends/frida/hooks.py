"""Turn what is loaded in a process into hooks: which file is it, does it hold SQLite, and where does that lie there.

Frida names a module by the path that the loader was given and by where it lies; the resolver wants a file that we can
open and speaks of its virtual addresses.  The two meet in the load bias: the module's base is where the page of the
lowest PT_LOAD segment ended up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from sqltrace.backends.base import Resolve
from sqltrace.backends.elf_file import ElfFile, dynamic_symbol
from sqltrace.backends.proc_maps import Inode, MappedFile, mapped_files
from sqltrace.errors import ResolutionError, SqltraceError
from sqltrace.events.wire import layout_words
from sqltrace.resolution import Resolution

FUNCTIONS: Final = ("sqlite3_step", "sqlite3_reset", "sqlite3_finalize")
"""In the order of agent.js."""

_PAGE = 4096
_LOADER_HOOK = "_dl_debug_state"  # an empty function that the loader calls for debuggers (glibc's elf/dl-debug.c)
_INT3 = b"\xcc"
_AGENT = "/memfd:frida-agent"


@dataclass(frozen=True, slots=True)
class Module:
    """A file with code in a process: `path` as the process names it, `base` as Frida gives it (hexadecimal)."""

    path: str
    base: str


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the agent must know to hook a module, and what the user must know of it."""

    module: Module
    inode: Inode
    resolution: Resolution
    addresses: tuple[str, ...]
    layout: str

    def to_agent(self) -> dict[str, Any]:
        """Return the arguments of the agent's `prepare` beside the module's."""
        return {"addresses": list(self.addresses), "layout": self.layout}


class Finder:
    """Finds SQLite in modules; each file is resolved once.  Safe to call from several threads."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._answers: dict[Inode, Resolution | SqltraceError | None] = {}

    def anything_in(self, pid: int) -> bool:
        """Whether any file mapped in the process holds SQLite; raises ResolutionError when one does, but unusably."""
        return any(self._resolution(mapped) is not None for mapped in application_files(pid))

    def mapped(self, pid: int, module: Module) -> MappedFile | None:
        """Return the file that is loaded as `module`; None when it cannot be reached, or is gone again."""
        return _mapped(pid, module.path)

    def hooks(self, mapped: MappedFile, module: Module) -> Hooks | None:
        """Return the hooks for a module that is this file, None where it holds no SQLite.

        Raises SqltraceError when SQLite is there but cannot be hooked.
        """
        resolution = self._resolution(mapped)
        if resolution is None:
            return None
        try:
            words = layout_words(resolution)
            offsets = [resolution.hookable(name).address for name in FUNCTIONS]
        except ValueError as error:
            raise ResolutionError(f"{error}.") from error
        except KeyError as error:
            raise ResolutionError(f"{module.path}: {error.args[0]} was not found.") from error
        lowest = min(segment.address for segment in ElfFile.read(mapped.path).segments)
        bias = int(module.base, 16) - lowest // _PAGE * _PAGE
        return Hooks(module, mapped.inode, resolution, tuple(hex(bias + offset) for offset in offsets), words.hex())

    def _resolution(self, mapped: MappedFile) -> Resolution | None:
        answer = self._answers.get(mapped.inode)
        if mapped.inode not in self._answers:
            try:
                answer = self._resolve(mapped.path)
            except SqltraceError as error:
                answer = error
            self._answers[mapped.inode] = answer
        if isinstance(answer, SqltraceError):
            raise answer
        return answer


def loader_is_watched(pid: int) -> bool:
    """Whether another tracer's breakpoint is where Frida learns of libraries; to be asked before Frida enters.

    Where a uprobe is, the kernel executes the instruction that the file has, so Frida's own hook never runs.
    """
    try:
        interpreter = ElfFile.read(f"/proc/{pid}/exe").interpreter
        path = f"/proc/{pid}/root{interpreter}"
        address = dynamic_symbol(path, _LOADER_HOOK)
        info = os.stat(path)
        base = base_of(pid, (info.st_dev, info.st_ino))
        if address is None or base is None:
            return False
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(int(base, 16) + address)
            return memory.read(1) == _INT3
    except (OSError, SqltraceError):
        return False


def application_files(pid: int) -> list[MappedFile]:
    """Return the files with code in a process, but for Frida's agents: these hold an SQLite of their own."""
    return [mapped for mapped in mapped_files(pid) if not mapped.name.startswith(_AGENT)]


def base_of(pid: int, inode: Inode) -> str | None:
    """Return where a file begins in a process, None where it is not mapped (any more)."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            addresses, _, _, _, number, *_ = line.split(maxsplit=5)
            if int(number) == inode[1]:
                return f"0x{addresses.partition('-')[0]}"
    return None


def _mapped(pid: int, path: str) -> MappedFile | None:
    """Return the mapped file that the process names so, which need not be its name in /proc/PID/maps."""
    files = mapped_files(pid)
    for candidate in (path, f"/proc/{pid}/root{path}"):
        try:
            info = os.stat(candidate)
        except OSError:
            continue
        for mapped in files:
            if mapped.inode == (info.st_dev, info.st_ino):
                return mapped
    return next((mapped for mapped in files if mapped.name == path.removesuffix(" (deleted)")), None)
