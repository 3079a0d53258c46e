"""Stop an application's threads while code is patched that they may be executing.

Frida writes its patches while the threads run.  A thread that is inside the overwritten bytes, or in the moved copy
of them that goes away with the patch, then executes garbage (measured: a busy process dies within about 20 rounds of
attach and detach).  So every thread of the application is stopped, led out of those bytes by single steps, and let go
when the patch is written; Frida's own threads run on, because they do the writing.

They cannot be told apart by name: the agent names them after the program.  (Frida's own list leaves them out, but
making that list stops all threads in turn and was seen to hang.)  So each thread is stopped and its stack looked at:
one whose stack leads into the agent's code is Frida's, or is in Frida's hands, and is let go at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from types import TracebackType
from typing import Self

import numpy as np

from sqltrace.backends.launch import ptrace

_PAGE = 4096
_STACK_PAGES = 3
_MOST_STEPS = 256
"""More instructions than all patched ranges hold together."""


@dataclass(frozen=True, slots=True)
class Range:
    """Code that no thread may be in the middle of."""

    start: int
    size: int
    first_too: bool = False
    """A thread just before the first byte counts as inside: the code as a whole will go away."""

    def inside(self, address: int) -> bool:
        """Whether a thread that is about to execute `address` would be surprised."""
        low = self.start if self.first_too else self.start + 1
        return low <= address < self.start + self.size


@dataclass(frozen=True, slots=True)
class Patch:
    """Where code was overwritten, and the bytes before and after."""

    address: int
    original: bytes
    patched: bytes

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Self:
        """Read what the agent says of a patch."""
        return cls(int(fields["address"], 16), bytes.fromhex(fields["bytes"]), bytes.fromhex(fields["patched"]))


def restore_code(pid: int, patches: Sequence[Patch]) -> None:
    """Write original code back without the agent's help.  Raises OSError."""
    ranges = [Range(patch.address, len(patch.original)) for patch in patches]
    with Freeze(pid, ranges), open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for patch in patches:
            if _holds(memory, patch):  # else it is another program by now, or the library is gone
                memory.seek(patch.address)
                memory.write(patch.original)


def in_place(pid: int, patches: Sequence[Patch]) -> bool:
    """Whether all of these patches are still in the memory of a process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return all(_holds(memory, patch) for patch in patches)


def _holds(memory: RawIOBase, patch: Patch) -> bool:
    try:
        memory.seek(patch.address)
        return memory.read(len(patch.patched)) == patch.patched
    except OSError:
        return False  # nothing is mapped there


def threads(pid: int) -> set[int]:
    """Return the ids of all threads of a process; empty when it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


def agent_code(pid: int) -> list[Range]:
    """Return where the code of Frida's agents lies in a process."""
    with open(f"/proc/{pid}/maps", "rb") as stream:
        lines = [line.split(maxsplit=5) for line in stream]
    found = []
    for parts in lines:
        if len(parts) == 6 and b"x" in parts[1] and parts[5].startswith(b"/memfd:frida-agent"):
            start, _, end = parts[0].partition(b"-")
            found.append(Range(int(start, 16), int(end, 16) - int(start, 16)))
    return found


def _stack(memory: RawIOBase, pointer: int) -> bytes:
    """Return the innermost part of a stack, as far as it goes: whole words."""
    pointer &= ~7
    memory.seek(pointer)
    size = _PAGE - pointer % _PAGE  # a read that reaches past the mapping returns what is there
    data = memory.read(size) or b""
    for _ in range(_STACK_PAGES):
        try:
            page = memory.read(_PAGE) or b""
        except OSError:
            break
        data += page
        if len(page) < _PAGE:
            break
    return data[: len(data) // 8 * 8]


class Freeze:
    """Context in which none of the application's threads runs, and none is inside `ranges`."""

    def __init__(self, pid: int, ranges: Sequence[Range]) -> None:
        self._pid = pid
        self._ranges = ranges
        self._agent: list[Range] = []
        self._spared: set[int] = set()
        self._stopped: dict[int, list[int]] = {}  # thread -> signals it was about to get

    def __enter__(self) -> Self:
        self._agent = agent_code(self._pid)
        # Sorted out before anything stands still for good: where we were before, there are many of Frida's threads.
        for tid in threads(self._pid):
            number = ptrace.interrupt(tid)
            if number is not None:
                if self._is_frida(tid):
                    self._spared.add(tid)
                ptrace.detach(tid, number)
        try:
            while new := threads(self._pid) - self._spared - self._stopped.keys():
                for tid in new:
                    number = ptrace.interrupt(tid)
                    if number is None:
                        self._spared.add(tid)  # it ended
                    elif self._is_frida(tid):
                        self._spared.add(tid)
                        ptrace.detach(tid, number)
                    else:
                        self._stopped[tid] = [number]
            for tid in self._stopped:
                self._lead_out(tid)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _is_frida(self, tid: int) -> bool:
        if not self._agent:
            return False
        try:
            with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
                words = np.frombuffer(_stack(memory, ptrace.stack_pointer(tid)), dtype="<u8")
            address = ptrace.instruction_pointer(tid)
        except OSError:
            return False
        if any(r.inside(address) for r in self._ranges):
            return False
        return any(bool(((words >= r.start) & (words < r.start + r.size)).any()) for r in self._agent)

    def _lead_out(self, tid: int) -> None:
        for _ in range(_MOST_STEPS):
            try:
                address = ptrace.instruction_pointer(tid)
            except ProcessLookupError:
                return
            if not any(r.inside(address) for r in self._ranges):
                return
            number = ptrace.single_step(tid)
            if number is None:
                return
            if number:
                self._stopped[tid].append(number)

    def _release(self) -> None:
        for tid, signals in self._stopped.items():
            numbers = [n for n in signals if n]
            ptrace.detach(tid, numbers[0] if numbers else 0)
            for number in numbers[1:]:
                os.kill(self._pid, number)  # two signals within a few instructions: the second loses its thread
        self._stopped.clear()
