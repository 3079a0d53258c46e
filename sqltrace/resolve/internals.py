"""Functions that SQLite keeps to itself, found by the calls around sqlite3VdbeExec.

* sqlite3VdbeReset (vdbeaux.c) is what sqlite3_reset hands its statement to, and hands it on to sqlite3VdbeHalt.
  Where sqlite3_reset is inlined in sqlite3_step, which resets a statement that starts again, that one does.
* sqlite3BtreeInsert and sqlite3BtreeDelete (btree.c) are called by sqlite3VdbeExec, and they alone call balance(),
  which with what it calls is large.  Insert reads the BtreePayload that its second argument points to: pKey and
  nKey at 0 and 8, nMem at 32 (where fillInCell is not inlined, only that), nData and nZero at 36 and 40, the same
  in every release since 3.16.  Delete's is a flag.

Nothing works by these alone, so that a guess is of no use: several answers are none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqltrace.resolve.callgraph import CallGraph
from sqltrace.resolve.symbolic import Argument, Call, Executor, Linear

_PAYLOAD: Final = Argument(1)
_OWN: Final = Linear(0, ((Argument(0), 1),))
_KEY: Final = {(0, 8), (8, 8)}
_SIZES: Final = {(32, 2), (36, 4), (40, 4)}
_LEAST: Final = 300
_BALANCE: Final = 2500
"""Bytes of balance() with the largest function that it calls, balance_nonroot or itself."""
_SMALLEST_EXEC, _LARGEST_EXEC = 8 << 10, 256 << 10
_LARGEST_SANITIZED: Final = 1 << 20
"""Bytes of sqlite3VdbeExec; something else than that is several functions, or a part of one."""


@dataclass(frozen=True, slots=True)
class BtreeWriters:
    """The two functions that change a b-tree, and what both of them call."""

    insert: int
    delete: int
    balance: int


def is_whole(graph: CallGraph, vdbe_exec: int, *, measured: bool) -> bool:
    """Whether this has the size of all of sqlite3VdbeExec; if unwind data tells it, sanitizers may be in it."""
    return _SMALLEST_EXEC <= graph.size(vdbe_exec) <= (_LARGEST_SANITIZED if measured else _LARGEST_EXEC)


def vdbe_reset(graph: CallGraph, executor: Executor, reset: int, halt: int, not_these: Collection[int]) -> int | None:
    """Return sqlite3VdbeReset, given sqlite3_reset and sqlite3VdbeHalt; None where it is inlined."""
    between = (graph.callees(reset) & graph.callers(halt)) - {reset, halt, *not_these}
    passing = [f for f in between if _passes_own(executor, f, halt) and _passes_own(executor, reset, f)]
    return passing[0] if len(passing) == 1 else None


def vdbe_reset_shared(
    graph: CallGraph, executor: Executor, steps: Collection[int], finalize: int, halt: int
) -> int | None:
    """Return sqlite3VdbeReset where sqlite3_reset is inlined in sqlite3_step (or sqlite3Step), which are `steps`.

    Both they and sqlite3_finalize hand their own statement to it, perhaps through a function between them
    (sqlite3VdbeFinalize; a part of sqlite3_reset that the compiler kept), and it hands it to sqlite3VdbeHalt.
    """
    not_these = {*steps, finalize, halt}

    def hands_on(function: int, target: int) -> bool:
        between = {function} | ((graph.callees(function) & graph.callers(target)) - not_these)
        return any(
            _passes_own(executor, f, target) and (f == function or _passes_own(executor, function, f))
            for f in sorted(between)
            if target in graph.callees(f)
        )

    candidates = [f for f in graph.callers(halt) - not_these if _passes_own(executor, f, halt)]
    found = [f for f in candidates if hands_on(finalize, f) and any(hands_on(step, f) for step in steps)]
    return found[0] if len(found) == 1 else None


def _passes_own(executor: Executor, function: int, target: int) -> bool:
    def passes(call: Call) -> bool:
        return call.target == target and call.arguments[0] == _OWN

    return any(map(passes, executor.run(function, budget=4000, stop_at=target, once=True, until=passes).calls))


def btree_writers(graph: CallGraph, executor: Executor, vdbe_exec: int) -> BtreeWriters | None:
    """Return sqlite3BtreeInsert and sqlite3BtreeDelete; None where there is not exactly one such pair."""
    called = {f for f in graph.callees(vdbe_exec) if graph.size(f) >= _LEAST}
    pairs: dict[int, frozenset[int]] = {}
    for shared in {b for f in called for b in graph.callees(f)} - {vdbe_exec}:
        if _size_with_callees(graph, shared) < _BALANCE:
            continue
        callers = graph.callers_among(shared, called)
        if callers is not None and len(callers) == 2:
            pairs[shared] = frozenset(callers)
    reads = {f: _payload_reads(executor, f) for f in {f for pair in pairs.values() for f in pair}}
    found: dict[tuple[int, int], int] = {}
    for shared, pair in pairs.items():
        inserts = [f for f in pair if reads[f] & _KEY and reads[f] & _SIZES]
        deletes = [f for f in pair if not reads[f]]
        if len(inserts) == len(deletes) == 1:
            found[inserts[0], deletes[0]] = shared
    if len(found) != 1:
        return None
    (insert, delete), shared = found.popitem()
    return BtreeWriters(insert, delete, shared)


def _size_with_callees(graph: CallGraph, function: int) -> int:
    return graph.size(function) + max(map(graph.size, graph.callees(function)), default=0)


def _payload_reads(executor: Executor, function: int) -> set[tuple[int, int]]:
    """Return (offset, width) of what is read where the second argument points to."""
    trace = executor.run(function, budget=12000, once=True)  # with sanitizers it has 10,000 instructions
    offsets = ((access.address.offset_from(_PAYLOAD), access.size) for access in trace.loads())
    return {(offset, size) for offset, size in offsets if offset is not None}
