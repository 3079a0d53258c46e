"""Rung 4: public functions that read one field say where it lies.

Each function below is SQLite's own (vdbeapi.c, main.c, vdbemem.c), and its source is given in a word or two.  It
is executed symbolically; what it returns, stores or compares is matched against that source.  An accessor
whose result is not unique says nothing.

Functions are looked at alone first, then with direct calls entered one and two deep: compilers move parts of an
accessor out of line (vdbeUnbind), and libraries call through their PLT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from sqltrace.resolve.claims import FieldClaim
from sqltrace.resolve.symbolic import Argument, Executor, Linear, Load, Trace, field_load

OBJECT: Final = Argument(0)
INDEX: Final = Argument(1)

VDBE_MAGIC_RUN: Final = 0x2DF20DA3
_VALUE_TYPE_READS_FLAGS: Final = 3009000
"""Before, sqlite3_value_type read Mem.type."""

_RETURNED: Final[tuple[tuple[str, str, tuple[int, ...]], ...]] = (
    # function, field, widths that its load may have
    ("sqlite3_sql", "Vdbe.zSql", (8,)),
    ("sqlite3_db_handle", "Vdbe.db", (8,)),
    ("sqlite3_bind_parameter_count", "Vdbe.nVar", (2, 4)),
    ("sqlite3_extended_errcode", "sqlite3.errCode", (4,)),
    ("sqlite3_get_autocommit", "sqlite3.autoCommit", (1,)),
    ("sqlite3_changes64", "sqlite3.nChange", (8,)),
    ("sqlite3_total_changes64", "sqlite3.nTotalChange", (8,)),
    ("sqlite3_value_int64", "Mem.u", (8,)),
    ("sqlite3_value_bytes", "Mem.n", (4,)),
)
_BEFORE_CHANGES64: Final[tuple[tuple[str, str, tuple[int, ...]], ...]] = (
    ("sqlite3_changes", "sqlite3.nChange", (4,)),
    ("sqlite3_total_changes", "sqlite3.nTotalChange", (4,)),
)
_SIZEOF_DB: Final = 32
_FILENAME_CHAIN: Final = ("sqlite3.aDb", "Db.pBt", "Btree.pBt", "BtShared.pPager", "Pager.zFilename")


def member(offset: int) -> Linear:
    """Return the address of the object's member at `offset`."""
    return Linear(offset, ((OBJECT, 1),))


def explained(claim: FieldClaim, executor: Executor, who: str, trace: Trace) -> FieldClaim:
    """Return the claim with the expression and the instruction that told it as its detail."""
    if claim.place is None:
        return replace(claim, detail=who)
    seen = next((a for a in trace.accesses if a.address == claim.place), None)
    if seen is None:
        return replace(claim, detail=f"{who}: {claim.place}")
    verb = "reads" if seen.stored is None else "writes"
    return replace(claim, detail=f"{who} {verb} {Load(seen.address, seen.size)}, {executor.instruction(seen.site)}")


def loaded_fields(trace: Trace, sizes: Iterable[int]) -> dict[int, int]:
    """Return offset and width of each load of these widths straight from the object."""
    found = {}
    for access in trace.loads():
        offset = access.address.offset_from(OBJECT)
        if offset is not None and access.size in sizes:
            found[offset] = access.size
    return found


