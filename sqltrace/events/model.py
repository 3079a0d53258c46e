"""Events as the rest of sqltrace sees them.

A statement event is three parts: what is constant for its process, what is constant for its prepared statement,
and the numbers of one execution.  The first two are made once, together with the JSON that they become, because a
busy program has hundreds of thousands of executions a second of a few statements.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sqltrace.events.result_codes import rc_name
from sqltrace.events.wire import AUTOCOMMIT, END_MASK, INCOMPLETE, NESTED, NO_COUNTERS, End

SCHEMA_VERSION: Final = 1

END_NAMES: Final = tuple(end.name.lower() for end in End)


def text_value(data: bytes) -> str | dict[str, Any]:
    """Return bytes of the target as JSON shows them: text, or `{"b64", "len"}` where they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode("ascii"), "len": len(data)}


def fragment(fields: dict[str, Any]) -> str:
    """Return the inside of a JSON object: `"a":1,"b":"x"`."""
    return msgspec.json.encode(fields)[1:-1].decode()


@dataclass(frozen=True, slots=True)
class Process:
    """Who ran the statement.  Ids as the tracer sees them; `ns_pid` as the process sees itself."""

    pid: int
    ns_pid: int
    uid: int | None
    gid: int | None
    comm: str
    exe: str | None
    cmdline: tuple[str, ...]
    cgroup: str | None
    cgroup_id: int | None
    service: str
    json: str = field(default="", compare=False, repr=False)

    def fields(self) -> dict[str, Any]:
        """Return the process fields of an event, in schema order."""
        return {
            "pid": self.pid,
            "ns_pid": self.ns_pid,
            "uid": self.uid,
            "gid": self.gid,
            "comm": self.comm,
            "exe": self.exe,
            "cmdline": list(self.cmdline),
            "cgroup": self.cgroup,
            "cgroup_id": self.cgroup_id,
            "service": self.service,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prepared statement: its text and its connection's main database.

    `sql` is None for SQLite's own statements (and where the text was lost: then `lost`).
    """

    db: bytes | None
    conn: int
    stmt: int
    sql: bytes | None
    sql_bytes: int
    truncated: bool
    lost: bool
    json: str = field(default="", compare=False, repr=False)

    def fields(self) -> dict[str, Any]:
        """Return the fields that are constant for a prepared statement, in schema order."""
        return {
            "db": None if self.db is None else text_value(self.db),
            "conn": hex(self.conn),
            "stmt": hex(self.stmt),
            "sql": None if self.sql is None else text_value(self.sql),
            "sql_bytes": self.sql_bytes,
            "sql_truncated": self.truncated,
        }


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One execution.  Times are nanoseconds; `end_ns` is the wall clock at the last step's return."""

    process: Process
    prepared: Prepared
    tid: int
    end_ns: int
    duration_ns: int
    step_ns: int
    flags: int
    vars: int
    bound_bytes: int
    rc: int
    rows: int
    changes: int
    fullscan_steps: int
    sorts: int
    autoindexes: int
    vm_steps: int
    reprepares: int
    filter_hits: int
    filter_misses: int

    @property
    def end(self) -> str:
        """How the execution ended: `done`, `error`, `reset`, ..."""
        number = self.flags & END_MASK
        return END_NAMES[number] if number < len(END_NAMES) else "unseen"

    @property
    def internal(self) -> bool:
        """Whether it is SQLite's own, or ran inside another statement's step."""
        return bool(self.flags & NESTED) or (self.prepared.sql is None and not self.prepared.lost)

    @property
    def incomplete(self) -> bool:
        """Whether something of it was not seen."""
        return bool(self.flags & INCOMPLETE) or self.prepared.lost

    @property
    def counted(self) -> bool:
        """Whether the statement could be read at its end, so that counters, changes and vars are known."""
        return not self.flags & NO_COUNTERS

    def fields(self) -> dict[str, Any]:
        """Return the event's own fields in schema order, without `event`, `timestamp`, `seq`, `session`."""
        known = self.counted
        return (
            self.process.fields()
            | {"tid": self.tid}
            | self.prepared.fields()
            | {
                "vars": self.vars if known else None,
                "bound_bytes": self.bound_bytes if known else None,
                "in_bytes": self.prepared.sql_bytes + self.bound_bytes,
                "rc": self.rc,
                "rc_name": rc_name(self.rc),
                "rows": self.rows,
                "changes": self.changes if known else None,
                "duration_us": self.duration_ns / 1000,
                "step_us": self.step_ns / 1000,
                "end": self.end,
                "fullscan_steps": self.fullscan_steps if known else None,
                "sorts": self.sorts if known else None,
                "autoindexes": self.autoindexes if known else None,
                "vm_steps": self.vm_steps if known else None,
                "reprepares": self.reprepares if known else None,
                "filter_hits": self.filter_hits if known else None,
                "filter_misses": self.filter_misses if known else None,
                "autocommit": bool(self.flags & AUTOCOMMIT) if known else None,
                "internal": self.internal,
                "incomplete": self.incomplete,
            }
        )


@dataclass(frozen=True, slots=True)
class Event:
    """A low-rate event: `session_start`, `probe`, `process`, `lost`, `session_end`."""

    name: str
    wall_ns: int
    fields: dict[str, Any]
