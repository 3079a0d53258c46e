"""One process that our agent is in, its ring, and its forked children, which write to the same ring.

Fork needs no help: a child inherits the patched code, the hooks and the shared ring.  Frida is not in it, so the
child is discovered by its records, and at the end its code is restored by us.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sqltrace.backends.base import Ended, Item, Probed, Refused, Started
from sqltrace.backends.frida.client import WorkerClient
from sqltrace.backends.frida.hooks import Finder, Hooks, Module, application_files, base_of, loader_is_watched
from sqltrace.backends.frida.sources import hooks_source
from sqltrace.backends.frida.tsc import counter_is_trusted
from sqltrace.backends.proc_maps import Inode, MappedFile
from sqltrace.backends.ring import SLOT, Geometry, Ring
from sqltrace.errors import BackendError, SqltraceError, TargetError
from sqltrace.events.wire import Database, End, Record, Text

EXECUTIONS: Final = 32768
"""Statements that are followed at once."""
_MOST_CHILDREN: Final = 4096
_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # F_ADD_SEALS: F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_BLIND: Final = (
    "another tracer watches the dynamic loader of process {pid}, so that Frida does not hear of libraries that are "
    "loaded later. End it first, or use it instead."
)
EXEC_NOT_FOLLOWED: Final = "process {pid} has called exec, and the frida backend does not follow it there."
_LAST_WORDS: Final = 0.05
"""Seconds for hooks that were writing when the ring was shut."""
_SCHEDULED_AT_LAST: Final = 1.0
"""Seconds more where the books say that one has not: its thread may wait for a processor."""
_SHORT: Final = 0.002


@dataclass(slots=True)
class Member:
    """A process that writes to the ring."""

    pid: int
    pidfd: int | None
    dead_at: int | None = None
    """The ring's head when its death was noticed: what it wrote lies before."""
    ended: bool = False

    def dead(self) -> bool:
        """Whether the process has ended."""
        if self.pidfd is None:
            return True
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Give the descriptor back."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class Observed:
    """A process with our agent in it."""

    def __init__(self, pid: int, worker: WorkerClient, finder: Finder, *, block: bool = False) -> None:
        self.pid = pid
        self._block = block
        self._worker = worker
        self._finder = finder
        self._members: dict[int, Member] = {}
        self._strangers: set[int] = set()
        self._ring: Ring | None = None
        self._ring_inode = 0
        self._handled: set[Inode] = set()
        self._suspects: set[Inode] = set()
        self._unfinished = 0
        self._taken = 0
        self._last_hits: int | None = None
        self._left = False
        self._revived = False
        self._replaced = False
        self.lingers = False
        """It was stopped when we left, so that its agent's part of leaving is still to come."""

    # -- entering

    def enter(self, *, held: bool, ring_bytes: int, parent: int) -> list[Item]:
        """Bring the agent in and hook what is loaded.  Raises BackendError.

        held: the process waits at its entry point, and `resume` lets it run.
        """
        begun = time.perf_counter()
        self._member(self.pid)
        geometry = Geometry(ring_bytes // SLOT, EXECUTIONS)
        if not held and (items := self._revive(geometry, parent, begun)):
            return items
        blind = loader_is_watched(self.pid)
        self._ask("attach", held=held)
        opened = self._ask(
            "open_ring", slots=geometry.slots, executions=EXECUTIONS, tsc=counter_is_trusted(), source=hooks_source()
        )
        self._map(opened, geometry)
        items = [Started(self.pid, parent)]
        if blind:
            items.append(Refused(self.pid, "", _BLIND.format(pid=self.pid)))
        hooks = []
        for found in self._ask("observe"):
            module = Module(found["path"], found["base"])
            try:
                hook = self.loaded(module)
                if hook is not None:
                    hooks.append(hook)
            except SqltraceError as error:
                items.append(Refused(self.pid, module.path, str(error)))
        self._hook(hooks)
        self._ask("give_back_signals")
        taken = round((time.perf_counter() - begun) * 1e3, 3)
        items += [Probed(self.pid, hook.module.path, hook.resolution, taken) for hook in hooks]
        return items

    def _revive(self, geometry: Geometry, parent: int, begun: float) -> list[Item]:
        """Use what is left of an earlier visit; nothing when there is nothing of use."""
        hooks = []
        for mapped in application_files(self.pid):
            base = base_of(self.pid, mapped.inode)
            hook = None if base is None else self._finder.hooks(mapped, Module(mapped.name, base))
            if hook is not None:
                hooks.append(hook)
        wanted = [{"base": hook.module.base, **hook.to_agent()} for hook in hooks]
        ring = self._ask("revive", slots=geometry.slots, executions=EXECUTIONS, wanted=wanted)
        if ring is None:
            return []
        self._revived = True
        self._handled.update(hook.inode for hook in hooks)
        self._map(ring, geometry)
        taken = round((time.perf_counter() - begun) * 1e3, 3)
        return [Started(self.pid, parent), *(Probed(self.pid, h.module.path, h.resolution, taken) for h in hooks)]

    def resume(self) -> None:
        """Let a held process run."""
        self._ask("resume")

    def loaded(self, module: Module) -> Hooks | None:
        """Look at a file that the process has loaded; raises SqltraceError."""
        mapped = self._finder.mapped(self.pid, module)
        if mapped is None:
            return None
        self._handled.add(mapped.inode)
        return self._finder.hooks(mapped, module)

    def _hook(self, hooks: Sequence[Hooks]) -> None:
        for hook in hooks:
            self._ask("prepare", base=hook.module.base, path=hook.module.path, **hook.to_agent())
        if hooks:
            self._ask("patch", bases=[hook.module.base for hook in hooks])

    # -- what Frida did not notice

    def look_again(self) -> list[Item]:
        """Find SQLite that was loaded without the agent's asking us; hook it and report that.

        Only what was there already the last time: before that, the question may be on its way.
        """
        if self._revived and self._ring_is_gone():
            return [Refused(self.pid, "", EXEC_NOT_FOLLOWED.format(pid=self.pid)), *self.replaced()]
        items: list[Item] = []
        suspects = set()
        for mapped in self._mapped_files():
            if mapped.inode in self._handled:
                continue
            if mapped.inode in self._suspects:
                self._handled.add(mapped.inode)
                items += self._hook_late(mapped)
            else:
                suspects.add(mapped.inode)
        self._suspects = suspects
        return items

    def _ring_is_gone(self) -> bool:
        """Whether the process has called exec, which Frida would have said if it were there."""
        if self._left or self._replaced or _state(self.pid) in {"", "Z", "X"}:
            return False
        return not self._shares_ring(self.pid)

    def _mapped_files(self) -> list[MappedFile]:
        if self._left or self._replaced or self._ring is None or self._members[self.pid].dead():
            return []
        try:
            return application_files(self.pid)
        except TargetError:
            return []  # it has just ended

    def _hook_late(self, mapped: MappedFile) -> list[Item]:
        begun = time.perf_counter()
        try:
            base = base_of(self.pid, mapped.inode)
            hook = None if base is None else self._finder.hooks(mapped, Module(mapped.name, base))
            if hook is None:
                return []
            self._hook([hook])
        except (SqltraceError, OSError) as error:
            return [Refused(self.pid, mapped.name, str(error))]
        taken = round((time.perf_counter() - begun) * 1e3, 3)
        return [
            Refused(self.pid, mapped.name, f"{mapped.name} was loaded unnoticed: what it did until now was not seen."),
            Probed(self.pid, mapped.name, hook.resolution, taken),
        ]

    def beat(self) -> None:
        """Let the program wait for us where its ring is full.  From any thread."""
        if self._ring is not None:
            self._ring.beat()

    def _ask(self, what: str, **arguments: Any) -> Any:
        return self._worker.request(what, pid=self.pid, **arguments)

    def _map(self, opened: Mapping[str, int], geometry: Geometry) -> None:
        try:
            fd = os.open(f"/proc/{opened['owner']}/fd/{opened['fd']}", os.O_RDWR | os.O_CLOEXEC)
            try:
                # Or a target could shrink it under our mapping, which would be our death.
                fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
                ring = Ring(fd, geometry)
                if self._block:
                    ring.beat()  # before the first hook: the next beat may come after the program's end
                self._ring = ring
                self._ring_inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot share memory with process {self.pid}: {error}") from error
        self._ask("close_descriptor")

    # -- reading

    @property
    def alive(self) -> bool:
        """Whether it or one of its children still runs, or has left something to be told."""
        return any(not member.ended for member in self._members.values())

    def pidfds(self) -> list[int]:
        """Return descriptors that become readable when a process ends."""
        return [m.pidfd for m in self._members.values() if m.pidfd is not None and m.dead_at is None]

    def collect(self) -> list[Item]:
        """Return what came in since the last time: records, children, deaths."""
        if self._ring is None:
            return []
        for member in self._members.values():
            if member.dead_at is None and member.dead():
                member.dead_at = self._ring.head
        everybody = all(m.dead_at is not None for m in self._members.values())
        items = self._take(self._ring.read(dead=everybody, stopped=_stopped(self.pid)))
        for member in list(self._members.values()):
            if member.dead_at is not None and not member.ended and self._ring.tail >= member.dead_at:
                items += self._end(member)
        return items

    def _take(self, records: Sequence[Record]) -> list[Item]:
        items: list[Item] = []
        for record in records:
            if isinstance(record, np.ndarray):
                self._taken += len(record)
                for pid in np.unique(record["pid"]).tolist():
                    items += self._met(pid)
            elif isinstance(record, (Text, Database)):
                items += self._met(record.pid)
            items.append(record)
        return items

    def _met(self, pid: int) -> list[Item]:
        """Note the writer of a record; a forked child is news."""
        if pid in self._members or pid in self._strangers:
            return []
        if len(self._members) >= _MOST_CHILDREN:
            return []
        if _state(pid) not in {"", "Z", "X"} and not self._shares_ring(pid):
            # Not a child of our process, unless it has called exec in the meantime.
            self._strangers.add(pid)
            return [Started(pid, 0), Ended(pid, None)]
        self._member(pid)
        return [Started(pid, _parent(pid))]

    def _member(self, pid: int) -> None:
        try:
            self._members[pid] = Member(pid, os.pidfd_open(pid))
        except OSError:
            self._members[pid] = Member(pid, None)

    def _shares_ring(self, pid: int) -> bool:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as stream:
            for line in stream:
                parts = line.split(maxsplit=5)
                if len(parts) == 6 and parts[5].startswith(b"/memfd:") and int(parts[4]) == self._ring_inode:
                    return True
        return False

    def _end(self, member: Member) -> list[Item]:
        member.ended = True
        member.close()
        return [*self._unended(End.EXIT, member.pid), Ended(member.pid, None)]

    def _unended(self, end: End, pid: int | None) -> list[Item]:
        if self._ring is None:
            return []
        rows = self._ring.unfinished(end, pid)
        self._unfinished += len(rows)
        return [rows] if len(rows) else []

    def replaced(self) -> list[Item]:
        """Note that the process has called exec: its hooks are gone, and what it was executing."""
        if self._ring is None or self._left:
            return []
        self._replaced = True
        items = self.collect()
        return [*items, *self._unended(End.EXIT, self.pid)]

    # -- books

    def hits(self) -> int:
        """Return how many ends of executions a hook saw, or we told in its place."""
        if self._last_hits is not None:
            return self._unfinished + self._last_hits
        return self._unfinished + (self._ring.hits() if self._ring is not None else 0)

    def lost(self) -> dict[tuple[str, str], int]:
        """Return what was lost, by type and reason."""
        return self._ring.lost() if self._ring is not None else {}

    # -- leaving

    def leave(self) -> list[Item]:
        """Take the hooks out and return what is left in the ring."""
        if self._left:
            return []
        self._left = True
        items: list[Item] = []
        for pid in self._members.keys() - {self.pid}:
            if self._shares_ring(pid):
                items += self._restore_child(pid)
        try:
            self.lingers = bool(self._ask("leave"))
        except BackendError as error:
            if not self._members[self.pid].dead():
                items.append(Refused(self.pid, "", f"process {self.pid} was not left in good order: {error}"))
        if self._ring is not None:
            self._ring.shut()
            end = time.monotonic() + _LAST_WORDS
            while (records := self._ring.read(dead=time.monotonic() > end)) or self._is_owed_words(end):
                items += self._take(records)
            if not self._ring.empty:
                time.sleep(_LAST_WORDS)
                while not self._ring.empty:
                    items += self._take(self._ring.read(dead=True))
                # A thread that was late with both: its execution was told, so its hit counts.
                lost = self._ring.lost().get(("statement", "ring_full"), 0)
                self._last_hits = max(self._last_hits or 0, self._taken + lost)
            items += self._unended(End.DETACH, None)
            self._ring.close()
        for member in self._members.values():
            member.close()
        return items

    def _is_owed_words(self, end: float) -> bool:
        """Whether a hook has counted an execution and not yet written it; waits a little where it may do so still."""
        if self._ring is None:
            return False
        lost = self._ring.lost().get(("statement", "ring_full"), 0)
        self._last_hits = self._ring.hits()  # what a thread counts after this moment is none of ours
        if self._last_hits <= self._taken + lost or time.monotonic() > end + _SCHEDULED_AT_LAST:
            return False
        time.sleep(_SHORT)
        return True

    def _restore_child(self, pid: int) -> list[Item]:
        try:
            self._worker.request("restore", pid=pid, parent=self.pid)
        except BackendError as error:
            if os.path.exists(f"/proc/{pid}"):
                return [Refused(pid, "", f"the code of process {pid} could not be restored: {error}")]
        return []


def _stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a debugger."""
    return _state(pid) in {"T", "t"}


def _state(pid: int) -> str:
    """Return the letter that ps shows; empty for a process that is no more."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
        return stream.read().rpartition(")")[2].split()
    return []
