"""The wire format as numpy sees it: the twin of bpf/records.h and bpf/layout.h.

Hooks write fixed little-endian structs; here are their dtypes, the constants, and the parser that splits
a stretch of ring memory into batches.  Statement records come in long runs of equal size, so that a run is
one numpy view, not one Python object per event.
`layout_words` turns a `Resolution` into the `struct layout` that the hooks read at run time.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sqltrace.resolution import Resolution


class RecordType(enum.IntEnum):
    """`RECORD_*` of records.h."""

    STATEMENT = 1
    TEXT = 2
    DATABASE = 3
    PROCESS = 4
    MAPPING = 5


class End(enum.IntEnum):
    """`END_*`: how an execution ended."""

    DONE = 0
    ERROR = 1
    RESET = 2
    FINALIZE = 3
    EXIT = 4
    UNSEEN = 5
    DETACH = 6


END_MASK: Final = 0x000F
AUTOCOMMIT: Final = 0x0010
NESTED: Final = 0x0020
INCOMPLETE: Final = 0x0040
NO_COUNTERS: Final = 0x0080

TEXT_LAST: Final = 0x0001
TEXT_NULL: Final = 0x0002
TEXT_TRUNCATED: Final = 0x0004

HEADER: Final = np.dtype([("type", "<u2"), ("flags", "<u2"), ("size", "<u4")])

STATEMENT: Final = np.dtype(
    [
        ("type", "<u2"),
        ("flags", "<u2"),
        ("size", "<u4"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("begin_ns", "<u8"),
        ("end_ns", "<u8"),
        ("step_ns", "<u8"),
        ("stmt", "<u8"),
        ("conn", "<u8"),
        ("text_id", "<u8"),
        ("rows", "<u8"),
        ("changes", "<i8"),
        ("bound_bytes", "<u8"),
        ("vars", "<u4"),
        ("rc", "<i4"),
        ("fullscan_steps", "<u4"),
        ("sorts", "<u4"),
        ("autoindexes", "<u4"),
        ("vm_steps", "<u4"),
        ("reprepares", "<u4"),
        ("filter_misses", "<u4"),
        ("filter_hits", "<u4"),
        ("reserved", "<u4"),
    ]
)
StatementBatch = npt.NDArray[np.void]
"""One or more executions: shape (n,), dtype STATEMENT, owned (not a view of the ring)."""

_HEADER = struct.Struct("<HHI")
_TEXT = struct.Struct("<HHIIIQQQQII")
_DATABASE = struct.Struct("<HHIIIQQII")
_PROCESS = struct.Struct("<HHIIIQQIIIi16s")
_MAPPING = struct.Struct("<HHIIIQQ")

SIZES: Final = {
    RecordType.STATEMENT: STATEMENT.itemsize,
    RecordType.TEXT: _TEXT.size,
    RecordType.DATABASE: _DATABASE.size,
    RecordType.PROCESS: _PROCESS.size,
    RecordType.MAPPING: _MAPPING.size,
}
"""Fixed part of each record in bytes."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a statement's SQL, `offset` bytes into it."""

    pid: int
    text_id: int
    stmt: int
    conn: int
    flags: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Database:
    """The main database file of the statement with this `text_id`, as SQLite spells it."""

    pid: int
    text_id: int
    conn: int
    path: bytes


class ProcessAction(enum.IntEnum):
    """`PROCESS_*`."""

    FORK = 1
    EXEC = 2
    EXIT = 3


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """A followed process was forked, called exec or exited.  `exit_code` is a wait status, None when not known."""

    pid: int
    parent: int
    time_ns: int
    action: ProcessAction
    cgroup_id: int
    uid: int
    gid: int
    comm: bytes
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """A followed process mapped code from a file and is stopped until its backend has looked at it."""

    pid: int
    tid: int
    time_ns: int


Record = StatementBatch | Text | Database | ProcessChange | Mapping


class MalformedRecordError(ValueError):
    """Ring memory does not hold what a hook writes: the target overwrote it, or the versions differ."""


def parse_one(data: memoryview | bytes) -> Record:
    """Decode one record other than a run of statements; raises MalformedRecordError."""
    if len(data) < _HEADER.size:
        raise MalformedRecordError(f"a record of {len(data)} bytes is shorter than its header")
    kind, flags, size = _HEADER.unpack_from(data)
    if kind not in SIZES or size > len(data) or size < SIZES[RecordType(kind)]:
        raise MalformedRecordError(f"a record of type {kind} cannot have {size} bytes")
    if kind == RecordType.STATEMENT:
        return np.frombuffer(bytes(data[: STATEMENT.itemsize]), dtype=STATEMENT)
    if kind == RecordType.TEXT:
        _, _, _, pid, _, text_id, stmt, conn, offset, length, _ = _TEXT.unpack_from(data)
        if _TEXT.size + length > size:
            raise MalformedRecordError(f"a text of {length} bytes does not fit a record of {size}")
        return Text(pid, text_id, stmt, conn, flags, offset, bytes(data[_TEXT.size : _TEXT.size + length]))
    if kind == RecordType.DATABASE:
        _, _, _, pid, _, text_id, conn, length, _ = _DATABASE.unpack_from(data)
        if _DATABASE.size + length > size:
            raise MalformedRecordError(f"a path of {length} bytes does not fit a record of {size}")
        return Database(pid, text_id, conn, bytes(data[_DATABASE.size : _DATABASE.size + length]))
    if kind == RecordType.PROCESS:
        _, _, _, pid, parent, time_ns, cgroup, uid, gid, action, code, comm = _PROCESS.unpack_from(data)
        if action not in tuple(ProcessAction):
            raise MalformedRecordError(f"there is no process action {action}")
        return ProcessChange(
            pid,
            parent,
            time_ns,
            ProcessAction(action),
            cgroup,
            uid,
            gid,
            comm.split(b"\0", 1)[0],
            None if code == -1 else code,
        )
    _, _, _, pid, tid, time_ns, _ = _MAPPING.unpack_from(data)
    return Mapping(pid, tid, time_ns)


