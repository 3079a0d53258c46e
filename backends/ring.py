"""Read the ring that hooks inside a target write to: the other side of agent_js/ring.h, which describes it.

The memory belongs to the target, which may be hostile or broken: every number read from it is checked, the work of
one call is bounded, and a record that makes no sense is counted and passed over, never believed.
A published record is found by its absolute number, so that the reader can find its place again.

Statements come in runs: as many as lie behind one another are checked and copied by a few numpy operations.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sqltrace.events.wire import (
    INCOMPLETE,
    NO_COUNTERS,
    STATEMENT,
    End,
    MalformedRecordError,
    Record,
    RecordType,
    StatementBatch,
    parse_one,
)

MAGIC: Final = int.from_bytes(b"SQTRING1", "little")
SLOT: Final = 64
HEADER_BYTES: Final = 4096
SPILL: Final = 20480
LARGEST: Final = 16384 + 64
"""No record is longer: a text piece and its header."""

HEADER: Final = np.dtype(
    {
        "names": [
            "magic",
            "slots",
            "executions",
            "closed",
            "waits",
            "beat",
            "silent",
            "head",
            "tail",
            "hits",
            "text_id",
            "lost",
        ],
        "formats": ["<u8", "<u4", "<u4", "<u4", "<u4", "<u8", "<u8", "<u8", "<u8", "<u8", "<u8", ("<u8", (8,))],
        "offsets": [0, 8, 12, 16, 20, 24, 32, 64, 128, 192, 256, 320],
        "itemsize": HEADER_BYTES,
    }
)
"""`struct ring_header`."""

LOSSES: Final = (
    ("statement", "ring_full"),
    ("text", "ring_full"),
    ("database", "ring_full"),
    ("statement", "too_many_statements"),
    ("nesting", "too_many_threads"),
)
"""What each member of ring_header.lost counts."""

EXECUTION: Final = np.dtype(
    [
        ("key", "<u8"),
        ("stmt", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("running", "<u4"),
        ("flags", "<u4"),
        ("conn", "<u8"),
        ("sql", "<u8"),
        ("text_id", "<u8"),
        ("begin_ns", "<u8"),
        ("end_ns", "<u8"),
        ("step_ns", "<u8"),
        ("rows", "<u8"),
        ("changed", "<i8"),
        ("base", "<u4", (9,)),
        ("last", "<u4", (9,)),
        ("reserved", "<u8", (3,)),
    ]
)
"""`struct execution`."""

SQLITE_ROW: Final = 100
TORN_AFTER: Final = 1.0
"""Seconds after which a reserved record that is followed by published ones is given up while its process lives."""

_STATEMENT_SLOTS = STATEMENT.itemsize // SLOT
_FIRST_RUN = 16
_LONGEST_RUN = 16384
_RECORDS_PER_READ = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """How large the parts of a ring are."""

    slots: int
    executions: int

    @property
    def payload(self) -> int:
        """Where the slots begin."""
        return HEADER_BYTES + 8 * self.slots

    @property
    def table(self) -> int:
        """Where the table of executions begins."""
        return self.payload + SLOT * self.slots + SPILL

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.table + EXECUTION.itemsize * self.executions


class Ring:
    """The reader of one ring.  Not thread-safe."""

    def __init__(self, fd: int, geometry: Geometry) -> None:
        """Map the ring behind `fd`, which may be closed afterwards; raises ValueError when it is too small for one."""
        if os.fstat(fd).st_size < geometry.size:
            raise ValueError(f"a file of {os.fstat(fd).st_size} bytes cannot be a ring of {geometry.size}")
        self._geometry = geometry
        self._memory = mmap.mmap(fd, geometry.size)
        slots = geometry.slots
        self._header: npt.NDArray[np.void] = np.frombuffer(self._memory, HEADER, 1)
        self._seq: npt.NDArray[np.uint64] = np.frombuffer(self._memory, "<u8", slots, HEADER_BYTES)
        self._payload: npt.NDArray[np.uint8] = np.frombuffer(
            self._memory, np.uint8, SLOT * slots + SPILL, geometry.payload
        )
        self._table: npt.NDArray[np.void] = np.frombuffer(self._memory, EXECUTION, geometry.executions, geometry.table)
        self._tail = int(self._header["tail"][0])  # where the ring was given back before, it counts on
        self._waiting: tuple[int, float] | None = None
        self._lost: Counter[tuple[str, str]] = Counter()
        self._giving_back = threading.Lock()
        self._final: tuple[int, dict[tuple[str, str], int]] | None = None

    # -- records

    def read(self, *, dead: bool = False, stopped: bool = False) -> list[Record]:
        """Return the next published records, in order; an empty list when there are none at the moment.

        dead: nobody writes any more, so what is not published never will be.
        stopped: the writers cannot run now, so that a record's lateness says nothing.
        """
        head = self._head()
        records: list[Record] = []
        while self._tail < head and len(records) < _RECORDS_PER_READ:
            taken, slots = self._next(head)
            if taken is None:
                if slots == 0 and not self._give_up(dead=dead, stopped=stopped):
                    break
                self._lost["record", "malformed" if slots else "torn"] += 1
                self._resync(head)
            else:
                self._waiting = None
                records.append(taken)
                self._tail += slots
        self._header["tail"][0] = self._tail
        return records

    @property
    def head(self) -> int:
        """How many slots were reserved so far."""
        return self._head()

    @property
    def tail(self) -> int:
        """How many slots were read so far."""
        return self._tail

    @property
    def empty(self) -> bool:
        """Whether nothing is reserved behind what was read."""
        return self._head() == self._tail

    def _head(self) -> int:
        head = int(self._header["head"][0])
        if not self._tail <= head <= self._tail + self._geometry.slots:
            # Not what the hooks do: somebody wrote over it.  Begin anew from there.
            self._lost["record", "malformed"] += 1
            self._tail = head if head < 1 << 62 else 0
            self._header["head"][0] = self._header["tail"][0] = self._tail
            head = self._tail
        return head

    def _next(self, head: int) -> tuple[Record | None, int]:
        """Return the record at the tail and its slots; None with 0 slots: not published; None with 1: senseless."""
        at = self._tail & (self._geometry.slots - 1)
        if int(self._seq[at]) != self._tail + 1:
            return None, 0
        start = at * SLOT
        kind = int(self._payload[start : start + 2].view("<u2")[0])
        size = int(self._payload[start + 4 : start + 8].view("<u4")[0])
        slots = -(-size // SLOT)
        if not 8 <= size <= LARGEST or self._tail + slots > head:
            return None, 1
        if kind == RecordType.STATEMENT:
            run = self._statements(at, head)
            return (run, len(run) * _STATEMENT_SLOTS) if len(run) else (None, 1)
        try:
            return parse_one(self._payload[start : start + size].tobytes()), slots
        except MalformedRecordError:
            return None, 1

    def _statements(self, at: int, head: int) -> StatementBatch:
        """Return the statements that lie behind one another from slot `at`, as far as the ring goes on unbroken."""
        slots = self._geometry.slots
        most = min((head - self._tail) // _STATEMENT_SLOTS, -(-(slots - at) // _STATEMENT_SLOTS), _LONGEST_RUN)
        length = min(most, _FIRST_RUN)
        while True:
            good = self._good(at, length)
            if good < length or length == most:
                break
            length = min(most, length * 16)
        start = at * SLOT
        return self._payload[start : start + good * STATEMENT.itemsize].copy().view(STATEMENT)

    def _good(self, at: int, length: int) -> int:
        """How many of the next `length` double slots hold published statements."""
        end = at + length * _STATEMENT_SLOTS
        wanted = np.arange(self._tail + 1, self._tail + 1 + length * _STATEMENT_SLOTS, _STATEMENT_SLOTS, dtype="<u8")
        rows = self._payload[at * SLOT : at * SLOT + length * STATEMENT.itemsize].view(STATEMENT)
        ok = (
            (self._seq[at:end:_STATEMENT_SLOTS] == wanted)
            & (rows["type"] == RecordType.STATEMENT)
            & (rows["size"] == STATEMENT.itemsize)
        )
        return length if ok.all() else int(ok.argmin())

    def _give_up(self, *, dead: bool, stopped: bool) -> bool:
        """Whether the unpublished record at the tail is lost."""
        if dead:
            return True
        now = time.monotonic()
        if self._waiting is None or self._waiting[0] != self._tail or stopped:
            self._waiting = (self._tail, now)
            return False
        return now - self._waiting[1] > TORN_AFTER and self._published_behind(self._head()) is not None

    def _resync(self, head: int) -> None:
        behind = self._published_behind(head)
        self._tail = head if behind is None else behind
        self._waiting = None

    def _published_behind(self, head: int) -> int | None:
        """Return the next position after the tail where a record of this lap was published."""
        slots = self._geometry.slots
        begin = self._tail + 1
        while begin < head:
            at = begin & (slots - 1)
            length = min(head - begin, slots - at)
            found = self._seq[at : at + length] == np.arange(begin + 1, begin + 1 + length, dtype="<u8")
            if found.any():
                return begin + int(found.argmax())
            begin += length
        return None

    # -- executions that did not end

    def unfinished(self, end: End, pid: int | None = None) -> StatementBatch:
        """Take the executions that still run out of the table, those of `pid` or all, as statements that ended so."""
        table = self._table.copy()
        running = (table["key"] != 0) & (table["running"] == 1)
        if pid is not None:
            running &= table["pid"] == pid
        found = table[running]
        self._table["running"][running] = 0
        rows = np.zeros(len(found), dtype=STATEMENT)
        for name in ("pid", "tid", "begin_ns", "end_ns", "step_ns", "stmt", "conn", "text_id", "rows"):
            rows[name] = found[name]
        rows["type"] = RecordType.STATEMENT
        rows["size"] = STATEMENT.itemsize
        rows["flags"] = (found["flags"] & 0xFFF0) | int(end) | NO_COUNTERS | INCOMPLETE
        rows["rc"] = SQLITE_ROW
        return rows

    # -- books

    def hits(self) -> int:
        """How many ends of executions the hooks saw."""
        return self._final[0] if self._final else int(self._header["hits"][0])

    def lost(self) -> dict[tuple[str, str], int]:
        """Return what was lost, by type and reason."""
        if self._final:
            return self._final[1]
        counts = self._header["lost"][0].tolist()
        lost = {key: int(count) for key, count in zip(LOSSES, counts, strict=False) if count}
        return lost | dict(self._lost)

    def beat(self) -> None:
        """Give a sign of life, at which writers wait for room rather than drop a record.  From any thread."""
        with self._giving_back:
            if self._final is None:
                self._header["beat"][0] += np.uint64(1)
                self._header["waits"][0] = 1

    def shut(self) -> None:
        """Tell the hooks to write nothing any more."""
        self._header["closed"][0] = 1

    def close(self) -> None:
        """Give the memory back, the target's part of it too; the totals stay."""
        with self._giving_back:
            self._give_back()

    def _give_back(self) -> None:
        if self._final:
            return
        self._final = self.hits(), self.lost()
        self.shut()
        with_pages: Any = self._memory
        with_pages.madvise(
            mmap.MADV_REMOVE, HEADER_BYTES, self._geometry.size // mmap.PAGESIZE * mmap.PAGESIZE - HEADER_BYTES
        )
        del self._header, self._seq, self._payload, self._table
        self._memory.close()
