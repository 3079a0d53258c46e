"""The terminal form: four lines a statement, as the users of such tools know them.

Everything comes from the target and may be hostile: no control character reaches the terminal.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from sqltrace.events.model import Event, Process, Statement
from sqltrace.events.result_codes import DONE, OK, ROW, rc_name
from sqltrace.sinks.output import write_all

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_SHOWN = 2000
"""Characters of a statement that are shown; the log has all of it."""


def printable(text: str) -> str:
    """Replace what could control a terminal by an escape that one can read."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def shown(data: bytes) -> str:
    """Return bytes of the target for people."""
    return printable(data.decode("utf-8", "backslashreplace"))


def wants_colour(descriptor: int, environment: Mapping[str, str] | None = None) -> bool:
    """NO_COLOR, then FORCE_COLOR, then whether it is a terminal that can."""
    environment = os.environ if environment is None else environment
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    try:
        return os.isatty(descriptor) and environment.get("TERM") != "dumb"
    except OSError:
        return False


def duration(nanoseconds: int) -> str:
    """Return `701.9us`, `12.30ms`, `2.00s`."""
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.1f}us"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.2f}ms"
    return f"{nanoseconds / 1e9:.2f}s"


class Terminal:
    """Writes statements for people; of the low-rate events only what they need to know."""

    def __init__(self, stream: BinaryIO | None = None, *, colour: bool | None = None, internal: bool = False) -> None:
        self._stream = stream
        descriptor = sys.stderr.fileno() if stream is None else stream.fileno()
        colour = wants_colour(descriptor) if colour is None else colour
        self._bold, self._dim, self._red, self._off = (
            ("\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m") if colour else ("", "", "", "")
        )
        self._internal = internal
        self._app: dict[Process, str] = {}

    def event(self, event: Event) -> None:
        """Say what was lost; the rest is for the log."""
        if event.name == "lost":
            f = event.fields
            self._write(f"{self._red}lost {f['count']} {f['type']} records: {f['reason']}{self._off}\n")

    def statements(self, statements: Iterable[Statement]) -> None:
        """Show a batch of executions."""
        text = "".join(self.render(s) for s in statements if self._internal or not s.internal)
        if text:
            self._write(text)

    def render(self, s: Statement) -> str:
        """Return the lines of one statement."""
        prepared = s.prepared
        if prepared.sql is not None:
            sql = shown(prepared.sql[: 4 * _SHOWN])
            if len(sql) > _SHOWN or prepared.truncated:
                sql = f"{sql[:_SHOWN]}... ({prepared.sql_bytes} bytes)"
        else:
            sql = "(text lost)" if prepared.lost else "(SQLite's own)"
        failed = s.rc not in (OK, ROW, DONE)
        rc = f"{self._red if failed else ''}rc={s.rc}({rc_name(s.rc)}){self._off if failed else ''}"
        process = s.process
        flags = "".join(f" {name}" for name in ("internal", "incomplete") if getattr(s, name))
        scanned = s.fullscan_steps if s.counted else "?"
        n_vars = s.vars if s.counted else "?"
        return (
            f"{self._bold}{sql}{self._off}\n"
            f"  {printable(process.comm)} pid={process.pid} db={shown(prepared.db or b'?')} rows={s.rows} "
            f"{rc} t={duration(s.duration_ns)}{flags}\n"
            f"  {self._dim}in: sql={prepared.sql_bytes}B bound={s.bound_bytes}B "
            f"total={prepared.sql_bytes + s.bound_bytes}B (vars={n_vars} scanned={scanned}){self._off}\n"
            f"  {self._dim}{self._application(process)}{self._off}\n"
        )

    def _application(self, process: Process) -> str:
        line = self._app.get(process)
        if line is None:
            if len(self._app) > 1000:
                self._app.clear()
            cgroup = "?" if process.cgroup_id is None else hex(process.cgroup_id)
            command = " ".join(process.cmdline)[:200].replace('"', '\\"')
            line = self._app[process] = printable(
                f"app: service={process.service} exe={process.exe or '?'} uid={_id(process.uid)} "
                f'gid={_id(process.gid)} ns_pid={process.ns_pid} cgroup={cgroup} cmd="{command}"'
            ).replace("\n", "\\n")
        return line

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        if self._stream is not None:
            write_all(self._stream, data)
        else:
            sys.stderr.flush()
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._stream is not None:
            self._stream.close()


def _id(number: int | None) -> str:
    return "?" if number is None else str(number)
