"""From records to events: joins executions with their SQL text, their database and their process.

A statement's text travels once, before its first execution, in one or more pieces; executions name it by text_id.
Texts are kept in two generations, so that memory is bounded and what is in use stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sqltrace.events.clock import Clock
from sqltrace.events.enrich import Processes
from sqltrace.events.model import Prepared, Process, Statement, fragment
from sqltrace.events.redact import redact_keys
from sqltrace.events.wire import TEXT_LAST, TEXT_NULL, TEXT_TRUNCATED, Database, StatementBatch, Text

_MAX_TEXTS = 100_000
_MAX_TEXT_BYTES = 256 << 20
_MAX_UNFINISHED = 4096


class _Assembly:
    """A text of which the last piece has not come yet."""

    __slots__ = ("db", "pieces", "size")

    def __init__(self) -> None:
        self.db: bytes | None = None
        self.pieces: list[bytes] = []
        self.size = 0


class _Generations:
    """Prepared statements by text_id: recently used ones survive, the rest goes when the young half is full."""

    def __init__(self) -> None:
        self._young: dict[int, Prepared] = {}
        self._old: dict[int, Prepared] = {}
        self._bytes = 0

    def put(self, text_id: int, prepared: Prepared) -> None:
        self._young[text_id] = prepared
        self._bytes += len(prepared.json)
        if len(self._young) > _MAX_TEXTS or self._bytes > _MAX_TEXT_BYTES:
            self._old, self._young, self._bytes = self._young, {}, 0

    def get(self, text_id: int) -> Prepared | None:
        found = self._young.get(text_id)
        if found is None:
            found = self._old.get(text_id)
            if found is not None:
                self.put(text_id, found)
        return found


class Decoder:
    """One per session.  Feed it records in the order in which they came out of the ring."""

    def __init__(self, clock: Clock, processes: Processes, sql_limit: int | None = None) -> None:
        self._clock = clock
        self._processes = processes
        self._limit = sql_limit
        self._prepared = _Generations()
        self._unfinished: dict[int, _Assembly] = {}

    def database(self, record: Database) -> None:
        """Note the main database of a statement whose text follows."""
        self._assembly(record.text_id).db = record.path

    def _assembly(self, text_id: int) -> _Assembly:
        assembly = self._unfinished.get(text_id)
        if assembly is None:
            assembly = self._unfinished[text_id] = _Assembly()
            if len(self._unfinished) > _MAX_UNFINISHED:  # their last pieces were lost
                del self._unfinished[next(iter(self._unfinished))]
        return assembly

    def text(self, record: Text) -> Prepared | None:
        """Take a piece of a text; with its last piece the statement is known, and returned."""
        assembly = self._assembly(record.text_id)
        if record.offset != assembly.size:
            self._unfinished.pop(record.text_id, None)  # a piece was lost: no text is better than a wrong one
            return None
        assembly.pieces.append(record.data)
        assembly.size += len(record.data)
        if not record.flags & TEXT_LAST:
            return None
        del self._unfinished[record.text_id]
        whole = None if record.flags & TEXT_NULL else b"".join(assembly.pieces)
        prepared = self._prepare(record, assembly, whole)
        self._prepared.put(record.text_id, prepared)
        return prepared

    def _prepare(self, record: Text, assembly: _Assembly, sql: bytes | None) -> Prepared:
        size = 0 if sql is None else len(sql)
        truncated = bool(record.flags & TEXT_TRUNCATED)
        if sql is not None:
            sql = redact_keys(sql)
            if self._limit is not None and len(sql) > self._limit:
                sql = _cut(sql, self._limit)
                truncated = True
        prepared = Prepared(
            db=assembly.db,
            conn=record.conn,
            stmt=record.stmt,
            sql=sql,
            sql_bytes=size,
            truncated=truncated,
            lost=False,
        )
        return dataclasses.replace(prepared, json=fragment(prepared.fields()))

    def statements(self, batch: StatementBatch) -> Iterator[Statement]:
        """Yield an event for each execution of a batch."""
        processes: dict[int, Process] = {}
        get_process = self._processes.get
        get_prepared = self._prepared.get
        wall = self._clock.wall(0)
        for (
            _,
            flags,
            _,
            pid,
            tid,
            begin_ns,
            end_ns,
            step_ns,
            stmt,
            conn,
            text_id,
            rows,
            changes,
            bound_bytes,
            n_vars,
            rc,
            fullscan_steps,
            sorts,
            autoindexes,
            vm_steps,
            reprepares,
            filter_misses,
            filter_hits,
            _,
        ) in batch.tolist():
            process = processes.get(pid)
            if process is None:
                process = processes[pid] = get_process(pid)
            prepared = get_prepared(text_id)
            if prepared is None:
                prepared = _unknown(conn, stmt)
            yield Statement(
                process,
                prepared,
                tid,
                end_ns + wall,
                end_ns - begin_ns,
                step_ns,
                flags,
                n_vars,
                bound_bytes,
                rc,
                rows,
                changes,
                fullscan_steps,
                sorts,
                autoindexes,
                vm_steps,
                reprepares,
                filter_hits,
                filter_misses,
            )


def _unknown(conn: int, stmt: int) -> Prepared:
    prepared = Prepared(db=None, conn=conn, stmt=stmt, sql=None, sql_bytes=0, truncated=False, lost=True)
    return dataclasses.replace(prepared, json=fragment(prepared.fields()))


def _cut(sql: bytes, limit: int) -> bytes:
    """Cut at a character boundary, so that UTF-8 stays UTF-8."""
    while limit and sql[limit] & 0xC0 == 0x80:
        limit -= 1
    return sql[:limit]
