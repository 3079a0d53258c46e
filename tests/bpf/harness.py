"""The BPF programs without a kernel: compiled for user space with stand-ins, run on an image of a target's memory.

The image is built from the same layout that the hooks get, so that a test says what SQLite's structs hold and reads
the records that come out.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

import numpy as np

import sqltrace.bpf
from sqltrace.backends.bcc.program import COUNTS
from sqltrace.events import wire
from sqltrace.resolution import Evidence, Field, Resolution

HERE = Path(__file__).parent

FIELDS = {
    "Vdbe.db": (0, 8),
    "Vdbe.nVar": (32, 2),
    "Vdbe.nChange": (56, 8),
    "Vdbe.aVar": (128, 8),
    "Vdbe.eVdbeState": (199, 1),
    "Vdbe.aCounter": (212, 4),
    "Vdbe.zSql": (248, 8),
    "sqlite3.aDb": (32, 8),
    "sqlite3.errCode": (80, 4),
    "sqlite3.nChange": (120, 8),
    "sqlite3.nTotalChange": (128, 8),
    "sqlite3.autoCommit": (101, 1),
    "Db.pBt": (8, 8),
    "Btree.pBt": (8, 8),
    "BtShared.pPager": (0, 8),
    "Pager.zFilename": (216, 8),
    "Mem.u": (0, 8),
    "Mem.n": (16, 4),
    "Mem.flags": (20, 2),
    "sizeof(Mem)": (56, 0),
    "MEM_Zero": (0x400, 0),
}
"""SQLite 3.40 on x86-64."""

PID, TID = 700, 701
STACK = 0x7FFF0000
INT, TEXT, BLOB, ZERO = 4, 2, 0x10, 0x400


def compiled(folder: Path, **defines: int) -> ctypes.CDLL:
    """Compile bpf/ with these settings of the loader."""
    settings = {"MAX_STATEMENTS": 64, "MAX_THREADS": 4, "MIN_DURATION_NS": 0, "ERRORS_ONLY": 0, "MUTING": 0} | defines
    target = folder / f"bpf{'-'.join(str(v) for v in settings.values())}.so"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fPIC", "-shared"]
    command += [f"-I{HERE / 'include'}", f"-I{Path(sqltrace.bpf.__file__).parent}"]
    command += [f"-D{name}={value}ULL" for name, value in settings.items()]
    subprocess.run([*command, "-o", target, HERE / "harness.c"], check=True)
    return ctypes.CDLL(str(target))


class World:
    """One target: its memory, its clock, and what its hooks wrote."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._memory: list[ctypes.Array[ctypes.c_char]] = []
        library.total.restype = library.take.restype = ctypes.c_uint64
        library.forget_everything()
        fields = {name: Field(offset, size, (Evidence.CATALOGUE,)) for name, (offset, size) in FIELDS.items()}
        library.set_layout(wire.layout_words(Resolution("x", "ELF", "x86_64", None, "3.40.1", None, {}, fields)))
        library.observe(PID)
        library.set_thread(PID, TID)
        self.now = 1000
        self.clock(self.now)

    # -- memory

    def put(self, address: int, size: int) -> ctypes.Array[ctypes.c_char]:
        """Add zeroed memory at an address of the target."""
        block = ctypes.create_string_buffer(size)
        self._memory.append(block)
        self._library.add_memory(ctypes.c_uint64(address), ctypes.c_uint64(size), block)
        return block

    def text(self, address: int, content: bytes) -> int:
        """Add a text with its NUL."""
        self.put(address, len(content) + 1)[: len(content)] = content
        return address

    def forget_memory(self) -> None:
        """Let nothing be readable any more."""
        self._library.forget_memory()

    # -- what happens

    def clock(self, ns: int) -> None:
        """Set the time."""
        self.now = ns
        self._library.set_clock(ctypes.c_uint64(ns))

    def later(self, ns: int) -> None:
        """Let time pass."""
        self.clock(self.now + ns)

    def ring(self, size: int) -> None:
        """Leave so much room in the ring."""
        self._library.set_ring(ctypes.c_uint64(size))

    def thread(self, pid: int, tid: int) -> None:
        """Let another thread run."""
        self._library.set_thread(pid, tid)

    def mute(self, text_id: int) -> None:
        """Say that nobody wants this statement."""
        self._library.mute(ctypes.c_uint64(text_id))

    def _enter(self, what: int, argument: int, sp: int, result: int = 0) -> None:
        self._library.enter(what, ctypes.c_uint64(argument), ctypes.c_uint64(sp), ctypes.c_uint64(result))

    def step(self, stmt: int, sp: int = STACK) -> None:
        """Enter sqlite3_step."""
        self._enter(0, stmt, sp)

    def returns(self, rc: int, sp: int = STACK) -> None:
        """Return from the sqlite3_step that was entered with this stack pointer."""
        self._enter(1, 0, sp + 8, rc)

    def reset(self, stmt: int, sp: int = STACK) -> None:
        """Enter sqlite3_reset."""
        self._enter(2, stmt, sp)

    def finalize(self, stmt: int, sp: int = STACK) -> None:
        """Enter sqlite3_finalize."""
        self._enter(3, stmt, sp)

    # -- what came out

    def raw(self) -> list[bytes]:
        """Return the records since the last call, as bytes."""
        at = ctypes.POINTER(ctypes.c_char)()
        size = self._library.take(ctypes.byref(at))
        data = ctypes.string_at(at, size)
        found, position = [], 0
        while position < len(data):
            (length,) = struct.unpack_from("<I", data, position)
            found.append(data[position + 4 : position + 4 + length])
            position += 4 + length
        return found

    def records(self) -> list[wire.Record]:
        """Return them decoded."""
        return [wire.parse_one(data) for data in self.raw()]

    def executions(self) -> list[np.void]:
        """Return only the statement records."""
        return [r[0] for r in self.records() if isinstance(r, np.ndarray)]

    def total(self, name: str | tuple[str, str]) -> int:
        """Return a counter."""
        return int(self._library.total(COUNTS.index(name)))

    def balanced(self, emitted: int) -> bool:
        """Say whether every execution that began is accounted for (none runs any more)."""
        lost = self.total(("statement", "ring_full"))
        return self.total("hits") == self.total("ends") == emitted + self.total("filtered") + lost