def returned_field(trace: Trace, sizes: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (offset, width) when the function returns one field of the object (and constants)."""
    found = set()
    for value in trace.returns:
        offset = field_load(value, OBJECT, sizes)
        term = value.single
        if offset is not None and isinstance(term, Load):
            found.add((offset, term.size))
    return found.pop() if len(found) == 1 else None


_COUNTER: Final = tuple(sorted([(OBJECT, 1), (INDEX, 4)], key=repr))


def counters_offset(trace: Trace) -> int | None:
    """Return o when the function reads the 4 bytes at object + 4 * argument 1 + o, and only those.

    sqlite3_stmt_status: `v = pVdbe->aCounter[op]`; the constant may hide in the index, the address keeps it.
    """
    found = {a.address.constant for a in trace.loads() if a.size == 4 and a.address.terms == _COUNTER}
    positive = {o for o in found if o > 0}
    return positive.pop() if len(positive) == 1 else None


def counters_claims(trace: Trace) -> Iterator[FieldClaim]:
    """Yield where the counters of a statement are."""
    offset = counters_offset(trace)
    if offset is not None:
        yield FieldClaim("Vdbe.aCounter", offset, 4, place=Linear(offset, _COUNTER))


def unbind_claims(trace: Trace) -> Iterator[FieldClaim]:
    """Yield what vdbeUnbind(p, i) tells: `pVar = &p->aVar[i]; ...; pVar->flags = MEM_Null; p->db->errCode = 0`.

    The index is argument 1, perhaps less one (sqlite3_bind_null's is 1-based).
    """
    elements: dict[tuple[int, int], dict[int, Linear]] = {}
    for access in trace.accesses:
        terms = dict(access.address.terms)
        size = terms.pop(INDEX, 0)
        if not 40 <= size <= 120 or len(terms) != 1:
            continue
        term, coefficient = next(iter(terms.items()))
        if not isinstance(term, Load) or term.size != 8 or coefficient != 1:
            continue
        array = term.address.offset_from(OBJECT)
        if array is not None and 0 < array < 512:
            flags = elements.setdefault((array, size), {})
            if access.stored is not None and access.size == 2:
                flags[access.address.constant % size] = access.address
    if len(elements) != 1:
        return
    (array, size), flags = next(iter(elements.items()))
    yield FieldClaim("Vdbe.aVar", array, 8, place=member(array))
    place = next(a.address for a in trace.accesses if dict(a.address.terms).get(INDEX) == size)
    yield FieldClaim("sizeof(Mem)", size, 0, place=place)
    for offset, place in flags.items() if len(flags) == 1 else ():
        yield FieldClaim("Mem.flags", offset, 2, place=place)
    connection = Load(Linear(0, ((OBJECT, 1),)), 8)
    zeroed = {
        access.address.constant
        for access in trace.accesses
        if access.size == 4 and access.stored == Linear(0) and access.address.terms == ((connection, 1),)
    }
    if len(zeroed) == 1:
        code = zeroed.pop()
        yield FieldClaim("sqlite3.errCode", code, 4, place=Linear(code, ((connection, 1),)))
        yield FieldClaim("Vdbe.db", 0, 8, place=member(0))


def running_claims(trace: Trace) -> Iterator[FieldClaim]:
    """Yield what sqlite3_stmt_busy tells about how a running statement is known.

    From 3.38 or 3.39 on `v->eVdbeState==VDBE_RUN_STATE`; before, `v->magic==VDBE_MAGIC_RUN && v->pc>=0`.
    """
    state, magic = set(), set()
    for compare in trace.compares:
        for value, other in ((compare.left, compare.right), (compare.right, compare.left)):
            if other == Linear(2) and (offset := field_load(value, OBJECT, (1,))) is not None:
                state.add(offset)
            if other == Linear(VDBE_MAGIC_RUN) and (offset := field_load(value, OBJECT, (4,))) is not None:
                magic.add(offset)
    if len(state) == 1 and not magic:
        at = state.pop()
        yield FieldClaim("Vdbe.eVdbeState", at, 1, place=member(at))
    if len(magic) == 1 and not state:
        at = magic.pop()
        yield FieldClaim("Vdbe.magic", at, 4, place=member(at))
        rest = set(loaded_fields(trace, (4,))) - {at}
        if len(rest) == 1:
            pc = rest.pop()
            yield FieldClaim("Vdbe.pc", pc, 4, place=member(pc))


def _chain(value: Linear) -> tuple[int, ...] | None:
    """Return the offsets along `*(*(*(argument 0 + a) + b) + c)` as (a, b, c), None for anything else."""
    offsets: list[int] = []
    while value.single is not None:
        term = value.single
        if term == OBJECT:
            return tuple(reversed(offsets))
        if not isinstance(term, Load) or term.size != 8 or len(term.address.terms) != 1:
            return None
        offsets.append(term.address.constant)
        value = Linear(0, term.address.terms)
    return None


def filename_claims(trace: Trace) -> Iterator[FieldClaim]:
    """Yield the way from a connection to its file: `db->aDb[0].pBt->pBt->pPager->zFilename`."""
    chains = {c for c in map(_chain, trace.returns) if c is not None and len(c) == len(_FILENAME_CHAIN)}
    # Where the loop over db->aDb was followed, the element is not the first: &aDb[-1], &aDb[1].
    chains = {c for c in chains if min(c) >= 0 and c[1] < _SIZEOF_DB}
    if len(chains) == 1:
        place = Linear(0, ((OBJECT, 1),))
        for name, offset in zip(_FILENAME_CHAIN, chains.pop(), strict=True):
            place = place.plus(Linear(offset))
            yield FieldClaim(name, offset, 8, place=place)
            place = Linear(0, ((Load(place, 8), 1),))


def _deepening(executor: Executor, function: int, deepest: int, budget: int = 4000) -> Iterator[Trace]:
    for depth in range(deepest + 1):
        yield executor.run(function, depth=depth, budget=budget, max_paths=400)


def accessor_claims(executor: Executor, functions: Mapping[str, int], release: int) -> Iterator[FieldClaim]:
    """Yield all that the accessors among `functions` tell; each field may be claimed several times."""
    returned = _RETURNED
    if "sqlite3_changes64" not in functions:
        returned += _BEFORE_CHANGES64
    for function, field, sizes in returned:
        if function in functions:
            for trace in _deepening(executor, functions[function], 2):
                found = returned_field(trace, sizes)
                if found is not None:
                    claim = FieldClaim(field, *found, place=member(found[0]))
                    yield explained(claim, executor, f"{function} at {functions[function]:#x}", trace)
                    break
    for function, reader, deepest in (
        ("sqlite3_stmt_status", counters_claims, 1),
        ("sqlite3_value_type", _value_type_claims if release >= _VALUE_TYPE_READS_FLAGS else _no_claims, 0),
        ("sqlite3_bind_null", unbind_claims, 2),
        ("sqlite3_stmt_busy", running_claims, 1),
        ("sqlite3_db_filename", filename_claims, 4),
    ):
        if function in functions:
            for trace in _deepening(executor, functions[function], deepest, 6000):
                claims = list(reader(trace))
                for claim in claims:
                    yield explained(claim, executor, f"{function} at {functions[function]:#x}", trace)
                if claims:
                    break


def _value_type_claims(trace: Trace) -> Iterator[FieldClaim]:
    """sqlite3_value_type: `aType[pVal->flags&MEM_AffMask]`."""
    flags = loaded_fields(trace, (1, 2, 4))
    if len(flags) == 1:
        offset = next(iter(flags))
        yield FieldClaim("Mem.flags", offset, None, place=member(offset))


def _no_claims(_: Trace) -> Iterator[FieldClaim]:
    return iter(())
