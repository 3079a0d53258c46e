"""A tracing session: drives a backend, decodes what it brings, writes events, and keeps the books.

The loop is the same for every backend: drain, decode, write, until the processes or the user have had enough;
then detach, write what was left, and account for every execution that the hooks saw.
"""

from __future__ import annotations

import os
import platform
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import FrameType
from typing import Any

import numpy as np

from sqltrace import __version__
from sqltrace.backends.base import Ended, Item, Probed, Refused, Started, Trace
from sqltrace.errors import OutputError
from sqltrace.events.clock import Clock
from sqltrace.events.decode import Decoder
from sqltrace.events.enrich import Processes
from sqltrace.events.model import SCHEMA_VERSION, Event, Process, Statement
from sqltrace.events.wire import NESTED, Database, ProcessAction, ProcessChange, Text
from sqltrace.filters import Conditions, Filter
from sqltrace.sinks.base import Sink

_TURN = 0.1
"""Seconds that a drain may wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop by ourselves: seconds, number of statements; None for never."""

    duration: float | None = None
    statements: int | None = None
    sql_bytes: int | None = None


@dataclass(slots=True)
class Totals:
    """What a session saw."""

    statements: int = 0
    internal: int = 0
    hits: int = 0
    filtered: int = 0
    lost: dict[tuple[str, str], int] = field(default_factory=dict)
    evicted: dict[str, int] = field(default_factory=dict)
    probed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    output_error: OutputError | None = None

    @property
    def lost_count(self) -> int:
        """How many records were lost in all."""
        return sum(self.lost.values())


