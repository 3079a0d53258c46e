"""The sqlite3_prepare family where the compiler copied what the family shares.

gcc -O3 gives the callers of sqlite3LockAndPrepare copies of it, and of sqlite3Prepare below it (prepare.c), with the
caller's constants inside (`.constprop`), and inlines some.  Then nobody hands on the flags that tell sqlite3_prepare_v2
from sqlite3_prepare, but each copy of sqlite3Prepare, known by its messages, still does `p->prepFlags = prepFlags`
(sqlite3VdbeSetSql, inlined): a byte at the same offset in all copies, which is 0x80 (SQLITE_PREPARE_SAVESQL) in that
of sqlite3_prepare_v2, 0 in that of sqlite3_prepare, and an argument in the others.

* sqlite3_prepare and sqlite3_prepare_v2 are what hands its five arguments, in their order, to such a copy, or to a
  copy of sqlite3LockAndPrepare that does so; that one is meant itself only where nobody calls it.
* sqlite3_prepare_v3 hands sqlite3Prepare what it computed from its own flags, and 0 for the statement to be replaced.

Several answers are none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from sqltrace.resolve.callgraph import CallGraph
from sqltrace.resolve.symbolic import Argument, Call, Executor, Linear, Unknown

_SAVESQL: Final = 0x80
_NAMES: Final = {0: "sqlite3_prepare", _SAVESQL: "sqlite3_prepare_v2"}
_OWN: Final = tuple(Linear(0, ((Argument(i), 1),)) for i in range(6))
_LARGEST: Final = 1000
"""Bytes of sqlite3LockAndPrepare; sqlite3_exec and others that call it have more, or other arguments."""
_BUDGET: Final = 8000
_WIDEST_VDBE: Final = 1024


def prepare_wrappers(graph: CallGraph, executor: Executor, copies: Collection[int]) -> dict[str, dict[int, int]]:
    """Return by name what may be that function, and what it calls, given the copies of sqlite3Prepare."""
    if len(copies) < 2:
        return {}
    found: dict[str, dict[int, int]] = {}
    for copy, flags in _constant_flags(executor, copies).items():
        for inner in graph.callers(copy):
            if _hands_on(executor, graph, inner, copy, _is_same_five):
                outer = graph.callers(inner)
                wrappers = [f for f in outer if _hands_on(executor, graph, f, inner, _is_same_five)]
                if wrappers or not outer:
                    found.setdefault(_NAMES[flags], {}).update(dict.fromkeys(wrappers, inner) or {inner: copy})
    for copy in copies:
        for function in graph.callers(copy):
            if not graph.callers(function) and _hands_on(executor, graph, function, copy, _is_prepare_v3):
                found.setdefault("sqlite3_prepare_v3", {})[function] = copy
    return found


def _constant_flags(executor: Executor, copies: Collection[int]) -> dict[int, int]:
    """Return prepFlags of each copy in which it is constant; of none where the member is not sure."""
    stored = {copy: _bytes_stored(executor, copy) for copy in copies}
    members = set.intersection(*(set(by_offset) for by_offset in stored.values()))
    if len(members) != 1:
        return {}
    (member,) = members
    values = {copy: by_offset[member] for copy, by_offset in stored.items()}
    if any(len(some) != 1 for some in values.values()):
        return {}
    flags = {copy: next(iter(some)) for copy, some in values.items()}
    constant = {copy: value.constant & 0xFF for copy, value in flags.items() if value.is_constant}
    return {copy: value for copy, value in constant.items() if value in _NAMES}


def _bytes_stored(executor: Executor, function: int) -> dict[int, set[Linear]]:
    """Return the bytes that the function stores in some object, by the member's offset."""
    found: dict[int, set[Linear]] = {}
    for access in executor.run(function, budget=12000, once=True).accesses:
        offset = access.address.constant
        one_term = len(access.address.terms) == 1 and access.address.terms[0][1] == 1
        if access.stored is not None and access.size == 1 and one_term and 0 < offset < _WIDEST_VDBE:
            found.setdefault(offset, set()).add(access.stored)
    return found


def _hands_on(
    executor: Executor, graph: CallGraph, function: int, target: int, accepts: Callable[[Call], bool]
) -> bool:
    """Whether all calls of `target` in a function of that size are of this kind."""
    if graph.size(function) > _LARGEST:
        return False
    calls = executor.run(function, budget=_BUDGET, stop_at=target, once=True).calls
    of_target = [call for call in calls if call.target == target]
    return bool(of_target) and all(map(accepts, of_target))


def _is_same_five(call: Call) -> bool:
    """(db, zSql, nBytes, ppStmt, pzTail), and nothing else."""
    return call.arguments[:5] == _OWN[:5]


def _is_prepare_v3(call: Call) -> bool:
    """(db, zSql, nBytes, SAVESQL|(prepFlags&MASK), 0, ppStmt, ...): the flags are computed, not handed on."""
    a = call.arguments
    computed = a[3] is not None and isinstance(a[3].single, Unknown)
    return a[:3] == _OWN[:3] and computed and a[4] == Linear(0) and a[5] == _OWN[4]
