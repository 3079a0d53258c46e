"""Reads BTF: where a member of a struct lies, how large a type is, what an enumerator is worth.

The files of the catalogue are ours, but a user may hand in any file (`--layout FILE`), so nothing in one is
believed: every number is checked against the file's size, nesting is bounded, and each struct is searched at most
once for a name.  Whatever is wrong ends in a BtfError.

Numbers are those of 64-bit targets: BTF does not say how large a pointer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqltrace.btf.format import (
    ARRAY,
    COMPOSITE,
    ENUMERATOR,
    HEADER,
    MAGIC,
    MEMBER,
    MODIFIERS,
    RECORD,
    REFERRING,
    TRAILERS,
    WORD,
    Kind,
)
from sqltrace.errors import SqltraceError

POINTER_SIZE: Final = 8
_MOST_BYTES: Final = 64 << 20
_DEEPEST: Final = 64
_STEP: Final = re.compile(r"(\w+)((?:\[\d{1,9}\])*)", re.ASCII)


class BtfError(SqltraceError, ValueError):
    """The file is not BTF, is damaged, or refers to what it does not hold."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct or union; `bit_size` is 0 unless it is a bit-field."""

    name: str
    type_id: int
    bits: int
    bit_size: int


@dataclass(frozen=True, slots=True)
class Enumerator:
    """One name of an enum and its value."""

    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Type:
    """One type record.

    `size` in bytes where the kind has one, `type_id` the type that it refers to (an array's elements), `count` an
    array's length, `encoding` an integer's (signedness), `flag` a union where the kind is FWD.
    """

    kind: Kind
    name: str
    size: int = 0
    type_id: int = 0
    count: int = 0
    index_id: int = 0
    encoding: int = 0
    flag: bool = False
    members: tuple[Member, ...] = ()
    enumerators: tuple[Enumerator, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies in a struct: bytes, and the bits within them where it is a bit-field.

    `element` is the size of one element of an array, and equal to `size` for all else.
    """

    offset: int
    size: int
    element: int
    bit_offset: int = 0
    bit_size: int = 0


VOID: Final = Type(Kind.VOID, "")


class Btf:
    """A set of types.  Numbers of types are indexes into `types`; 0 is void."""

    def __init__(self, types: Sequence[Type]) -> None:
        self.types: Final = tuple(types)
        self._names: dict[str, int] = {}
        for wanted in (COMPOSITE, {Kind.TYPEDEF}, {Kind.ENUM, Kind.INT, Kind.FLOAT}):
            for number, type_ in enumerate(self.types):
                if type_.name and type_.kind in wanted:
                    self._names.setdefault(type_.name, number)

    @classmethod
    def parse(cls, data: bytes) -> Btf:
        """Read a .btf file.  Raises BtfError."""
        return cls(_parse(data))

    def find(self, name: str) -> int | None:
        """Return the number of a struct, union, typedef, enum or basic type, None when there is none."""
        return self._names.get(name)

    def resolve(self, number: int) -> int:
        """Return the type that is meant, behind typedefs and qualifiers."""
        for _ in range(_DEEPEST):
            if self.types[number].kind not in MODIFIERS:
                return number
            number = self.types[number].type_id
        raise BtfError("BTF has a typedef of a typedef without end")

    def size(self, number: int) -> int:
        """Return a type's size in bytes; 0 for void, functions and what is only declared."""
        factor = 1
        for _ in range(_DEEPEST):
            type_ = self.types[self.resolve(number)]
            if type_.kind is not Kind.ARRAY:
                return factor * (POINTER_SIZE if type_.kind is Kind.PTR else type_.size)
            factor *= type_.count
            number = type_.type_id
        raise BtfError("BTF has an array of arrays without end")

    def sizeof(self, name: str) -> int | None:
        """Return a type's size in bytes, None when there is no such type or it is only declared."""
        number = self.find(name)
        return (self.size(number) or None) if number is not None else None

    def place(self, path: str) -> Place | None:
        """Return where a member lies in its struct, None when there is no such struct or member.

        `path` is `Struct.member`, as in C: `BtCursor.info.nKey`, `Pager.aStat[1]`, and members of anonymous unions
        as if they were the struct's own (`Mem.u.i`, `Table.pSelect`).  Pointers are not followed.
        """
        struct, *steps = path.split(".")
        number = self.find(struct)
        bits, bit_size = 0, 0
        for step in steps:
            parsed = _STEP.fullmatch(step)
            if number is None or parsed is None or bit_size:
                return None
            member = self._member(self.resolve(number), parsed.group(1))
            if member is None:
                return None
            bits, bit_size, number = bits + member.bits, member.bit_size, member.type_id
            for index in re.findall(r"\d+", parsed.group(2)):
                array = self.types[self.resolve(number)]
                if array.kind is not Kind.ARRAY or bit_size or int(index) >= max(array.count, 1):
                    return None
                number = array.type_id
                bits += int(index) * self.size(number) * 8
        if number is None or not steps:
            return None
        if bit_size:
            size = (bits % 8 + bit_size + 7) // 8
            return Place(bits // 8, size, size, bits % 8, bit_size)
        type_ = self.types[self.resolve(number)]
        size = self.size(number)
        return Place(bits // 8, size, self.size(type_.type_id) if type_.kind is Kind.ARRAY else size)

    def enumerators(self, enum: str) -> Mapping[str, int]:
        """Return the names and values of an enum; none when there is no such enum."""
        number = self.find(enum)
        return {e.name: e.value for e in self.types[number].enumerators} if number is not None else {}

    def structs(self) -> Iterator[tuple[str, int]]:
        """Yield the name and number of each struct and union that has a name, in alphabetical order."""
        for name, number in sorted(self._names.items()):
            if self.types[number].kind in COMPOSITE:
                yield name, number

    def _member(self, number: int, name: str) -> Member | None:
        """Find a member of a struct, or of what lies nameless in it."""
        searched: set[int] = set()
        to_search = [(number, 0)]
        while to_search:
            number, bits = to_search.pop()
            if number in searched:
                continue
            searched.add(number)
            for member in self.types[number].members:
                if member.name == name:
                    return Member(name, member.type_id, bits + member.bits, member.bit_size)
                if not member.name:
                    to_search.append((self.resolve(member.type_id), bits + member.bits))
        return None


def _parse(data: bytes) -> list[Type]:
    if len(data) < HEADER.size:
        raise BtfError("BTF is shorter than its header")
    if len(data) > _MOST_BYTES:
        raise BtfError(f"BTF is larger than {_MOST_BYTES >> 20} MB")
    magic, version, _, header, type_at, type_size, string_at, string_size = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise BtfError("this is not BTF (or not little-endian, or not of version 1)")
    if header < HEADER.size or max(type_at + type_size, string_at + string_size) > len(data) - header:
        raise BtfError("BTF is cut short")
    records = memoryview(data)[header + type_at :][:type_size]
    strings = _Strings(data[header + string_at :][:string_size])
    types = [VOID]
    at = 0
    while at < len(records):
        if at + RECORD.size > len(records):
            raise BtfError("BTF ends within a type")
        name, info, word = RECORD.unpack_from(records, at)
        at += RECORD.size
        number, count = info >> 24 & 0x1F, info & 0xFFFF
        if not Kind.VOID < number <= Kind.ENUM64:
            raise BtfError(f"BTF has a type of kind {number}, which is not known")
        kind = Kind(number)
        fixed, each = TRAILERS.get(kind, (0, 0))
        end = at + fixed + each * count
        if end > len(records):
            raise BtfError("BTF ends within a type")
        types.append(_type(kind, strings.at(name), word, records[at:end], strings, flag=bool(info >> 31)))
        at = end
    for type_ in types:
        if max(type_.type_id, type_.index_id, *(m.type_id for m in type_.members), 0) >= len(types):
            raise BtfError("BTF refers to a type that it does not hold")
    return types


def _type(kind: Kind, name: str, word: int, trailer: memoryview, strings: _Strings, *, flag: bool) -> Type:
    if kind in REFERRING:
        return Type(kind, name, type_id=word, flag=flag)
    if kind is Kind.INT:
        return Type(kind, name, size=word, encoding=WORD.unpack(trailer)[0])
    if kind is Kind.ARRAY:
        element, index, count = ARRAY.unpack(trailer)
        return Type(kind, name, type_id=element, index_id=index, count=count)
    if kind in COMPOSITE:
        members = tuple(
            # With the flag, the upper eight bits are the size of a bit-field.
            Member(strings.at(n), t, o & 0xFFFFFF if flag else o, o >> 24 if flag else 0)
            for n, t, o in MEMBER.iter_unpack(trailer)
        )
        return Type(kind, name, size=word, members=members, flag=flag)
    if kind is Kind.ENUM:
        values = tuple(Enumerator(strings.at(n), v) for n, v in ENUMERATOR.iter_unpack(trailer))
        if flag:  # its values are signed
            values = tuple(Enumerator(e.name, e.value - (1 << 32) if e.value >> 31 else e.value) for e in values)
        return Type(kind, name, size=word, flag=flag, enumerators=values)
    return Type(kind, name, size=word, flag=flag)


class _Strings:
    """The string section."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._known: dict[int, str] = {}

    def at(self, offset: int) -> str:
        if offset not in self._known:
            end = self._data.find(b"\0", offset) if offset < len(self._data) else -1
            if end < 0 or end - offset > 1024:
                raise BtfError("BTF has a name outside of its strings")
            self._known[offset] = self._data[offset:end].decode("utf-8", "replace")
        return self._known[offset]
