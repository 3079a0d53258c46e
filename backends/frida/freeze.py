"""Stop an application's threads while code is patched that they may be executing.

Frida writes its patches while the threads run.  A thread that is inside the overwritten bytes, or in the moved copy
of them that goes away with the patch, then executes garbage (measured: a busy process dies within about 20 rounds of
attach and detach).  So every thread of the application is stopped, led out of those bytes by single steps, and let go
when the patch is written; Frida's own threads run on, because they do the writing.

They cannot be told apart by name: the agent names them after the program.  But Frida hides its threads from its own
list, so a thread that is in /proc before and after that list is made, and not in it, is Frida's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqltrace.backends.launch import ptrace

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


def threads(pid: int) -> set[int]:
    """Return the ids of all threads of a process; empty when it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


def hidden_threads(pid: int, listed: Callable[[], Iterable[int]]) -> set[int]:
    """Return Frida's threads; `listed` returns those that Frida admits."""
    before = threads(pid)
    admitted = set(listed())
    return (before & threads(pid)) - admitted


class Freeze:
    """Context in which no thread of `pid` runs, except those in `spared`, and none is inside `ranges`."""

    def __init__(self, pid: int, ranges: Sequence[Range], spared: set[int]) -> None:
        self._pid = pid
        self._ranges = ranges
        self._spared = spared
        self._stopped: dict[int, list[int]] = {}  # thread -> signals it was about to get

    def __enter__(self) -> Self:
        try:
            while new := threads(self._pid) - self._spared - self._stopped.keys():
                for tid in new:
                    number = ptrace.interrupt(tid)
                    if number is None:
                        self._spared = self._spared | {tid}  # it ended
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
