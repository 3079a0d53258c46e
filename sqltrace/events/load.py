"""Reading a log back: JSON lines to events, for every command that works on a recorded session."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from sqltrace.errors import SqltraceError
from sqltrace.events.model import END_NAMES, Prepared, Process, Statement
from sqltrace.events.wire import AUTOCOMMIT, INCOMPLETE, NESTED, NO_COUNTERS


class LogError(SqltraceError):
    """The file is not a sqltrace log, or it is damaged."""


def open_log(path: str) -> BinaryIO:
    """Open a log for reading, `-` is standard input; raises LogError."""
    try:
        return sys.stdin.buffer if path == "-" else open(path, "rb")
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror}.") from error


def read_events(path: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a log in order.

    A last line without its end (the tracer was killed) is left out; any other line that is not an event raises
    LogError with its number.
    """
    decoder = msgspec.json.Decoder(dict[str, Any])
    with open_log(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    event = decoder.decode(line)
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise LogError(f"{path} is not a sqltrace log: line {number} is not a JSON object.") from error
                if not isinstance(event.get("event"), str):
                    raise LogError(f'{path} is not a sqltrace log: line {number} has no "event".')
                yield event
        except OSError as error:
            raise LogError(f"cannot read {path}: {error.strerror}.") from error


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return None if value is None else str(value).encode("utf-8", "surrogatepass")


def statement_from(event: dict[str, Any]) -> Statement:
    """Return a `statement` event as the sinks take it (without its wall time); raises LogError."""
    try:
        sql = _bytes(event["sql"])
        known = event["vars"] is not None
        flags = END_NAMES.index(event["end"])
        flags |= AUTOCOMMIT if event["autocommit"] else 0
        flags |= NESTED if event["internal"] and sql is not None else 0
        flags |= INCOMPLETE if event["incomplete"] else 0
        flags |= 0 if known else NO_COUNTERS
        return Statement(
            process=Process(
                pid=event["pid"],
                ns_pid=event["ns_pid"],
                uid=event["uid"],
                gid=event["gid"],
                comm=event["comm"],
                exe=event["exe"],
                cmdline=tuple(event["cmdline"]),
                cgroup=event["cgroup"],
                cgroup_id=event["cgroup_id"],
                service=event["service"],
            ),
            prepared=Prepared(
                db=_bytes(event["db"]),
                conn=int(event["conn"], 16),
                stmt=int(event["stmt"], 16),
                sql=sql,
                sql_bytes=event["sql_bytes"],
                truncated=event["sql_truncated"],
                lost=sql is None and not event["internal"],
            ),
            tid=event["tid"],
            end_ns=0,
            duration_ns=round(event["duration_us"] * 1000),
            step_ns=round(event["step_us"] * 1000),
            flags=flags,
            vars=event["vars"] or 0,
            bound_bytes=event["in_bytes"] - event["sql_bytes"],
            rc=event["rc"],
            rows=event["rows"],
            changes=event["changes"] or 0,
            fullscan_steps=event["fullscan_steps"] or 0,
            sorts=event["sorts"] or 0,
            autoindexes=event["autoindexes"] or 0,
            vm_steps=event["vm_steps"] or 0,
            reprepares=event["reprepares"] or 0,
            filter_hits=event["filter_hits"] or 0,
            filter_misses=event["filter_misses"] or 0,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LogError(f"a statement event of the log is damaged ({error!r}).") from error
