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
from msgspec.structs import astuple
from structlog.typing import EventDict, WrappedLogger

from sqltrace.events.clock import Timestamps
from sqltrace.events.model import END_NAMES, Event, Statement, fragment
from sqltrace.events.result_codes import rc_name
from sqltrace.events.wire import AUTOCOMMIT, END_MASK, INCOMPLETE, NESTED, NO_COUNTERS
from sqltrace.sinks.output import write_all

_BUFFER = 1 << 20
_MOST_TAILS = 4096
_COUNTERS = ("fullscan_steps", "sorts", "autoindexes", "vm_steps", "reprepares", "filter_hits", "filter_misses")
_THOUSANDTHS = tuple(f"{n / 1000!r}"[1:] for n in range(1000))
"""The digits behind the point, as a float has them: printing a float takes four times as long as an integer."""


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
        self._tails: dict[tuple[bool, bool, int, tuple[int, ...]], str] = {}
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
        session, names, tails, lines = self._session, self._rc_names, self._tails, self._buffer
        format_time = self._timestamps.format
        seq, size = self._seq, self._size
        for (
            process, prepared, tid, end_ns, duration_ns, step_ns, flags, n_vars, bound_bytes, rc, rows, changes,
            scans, sorts, indexes, vm_steps, reprepares, hits, misses,
        ) in map(astuple, statements):  # fmt: skip
            name = names.get(rc)
            if name is None:
                name = names[rc] = rc_name(rc)
            # The counters of a statement are the same again and again: not worth eight numbers each time.
            counters = (scans, sorts, indexes, vm_steps, reprepares, hits, misses)
            known = (prepared.sql is None, prepared.lost, flags, counters)
            tail = tails.get(known)
            if tail is None:
                if len(tails) >= _MOST_TAILS:
                    tails.clear()
                tail = tails[known] = _tail(*known)
            duration, step = duration_ns // 1000, step_ns // 1000
            if flags & NO_COUNTERS:
                bound, changed = '"vars":null,"bound_bytes":null', "null"
            else:
                bound, changed = f'"vars":{n_vars},"bound_bytes":{bound_bytes}', changes
            line = (
                f'{{"event":"statement","timestamp":"{format_time(end_ns)}","seq":{seq},"session":"{session}",'
                f'{process.json},"tid":{tid},{prepared.json},{bound},"in_bytes":{prepared.sql_bytes + bound_bytes},'
                f'"rc":{rc},"rc_name":"{name}","rows":{rows},"changes":{changed},'
                f'"duration_us":{duration}{_THOUSANDTHS[duration_ns - 1000 * duration]},'
                f'"step_us":{step}{_THOUSANDTHS[step_ns - 1000 * step]},{tail}'
            )
            seq += 1
            lines.append(line)
            size += len(line)
            if size > _BUFFER:
                self._seq, self._size = seq, size
                self.flush()
                lines, size = self._buffer, 0
        self._seq, self._size = seq, size

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


def _tail(sql_is_none: bool, lost: bool, flags: int, counters: tuple[int, ...]) -> str:
    """Return the end of a line: what the counters and the flags say."""
    unknown = bool(flags & NO_COUNTERS)
    fields: dict[str, object] = {"end": END_NAMES[flags & END_MASK]}
    fields |= {name: None if unknown else counter for name, counter in zip(_COUNTERS, counters, strict=True)}
    fields["autocommit"] = None if unknown else bool(flags & AUTOCOMMIT)
    fields["internal"] = bool(flags & NESTED) or (sql_is_none and not lost)
    fields["incomplete"] = bool(flags & INCOMPLETE) or lost
    return fragment(fields) + "}"


class _Lines:
    """The logger that structlog wraps: takes rendered lines."""

    def __init__(self, sink: JsonLines) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.append(line)
