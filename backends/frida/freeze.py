"""Write and take out patches while every thread of the process stands still.

A thread that is inside the bytes that are overwritten would go on in the middle of an instruction, and one that
reads them while they are written would see half of each (measured, when Frida wrote its patches while the threads
ran: a busy process died within about 20 rounds of attach and detach).  So all threads are stopped, Frida's too, those
inside are led out by single steps, and the code is written from outside through /proc/PID/mem, which needs no change
of its protection.  The moved copy of the overwritten instructions stays for ever: nobody has to be led out of that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from types import TracebackType
from typing import Self

from sqltrace.backends.launch import ptrace
from sqltrace.errors import BackendError

_MOST_STEPS = 256
"""More instructions than all patched ranges hold together."""


@dataclass(frozen=True, slots=True)
class Range:
    """Code that no thread may be in the middle of."""

    start: int
    size: int

    def inside(self, address: int) -> bool:
        """Whether a thread that is about to execute `address` would be surprised."""
        return self.start < address < self.start + self.size


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


def write_code(pid: int, patches: Sequence[Patch]) -> None:
    """Write patches into a process that stands still.  Raises BackendError when its code is not what it was."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        if not all(_holds(memory, patch.address, patch.original) for patch in patches):
            raise BackendError(f"the code of process {pid} changes: somebody else is at work there")
        for patch in patches:
            memory.seek(patch.address)
            memory.write(patch.patched)


def restore_code(pid: int, patches: Sequence[Patch]) -> None:
    """Write original code back.  Raises OSError."""
    with Freeze(pid, patches), open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for patch in patches:
            if _holds(memory, patch.address, patch.patched):  # else it is another program by now, or unloaded
                memory.seek(patch.address)
                memory.write(patch.original)


def untouched(pid: int, patches: Sequence[Patch]) -> bool:
    """Whether the code is there and as it was before it was patched."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return all(_holds(memory, patch.address, patch.original) for patch in patches)


def in_place(pid: int, patches: Sequence[Patch]) -> bool:
    """Whether any of the patches is there."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return any(_holds(memory, patch.address, patch.patched) for patch in patches)


def _holds(memory: RawIOBase, address: int, code: bytes) -> bool:
    try:
        memory.seek(address)
        return memory.read(len(code)) == code
    except OSError:
        return False  # nothing is mapped there


def threads(pid: int) -> set[int]:
    """Return the ids of all threads of a process; empty when it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


class Freeze:
    """Context in which no thread of a process runs, and none is in the middle of what a patch overwrites."""

    def __init__(self, pid: int, patches: Sequence[Patch]) -> None:
        self._pid = pid
        self._ranges = [Range(patch.address, len(patch.original)) for patch in patches]
        self._gone: set[int] = set()
        self._stopped: dict[int, list[int]] = {}  # thread -> signals it was about to get

    @property
    def stopped(self) -> Sequence[int]:
        """The threads."""
        return sorted(self._stopped)

    def __enter__(self) -> Self:
        try:
            while new := threads(self._pid) - self._gone - self._stopped.keys():
                for tid in new:
                    number = ptrace.interrupt(tid)
                    if number is None:
                        self._gone.add(tid)
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

    def owe(self, tid: int, signals: Sequence[int]) -> None:
        """Note signals that a thread is still to get."""
        self._stopped[tid] += signals

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