UNKNOWN: Final = 0xFFFF

LAYOUT: Final = np.dtype(
    [
        ("vdbe_read", "<u2"),
        ("Vdbe_db", "<u2"),
        ("Vdbe_zSql", "<u2"),
        ("Vdbe_nVar", "<u2"),
        ("Vdbe_nVar_size", "<u2"),
        ("Vdbe_aVar", "<u2"),
        ("Vdbe_aCounter", "<u2"),
        ("counters", "<u2"),
        ("Vdbe_eVdbeState", "<u2"),
        ("Vdbe_magic", "<u2"),
        ("Vdbe_pc", "<u2"),
        ("Vdbe_nChange", "<u2"),
        ("Vdbe_nChange_size", "<u2"),
        ("sqlite3_aDb", "<u2"),
        ("sqlite3_errCode", "<u2"),
        ("sqlite3_nChange", "<u2"),
        ("sqlite3_nTotalChange", "<u2"),
        ("sqlite3_nChange_size", "<u2"),
        ("sqlite3_autoCommit", "<u2"),
        ("Db_pBt", "<u2"),
        ("Btree_pBt", "<u2"),
        ("BtShared_pPager", "<u2"),
        ("Pager_zFilename", "<u2"),
        ("sizeof_Mem", "<u2"),
        ("Mem_u", "<u2"),
        ("Mem_n", "<u2"),
        ("Mem_flags", "<u2"),
        ("MEM_Zero", "<u2"),
        ("reserved", "<u2", (4,)),
    ]
)
"""`struct layout` of layout.h."""

REQUIRED_FIELDS: Final = ("Vdbe.db", "Vdbe.zSql")
"""Without these no statement can be told from another."""

_VDBE_FIELDS = {
    "Vdbe.db": 8,
    "Vdbe.zSql": 8,
    "Vdbe.nVar": 4,
    "Vdbe.aVar": 8,
    "Vdbe.eVdbeState": 1,
    "Vdbe.magic": 4,
    "Vdbe.pc": 4,
    "Vdbe.nChange": 8,
}
MAX_VDBE_READ: Final = 384


def _names(fields: Iterable[str]) -> Iterable[tuple[str, str]]:
    return ((name, name.replace(".", "_")) for name in fields)


_PLAIN_FIELDS = tuple(
    _names(
        [
            "Vdbe.db",
            "Vdbe.zSql",
            "Vdbe.nVar",
            "Vdbe.aVar",
            "Vdbe.aCounter",
            "Vdbe.eVdbeState",
            "Vdbe.magic",
            "Vdbe.pc",
            "Vdbe.nChange",
            "sqlite3.aDb",
            "sqlite3.errCode",
            "sqlite3.nChange",
            "sqlite3.nTotalChange",
            "sqlite3.autoCommit",
            "Db.pBt",
            "Btree.pBt",
            "BtShared.pPager",
            "Pager.zFilename",
            "Mem.u",
            "Mem.n",
            "Mem.flags",
        ]
    )
)


def layout_words(resolution: Resolution) -> bytes:
    """Return the 64 bytes of `struct layout` for this binary.

    Fields that were not resolved become UNKNOWN, which switches what needs them off in the hooks.
    Raises ValueError when one of REQUIRED_FIELDS is missing or an offset is absurd.
    """
    fields = resolution.layout
    for name in REQUIRED_FIELDS:
        if name not in fields:
            raise ValueError(f"{resolution.path}: {name} is not resolved")
    out = np.zeros(1, dtype=LAYOUT)
    row = out[0]
    for name, member in _PLAIN_FIELDS:
        found = fields.get(name)
        if found is not None and not 0 <= found.offset < UNKNOWN:
            raise ValueError(f"{resolution.path}: {name} cannot lie at offset {found.offset}")
        row[member] = UNKNOWN if found is None else found.offset
    end = 0
    for name, width in _VDBE_FIELDS.items():
        if name in fields:
            end = max(end, fields[name].offset + (fields[name].size or width))
    if "Vdbe.aCounter" in fields:
        start = fields["Vdbe.aCounter"].offset
        # aCounter grew from 5 to 7 (3.20) to 9 (3.38) members; zSql follows it, aligned to 8.
        count = (fields["Vdbe.zSql"].offset - start) // 4
        count = 9 if count >= 9 else 7 if count >= 7 else 5
        row["counters"] = count
        end = max(end, start + 4 * count)
    if end > MAX_VDBE_READ:
        raise ValueError(f"{resolution.path}: a Vdbe of {end} bytes is larger than any release's")
    row["vdbe_read"] = (end + 7) & ~7
    row["Vdbe_nVar_size"] = fields["Vdbe.nVar"].size if "Vdbe.nVar" in fields else 4
    row["Vdbe_nChange_size"] = fields["Vdbe.nChange"].size if "Vdbe.nChange" in fields else 8
    row["sqlite3_nChange_size"] = fields["sqlite3.nChange"].size if "sqlite3.nChange" in fields else 8
    row["sizeof_Mem"] = fields["sizeof(Mem)"].offset if "sizeof(Mem)" in fields else UNKNOWN
    row["MEM_Zero"] = fields["MEM_Zero"].offset if "MEM_Zero" in fields else 0
    return out.tobytes()