class Session:
    """One use of one backend."""

    def __init__(
        self,
        backend: str,
        sink: Sink,
        *,
        limits: Limits,
        conditions: Conditions,
        options: dict[str, Any],
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._backend = backend
        self._sink = sink
        self._limits = limits
        self._options = options
        self._notice = notice
        self._clock = Clock()
        self._processes = Processes()
        self._decoder = Decoder(self._clock, self._processes, limits.sql_bytes)
        self._filter = Filter(conditions) if conditions.any else None
        self._mutes = self._filter if conditions.about_text else None
        self._started = time.monotonic()
        self._stop = False
        self._full = False
        self._reported: dict[tuple[str, str], int] = {}
        self.totals = Totals()

    def start(self) -> None:
        """Write `session_start`; before anything is observed, so that a log that cannot be written stops us."""
        self._emit(
            "session_start",
            {
                "schema": SCHEMA_VERSION,
                "version": __version__,
                "backend": self._backend,
                "hostname": platform.node(),
                "kernel": platform.release(),
                "options": self._options,
            },
        )
        self._sink.flush()

    def stop(self) -> None:
        """Let `follow` return soon (from a signal handler)."""
        self._stop = True

    def follow(self, trace: Trace) -> Totals:
        """Observe until everything observed has ended, a limit is reached, or `stop` was called; then detach."""
        self._started = time.monotonic()  # what the backend needed to get ready is not the user's time
        try:
            while not self._done(trace):
                self._take(trace.drain(_TURN), trace)
                self._account(trace)
                self._guarded(self._sink.flush)
        finally:
            items = trace.detach()
        self._take(items, trace)
        self._finish(trace)
        return self.totals

    def _done(self, trace: Trace) -> bool:
        if self._stop or self._full or self.totals.output_error or not trace.alive:
            return True
        duration = self._limits.duration
        return duration is not None and time.monotonic() - self._started >= duration

    # -- items

    def _take(self, items: Sequence[Item], trace: Trace) -> None:
        for item in items:
            if isinstance(item, np.ndarray):
                self._statements(item)
            elif isinstance(item, Text):
                prepared = self._decoder.text(item)
                if prepared is not None and self._mutes is not None and not self._mutes.wants(prepared):
                    trace.mute(item.text_id)
            elif isinstance(item, Database):
                self._decoder.database(item)
            elif isinstance(item, Process):
                self._processes.remember(item)
            elif isinstance(item, Probed):
                self._probed(item)
            elif isinstance(item, Refused):
                self._refused(item)
            elif isinstance(item, Started):
                self._process("start", item.pid, {"ppid": item.parent or None})
            elif isinstance(item, Ended):
                self._ended(item)
            elif isinstance(item, ProcessChange):
                self._changed(item)

    def _statements(self, batch: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        statements = self._decoder.statements(batch)
        if self._filter is not None:
            statements = self._filter.keep(statements)
        if self._limits.statements is not None:
            statements = islice(statements, max(self._limits.statements - self.totals.statements, 0))
        before = self.totals.statements
        counted = self._counting(statements)
        self._guarded(lambda: self._sink.statements(counted))
        counted.close()
        self.totals.filtered += len(batch) - (self.totals.statements - before)
        self._full = self._limits.statements is not None and self.totals.statements >= self._limits.statements

    def _counting(self, statements: Iterator[Statement]) -> Generator[Statement, None, None]:
        """Pass the executions on; when closed, add how many there were."""
        count = internal = 0
        try:
            for statement in statements:
                count += 1
                prepared = statement.prepared
                # Statement.internal, inline: this is done for every execution
                if statement.flags & NESTED or (prepared.sql is None and not prepared.lost):
                    internal += 1
                yield statement
        finally:
            self.totals.statements += count
            self.totals.internal += internal

    def _probed(self, item: Probed) -> None:
        r = item.resolution
        self.totals.probed.append(item.path)
        users = "" if item.processes is None else f", in {item.processes} process{'' if item.processes == 1 else 'es'}"
        self._notice(f"{item.path}: SQLite {r.sqlite_version or 'of unknown version'}{users}")
        for off in r.features_off:
            self._notice(f"{item.path}: {off.feature} is not reported: {off.reason}")
        self._emit(
            "probe",
            {
                "pid": item.pid,
                "path": item.path,
                "build_id": r.build_id,
                "arch": r.arch,
                "sqlite_version": r.sqlite_version,
                "source_id": r.source_id,
                "evidence": {name: list(f.evidence) for name, f in r.functions.items()},
                "features_off": [{"feature": f.feature, "reason": f.reason} for f in r.features_off],
                "sites": dict(item.sites),
                "attach_ms": item.attach_ms,
                "processes": item.processes,
                "late": item.late,
            },
        )

    def _refused(self, item: Refused) -> None:
        self.totals.refused.append(item.reason)
        self._notice(item.reason)
        self._emit("probe", {"pid": item.pid, "path": item.path, "error": item.reason})

    def _process(
        self,
        action: str,
        pid: int,
        own: dict[str, Any],
        seen: ProcessChange | None = None,
        wall: int | None = None,
    ) -> None:
        process = self._processes.get(pid) if action == "exit" else self._processes.refresh(pid, seen)
        fields = {"action": action, "ppid": None, "exit_code": None, "signal": None} | own
        self._emit("process", process.fields() | fields, wall)

    def _changed(self, change: ProcessChange) -> None:
        if change.action is ProcessAction.EXEC:
            self._process("exec", change.pid, {}, change, self._clock.wall(change.time_ns))
        elif change.action is ProcessAction.FORK:
            self._processes.refresh(change.pid, change)

    def _ended(self, item: Ended) -> None:
        own: dict[str, Any] = {}
        if item.status is not None:
            if os.WIFSIGNALED(item.status):
                own["signal"] = _signal_name(os.WTERMSIG(item.status))
            else:
                own["exit_code"] = os.waitstatus_to_exitcode(item.status)
        self._process("exit", item.pid, own)

    # -- books

    def _account(self, trace: Trace) -> None:
        """Report what was lost since the last turn."""
        for (kind, reason), count in trace.counts().lost.items():
            news = count - self._reported.get((kind, reason), 0)
            if news > 0:
                self._reported[kind, reason] = count
                self._emit("lost", {"type": kind, "reason": reason, "count": news})

    def _finish(self, trace: Trace) -> None:
        self._account(trace)
        counts = trace.counts()
        totals = self.totals
        totals.hits = counts.hits
        totals.lost = dict(counts.lost)
        totals.filtered += counts.filtered
        totals.evicted = dict(counts.evicted)
        self._emit(
            "session_end",
            {
                "hits": totals.hits,
                "emitted": totals.statements,
                "filtered": totals.filtered,
                "internal": totals.internal,
                "events": dict(totals.events) | {"statement": totals.statements},
                "lost": [{"type": k, "reason": r, "count": n} for (k, r), n in sorted(totals.lost.items())],
                "evicted": totals.evicted,
                "duration_us": round((time.monotonic() - self._started) * 1e6),
            },
        )
        self._guarded(self._sink.flush)

    def _emit(self, name: str, fields: dict[str, Any], wall_ns: int | None = None) -> None:
        self.totals.events[name] += 1
        event = Event(name, self._clock.now() if wall_ns is None else wall_ns, fields)
        self._guarded(lambda: self._sink.event(event))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write; a log that cannot be written any more ends the session, not the program under observation."""
        if self.totals.output_error is None:
            try:
                write()
            except OutputError as error:
                self.totals.output_error = error


def new_session_id() -> str:
    """Return the name of a session, unique in the world."""
    return uuid.uuid4().hex


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


@contextmanager
def signals(session: Session, child: Callable[[], int | None]) -> Iterator[None]:
    """Handle signals as a tracer should.

    With a command: Ctrl-C and SIGQUIT belong to the command (the terminal sends them to it as well), SIGTERM and
    SIGHUP are passed on to it.  Otherwise they end the session, and the processes go on.
    """

    def passed(number: int, _frame: FrameType | None) -> None:
        pid = child()
        if pid is None:
            session.stop()
        elif number in (signal.SIGTERM, signal.SIGHUP):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                session.stop()

    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, passed) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
