"""JSON lines, the structured log.

structlog is the front door: every low-rate event goes through its processors and its JSON renderer.
Statement events are the exception: structlog's way of one event is measured at 58,000 a second, so their lines are
put together here from parts rendered once per process and once per prepared statement.  A test holds the lines to
what structlog would have written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from sqltrace.events.clock import Timestamps
from sqltrace.events.model import END_NAMES, Event, Statement
from sqltrace.events.result_codes import rc_name
from sqltrace.events.wire import AUTOCOMMIT, END_MASK, INCOMPLETE, NESTED, NO_COUNTERS
from sqltrace.sinks.output import write_all

_BUFFER = 1 << 20
_BOOL = ("false", "true")


def render_json(event_dict: EventDict, **_: Any) -> str:
    """Serialise as this log does: compact, UTF-8, keys in the order given."""
    return msgspec.json.encode(event_dict).decode()


class JsonLines:
    """Writes one JSON object a line; numbers them without a gap."""

    def __init__(self, stream: BinaryIO, session: str) -> None:
        self._stream = stream
        self._session = session
        self._timestamps = Timestamps()
        self._seq = 0
        self._buffer: list[str] = []
        self._size = 0
        self._rc_names: dict[int, str] = {}
        self._logger = structlog.wrap_logger(
            _Lines(self),
            processors=[self._stamp, structlog.processors.JSONRenderer(serializer=render_json)],
            wrapper_class=structlog.BoundLogger,
            cache_logger_on_first_use=True,
        )

    def _stamp(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        """Put what every event has in front (a structlog processor)."""
        wall_ns = event_dict.pop("wall_ns")
        stamped = {
            "event": event_dict.pop("event"),
            "timestamp": self._timestamps.format(wall_ns),
            "seq": self._seq,
            "session": self._session,
        }
        self._seq += 1
        return stamped | dict(event_dict)

    def event(self, event: Event) -> None:
        """Take a low-rate event."""
        self._logger.msg(event.name, wall_ns=event.wall_ns, **event.fields)

    def append(self, line: str) -> None:
        """Buffer a rendered line."""
        self._buffer.append(line)
        self._size += len(line)
        if self._size > _BUFFER:
            self.flush()

    def statements(self, statements: Iterable[Statement]) -> None:
        """Take a batch of executions."""
        session = self._session
        timestamp = self._timestamps.format
        names = self._rc_names
        for s in statements:
            flags = s.flags
            prepared = s.prepared
            rc = s.rc
            name = names.get(rc)
            if name is None:
                name = names[rc] = rc_name(rc)
            sql_bytes = prepared.sql_bytes
            internal = _BOOL[bool(flags & NESTED) or (prepared.sql is None and not prepared.lost)]
            incomplete = _BOOL[bool(flags & INCOMPLETE) or prepared.lost]
            head = (
                f'{{"event":"statement","timestamp":"{timestamp(s.end_ns)}","seq":{self._seq},'
                f'"session":"{session}",{s.process.json},"tid":{s.tid},{prepared.json},'
            )
            self._seq += 1
            if flags & NO_COUNTERS:
                line = (
                    f'{head}"vars":null,"bound_bytes":null,"in_bytes":{sql_bytes + s.bound_bytes},'
                    f'"rc":{rc},"rc_name":"{name}","rows":{s.rows},"changes":null,'
                    f'"duration_us":{s.duration_ns / 1000!r},"step_us":{s.step_ns / 1000!r},'
                    f'"end":"{END_NAMES[flags & END_MASK]}","fullscan_steps":null,"sorts":null,"autoindexes":null,'
                    f'"vm_steps":null,"reprepares":null,"filter_hits":null,"filter_misses":null,"autocommit":null,'
                    f'"internal":{internal},"incomplete":{incomplete}}}'
                )
            else:
                line = (
                    f'{head}"vars":{s.vars},"bound_bytes":{s.bound_bytes},"in_bytes":{sql_bytes + s.bound_bytes},'
                    f'"rc":{rc},"rc_name":"{name}","rows":{s.rows},"changes":{s.changes},'
                    f'"duration_us":{s.duration_ns / 1000!r},"step_us":{s.step_ns / 1000!r},'
                    f'"end":"{END_NAMES[flags & END_MASK]}","fullscan_steps":{s.fullscan_steps},"sorts":{s.sorts},'
                    f'"autoindexes":{s.autoindexes},"vm_steps":{s.vm_steps},"reprepares":{s.reprepares},'
                    f'"filter_hits":{s.filter_hits},"filter_misses":{s.filter_misses},'
                    f'"autocommit":{_BOOL[bool(flags & AUTOCOMMIT)]},'
                    f'"internal":{internal},"incomplete":{incomplete}}}'
                )
            self.append(line)

    def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            self._buffer.append("")
            data = "\n".join(self._buffer).encode()
            self._buffer = []
            self._size = 0
            write_all(self._stream, data)

    def close(self) -> None:
        """Flush and close the stream."""
        try:
            self.flush()
        finally:
            self._stream.close()


class _Lines:
    """The logger that structlog wraps: takes rendered lines."""

    def __init__(self, sink: JsonLines) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.append(line)
