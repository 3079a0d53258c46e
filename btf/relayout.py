"""Lays structs out anew after a member's type has become another, or a member has gone: what gcc would have done.

Two of SQLite's compile-time options change a typedef that members of Vdbe have, each in many ways:
SQLITE_MAX_ATTACHED above 30 makes yDbMask an array of (n+9)/8 bytes (sqliteInt.h), of which there are twelve, and
SQLITE_MAX_VARIABLE_NUMBER makes ynVar an int.  SQLITE_OMIT_TRACE
leaves Vdbe.startTime out.  Storing every combination for every release would not be small, and the rules of
the System V ABI are: a member lies at the next multiple of its alignment, a bit-field does not cross a boundary of
its declared type.  They are the same on x86-64, arm64 and riscv64 under Linux and macOS.

Only natural alignment is known here; SQLite asks for no other.  `laid_out_anew(btf)` changes nothing, for every
file of the catalogue: a test sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sqltrace.btf.format import COMPOSITE, MODIFIERS, Kind
from sqltrace.btf.reader import POINTER_SIZE, Btf, BtfError, Member, Type

_WIDEST_INTEGER: Final = 16
_DEEPEST: Final = 64


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a typedef shall mean: an array of `count` integers of `size` bytes, or with count 0 one such integer."""

    size: int
    count: int = 0


def relaid(btf: Btf, typedefs: Mapping[str, Meaning], without: str = "") -> Btf:
    """Return the types with these typedefs redefined, `Struct.member` left out, and all laid out accordingly."""
    types = list(btf.types)
    changed = set()
    struct, _, left_out = without.partition(".")
    number = btf.find(struct)
    if number is not None:
        members = tuple(m for m in types[number].members if m.name != left_out)
        types[number] = replace(types[number], members=members)
        changed.add(number)
    for name, meaning in typedefs.items():
        number = btf.find(name)
        if number is None:
            continue
        types.append(Type(Kind.INT, f"{meaning.size}-byte integer", size=meaning.size, encoding=meaning.size * 8))
        if meaning.count:
            element = len(types) - 1
            types.append(Type(Kind.ARRAY, "", type_id=element, index_id=element, count=meaning.count))
        types[number] = replace(types[number], type_id=len(types) - 1)
        changed.add(number)
    return _Layouter(types, changed).result()


def laid_out_anew(btf: Btf) -> Btf:
    """Return the types with every struct laid out by the rules above, whether something in it has changed or not."""
    return _Layouter(list(btf.types), range(len(btf.types))).result()


class _Layouter:
    def __init__(self, types: list[Type], changed: Iterable[int]) -> None:
        self._types = types
        self._touched = dict.fromkeys(changed, True)
        self._done: dict[int, tuple[int, int]] = {}

    def result(self) -> Btf:
        """Lay out what holds something that has changed, which is little, and fifty variants are tried."""
        for number in range(len(self._types)):
            if self._is_touched(number):
                self._measure(number)
        return Btf(self._types)

    def _is_touched(self, number: int, depth: int = 0) -> bool:
        """Whether a type has changed, or one that it holds."""
        known = self._touched.get(number)
        if known is None:
            if depth > _DEEPEST:
                raise BtfError("BTF has types in types without end")
            type_ = self._types[number]
            if type_.kind in MODIFIERS or type_.kind is Kind.ARRAY:
                known = self._is_touched(type_.type_id, depth + 1)
            elif type_.kind in COMPOSITE:
                known = any(self._is_touched(m.type_id, depth + 1) for m in type_.members)
            else:
                known = False
            self._touched[number] = known
        return known

    def _measure(self, number: int, depth: int = 0) -> tuple[int, int]:
        """Return a type's size and alignment in bytes; lay it out first where it is a struct."""
        if number not in self._done:
            if depth > _DEEPEST:
                raise BtfError("BTF has types in types without end")
            self._done[number] = self._measured(number, depth + 1)
        return self._done[number]

    def _measured(self, number: int, depth: int) -> tuple[int, int]:
        type_ = self._types[number]
        if type_.kind in MODIFIERS:
            return self._measure(type_.type_id, depth)
        if type_.kind is Kind.PTR:
            return POINTER_SIZE, POINTER_SIZE
        if type_.kind is Kind.ARRAY:
            size, alignment = self._measure(type_.type_id, depth)
            return size * type_.count, alignment
        if type_.kind in COMPOSITE:
            return self._lay_out(number, depth)
        return type_.size, min(max(type_.size, 1), _WIDEST_INTEGER)

    def _lay_out(self, number: int, depth: int) -> tuple[int, int]:
        type_ = self._types[number]
        cursor, end, widest = 0, 0, 1
        members: list[Member] = []
        for member in type_.members:
            size, alignment = self._measure(member.type_id, depth)
            widest = max(widest, alignment)
            at = 0 if type_.kind is Kind.UNION else cursor
            bits = member.bit_size or size * 8
            if not member.bit_size or at % (alignment * 8) + bits > size * 8:
                at = _rounded(at, alignment * 8)
            members.append(member if member.bits == at else replace(member, bits=at))
            cursor = at + bits
            end = max(end, cursor)
        size = _rounded(end, widest * 8) // 8
        if size != type_.size or any(new is not old for new, old in zip(members, type_.members, strict=True)):
            self._types[number] = replace(type_, members=tuple(members), size=size)
        return size, widest


def _rounded(bits: int, boundary: int) -> int:
    return -(-bits // boundary) * boundary