class Database:
    """A connection in the target."""

    def __init__(self, world: World, at: int, path: bytes) -> None:
        self.at = at
        self._sqlite3 = world.put(at, 512)
        chain = [at + 0x1000 * n for n in range(1, 6)]
        for address in chain[:4]:
            block = world.put(address, 256)
            offset = {0: 8, 1: 8, 2: 0, 3: 216}[chain.index(address)]
            struct.pack_into("<Q", block, offset, chain[chain.index(address) + 1])
        world.text(chain[4], path)
        struct.pack_into("<Q", self._sqlite3, 32, chain[0])
        self._sqlite3[101] = b"\1"

    def changed(self, by: int) -> None:
        """Let the statement that runs change rows."""
        (total,) = struct.unpack_from("<Q", self._sqlite3, 128)
        struct.pack_into("<QQ", self._sqlite3, 120, by, total + by)

    def error(self, code: int) -> None:
        """Set the extended result code."""
        struct.pack_into("<I", self._sqlite3, 80, code)

    def begin(self) -> None:
        """Leave autocommit mode."""
        self._sqlite3[101] = b"\0"


class Prepared:
    """A prepared statement in the target: a Vdbe, its text at `at` + 0x1000, its values at `at` + 0x800."""

    def __init__(self, world: World, at: int, db: Database, sql: bytes | None) -> None:
        self.at = at
        self._world = world
        self._vdbe = world.put(at, 512)
        struct.pack_into("<Q", self._vdbe, 0, db.at)
        if sql is not None:
            struct.pack_into("<Q", self._vdbe, 248, world.text(at + 0x100000, sql))

    def bind(self, *values: tuple[int, int]) -> None:
        """Bind values, given as flags and length."""
        block = self._world.put(self.at + 0x800, 56 * len(values))
        struct.pack_into("<H", self._vdbe, 32, len(values))
        struct.pack_into("<Q", self._vdbe, 128, self.at + 0x800)
        for number, (flags, length) in enumerate(values):
            zeros = length if flags & ZERO else 0
            struct.pack_into("<I12xiH", block, 56 * number, zeros, 0 if zeros else length, flags)

    def running(self, yes: bool = True) -> None:
        """Set Vdbe.eVdbeState."""
        self._vdbe[199] = b"\2" if yes else b"\1"

    def count(self, *counters: int) -> None:
        """Set Vdbe.aCounter: element 1 (full scan steps) and what follows."""
        struct.pack_into(f"<{len(counters)}I", self._vdbe, 216, *counters)

    def reborn(self) -> None:
        """Let another statement with the same text take the same memory."""
        self.running(False)
        self.count(*[0] * 8)
