"""A session of the bcc backend: which processes are followed, which files are probed, what came out of the ring.

A followed thread is held (holder.py) right after exec and whenever its dynamic loader has brought in libraries; we
look at what is mapped, probe every file that holds SQLite, and let it go on.  So the first statement
of a library that was loaded a moment ago is seen.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter
from collections.abc import Sequence

from sqltrace.backends.base import Counts, Ended, Item, Options, Probed, Refused, Resolve, Started
from sqltrace.backends.bcc.holder import Holder
from sqltrace.backends.bcc.program import ProbeObject, ProbeOffsets
from sqltrace.backends.bcc.ringbuf import RingBuffer
from sqltrace.backends.bcc.scope import ChosenFile, Scope, all_pids, system_libraries
from sqltrace.backends.bcc.sites import PROBED, placed
from sqltrace.backends.elf_file import ElfFile, dynamic_symbol
from sqltrace.backends.launch.held import HeldChild
from sqltrace.backends.proc_maps import Inode, MappedFile, mapped_files, no_sqlite
from sqltrace.errors import NoSQLiteError, SqltraceError, TargetError
from sqltrace.events.enrich import read_process
from sqltrace.events.wire import End, Mapping, ProcessAction, ProcessChange, layout_words
from sqltrace.resolution import Resolution

LOADER_HOOK = "_dl_debug_state"
"""In glibc and musl: an empty function that the loader calls for debuggers (elf/dl-debug.c)."""

_DETACH_PATIENCE = 2.0


class BccTrace:
    """Implements sqltrace.backends.base.Trace."""

    def __init__(self, resolve: Resolve, options: Options, scope: Scope) -> None:
        self._resolve = resolve
        self._options = options
        self._scope = scope
        self._file = ChosenFile(scope.exe) if scope.exe else None
        self._object = ProbeObject(options, everyone=scope.everyone, files=self._file is not None)
        self._ring = RingBuffer(self._object.ring_fd, options.ring_bytes)
        self._holder = Holder(self._object.held_fd, self._object.stopped_fd, self._object.holds_fd)
        self._object.hold_by(self._holder.cpu)
        self._pids: set[int] = set()
        self._seen: set[Inode] = set()
        self._resolutions: dict[Inode, Resolution] = {}
        self._pending: list[Item] = []
        self._malformed = 0
        self._unfinished = 0
        self._child: HeldChild | None = None
        self._status: int | None = None
        self._pidfds: dict[int, int] = {}
        self._detached = False
        self._final_counts: Counts | None = None

    # -- starting

    def launch(self, argv: Sequence[str]) -> None:
        """Start the command; it runs up to its first instruction and waits there for `drain`."""
        child = HeldChild(argv, user=self._options.user)
        self._child = child
        self._adopt(child.pid, parent=os.getpid())
        child.release()

    def join(self, pids: Sequence[int]) -> None:
        """Probe running processes.  Raises NoSQLiteError when there is no SQLite in any of them."""
        for pid in pids:
            self._look_at(pid, late=True)
            self._adopt(pid, parent=0)
        if not any(isinstance(item, Probed) for item in self._pending):
            reasons = [item.reason for item in self._pending if isinstance(item, Refused)]
            if reasons:
                raise NoSQLiteError(reasons[0])
            raise no_sqlite(pids)

    def search(self) -> None:
        """Look at every process that is there, as the scope says; new ones show themselves."""
        if self._file is not None:
            self._choose(self._file)
            return
        mapped: dict[Inode, tuple[int, MappedFile]] = {}
        users: Counter[Inode] = Counter()
        for pid in all_pids():
            with contextlib.suppress(TargetError):
                for file in mapped_files(pid):
                    mapped.setdefault(file.inode, (pid, file))
                    users[file.inode] += 1
                self._probe_loader(pid)
        for inode, (pid, file) in mapped.items():
            self._meet(pid, file, users[inode], late=True)
        for file in system_libraries():
            self._meet(None, file, 0)

    def _choose(self, file: ChosenFile) -> None:
        self._object.choose(file.number)
        for pid in all_pids():
            if file.runs_in(pid):
                self._join_chosen(pid, late=True)

    def _join_chosen(self, pid: int, *, late: bool = False) -> None:
        if pid not in self._pids:
            self._adopt(pid, parent=0)
            with contextlib.suppress(TargetError):
                self._look_at(pid, late=late)

    def _adopt(self, pid: int, parent: int) -> None:
        self._object.follow(pid)
        self._pids.add(pid)
        if parent == 0:
            self._pending.append(read_process(pid))
        with contextlib.suppress(OSError):
            self._pidfds[pid] = os.pidfd_open(pid)
            self._ring.register(self._pidfds[pid])
        self._pending.append(Started(pid, parent))

    # -- probing

    def _look_at(self, pid: int, *, late: bool = False) -> None:
        """Probe every file that the process has mapped and that we have not met yet."""
        self._probe_loader(pid)
        for mapped in mapped_files(pid):
            self._meet(pid, mapped, late=late)

    def _meet(self, pid: int | None, mapped: MappedFile, processes: int | None = None, *, late: bool = False) -> None:
        if mapped.inode in self._seen:
            return
        self._seen.add(mapped.inode)
        try:
            self._probe(pid, mapped, processes, late=late)
        except SqltraceError as error:
            self._pending.append(Refused(pid, mapped.name, str(error)))

    def _probe(self, pid: int | None, mapped: MappedFile, processes: int | None, *, late: bool) -> None:
        resolution = self._resolve(mapped.path)
        if resolution is None:
            return
        start = time.perf_counter()
        sites = placed(mapped.path, resolution)
        offsets = ProbeOffsets(*(sites[name].offset for name in PROBED))
        self._object.attach(mapped.path, offsets, self._object.layout_index(layout_words(resolution)))
        taken = (time.perf_counter() - start) * 1e3
        described = {name: str(found.site) for name, found in sites.items()}
        self._pending.append(Probed(pid, mapped.name, resolution, round(taken, 3), described, processes, late))

    def _probe_loader(self, pid: int) -> None:
        try:
            interpreter = ElfFile.read(f"/proc/{pid}/exe").interpreter
            if interpreter is None:
                return
            path = f"/proc/{pid}/root{interpreter}"
            info = os.stat(path)
        except (SqltraceError, OSError):
            return
        inode = (info.st_dev, info.st_ino)
        if inode in self._seen:
            return
        self._seen.add(inode)
        address = dynamic_symbol(path, LOADER_HOOK)
        if address is None:
            reason = f"{interpreter} has no {LOADER_HOOK}, so libraries that it loads later are not seen."
            self._pending.append(Refused(pid, interpreter, reason))
            return
        self._object.attach_loader(path, ElfFile.read(path).file_offset(address))

    # -- base.Trace

    @property
    def child(self) -> int | None:
        """Pid of the command."""
        return self._child.pid if self._child else None

    @property
    def alive(self) -> bool:
        """Whether any followed process still runs, or one may come."""
        return bool(self._pids) or self._scope.open

    @property
    def status(self) -> int | None:
        """Wait status of the command."""
        return self._status

    def wait(self) -> int | None:
        """Wait for the command, which may outlive the observation."""
        if self._child is not None:
            self._status = self._child.wait()
        return self._status

    def drain(self, timeout: float) -> Sequence[Item]:
        """Return what came in.  Processes that stopped for us are looked at and continued here."""
        if not self._pending:
            self._ring.wait(timeout)
        self._read()
        self._reap()
        if self._file is not None and self._file.renewed():
            self._choose(self._file)
        items, self._pending = self._pending, []
        return items

    def _read(self) -> int:
        records, malformed = self._ring.read()
        self._malformed += malformed
        glimpsed: set[int] = set()
        for record in records:
            if isinstance(record, Mapping):
                if record.tid:
                    self._examine(record)
                else:
                    glimpsed.add(record.pid)
            elif isinstance(record, ProcessChange):
                self._pending.append(record)
                self._process_changed(record)
            else:
                self._pending.append(record)
        for pid in glimpsed:  # not held: it may be gone
            with contextlib.suppress(TargetError):
                self._look_at(pid, late=True)
        return len(records)

    def _examine(self, mapping: Mapping) -> None:
        try:
            if self._file is None or self._belongs(mapping.pid):
                self._look_at(mapping.pid)
        except SqltraceError as error:
            self._pending.append(Refused(mapping.pid, "", str(error)))
        finally:
            self._holder.release(mapping.tid)

    def _belongs(self, pid: int) -> bool:
        """Whether a process that is held is one of the chosen file's, or came out of one and is followed."""
        assert self._file is not None  # noqa: S101 - asked only then
        if self._file.runs_in(pid):
            self._join_chosen(pid)
        elif pid in self._pids and not self._options.follow:
            self._pids.discard(pid)  # it executes another program now
            self._object.unfollow(pid)
        return pid in self._pids

    def _process_changed(self, change: ProcessChange) -> None:
        if change.action is ProcessAction.FORK:
            if change.pid not in self._pids:
                self._pids.add(change.pid)
                self._pending.append(Started(change.pid, change.parent))
        else:
            self._finish(change.pid, End.EXIT)
            if change.action is ProcessAction.EXEC:
                self._pending.append(read_process(change.pid, change))  # it is stopped until `_examine`
            else:
                self._gone(change.pid, change.exit_code)

    def _finish(self, pid: int | None, end: End) -> None:
        rest = self._object.take_statements(pid, end)
        if len(rest):
            self._unfinished += len(rest)
            self._pending.append(rest)

    def _gone(self, pid: int, status: int | None) -> None:
        if pid not in self._pids:
            return
        self._pids.discard(pid)
        self._object.unfollow(pid)
        descriptor = self._pidfds.pop(pid, None)
        if descriptor is not None:
            self._ring.unregister(descriptor)
            os.close(descriptor)
        if self._child and pid == self._child.pid:
            status = self._status = self._child.wait()
        self._pending.append(Ended(pid, status))

    def _reap(self) -> None:
        """Notice the death of processes whose exit record was lost, or that nobody reports."""
        for pid, descriptor in list(self._pidfds.items()):
            if select.select([descriptor], [], [], 0)[0]:
                # Its hooks' records are in the ring by now.
                while self._read():
                    pass
                if pid in self._pids:
                    self._finish(pid, End.EXIT)
                    self._gone(pid, None)

    def counts(self) -> Counts:
        """Return hits and losses."""
        return self._counts() if self._final_counts is None else self._final_counts

    def _counts(self, *, final: bool = False) -> Counts:
        values = self._object.counts()
        lost = {key: n for key, n in values.items() if n and not isinstance(key, str)}
        if self._malformed:
            lost["record", "malformed"] = self._malformed
        evicted = {}
        if final:  # every statement that was still known has been taken
            if values["inserted"] > values["deleted"]:
                evicted["statements"] = values["inserted"] - values["deleted"]
            running = values["hits"] - values["ends"] - self._unfinished
            if running > 0:
                lost["statement", "evicted"] = running
        return Counts(values["hits"], lost, values["filtered"], evicted)

    def mute(self, text_id: int) -> None:
        """Leave out this statement's executions in the kernel."""
        if not self._detached:
            self._object.mute(text_id)

    def detach(self) -> Sequence[Item]:
        """Remove the probes, let everything run, return what was left."""
        if self._detached:
            return []
        self._detached = True
        self._object.detach()
        end = time.monotonic() + _DETACH_PATIENCE
        while self._read() and time.monotonic() < end:
            pass
        self._finish(None, End.DETACH)
        items, self._pending = self._pending, []
        self._final_counts = self._counts(final=True)
        self._holder.dismiss()
        for descriptor in self._pidfds.values():
            os.close(descriptor)
        self._pidfds.clear()
        self._ring.close()
        self._object.close()
        return items
