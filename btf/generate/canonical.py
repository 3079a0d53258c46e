"""Keeps of all types those that the catalogue is for, in an order that depends on nothing but themselves.

gcc and pahole describe every type of the source, some 3,000, in an order and with duplicates that change with their
versions.  Kept are the structs of KEPT with what lies in them by value; a pointer to any other struct points to its
bare declaration, a function pointer points to void.  Qualifiers go, and so do typedefs of structs: what is left is
what the members' places and widths need, and a reader of `bpftool btf dump file` wants to see.

Types are numbered as a walk from the first struct of KEPT meets them, and equal types are one: so the same source
gives the same bytes whatever built it.
"""

from __future__ import annotations

from typing import Final

from sqltrace.btf.format import COMPOSITE, MODIFIERS, Kind
from sqltrace.btf.reader import VOID, Btf, BtfError, Enumerator, Member, Type

KEPT: Final = (
    "Vdbe",
    "sqlite3",
    "Mem",
    "Db",
    "Btree",
    "BtShared",
    "Pager",
    "BtCursor",
    "BtreePayload",
    "VdbeCursor",
    "KeyInfo",
    "Schema",
    "HashElem",
    "Table",
    "Column",
    "Index",
)
"""The structs of which hooks may want a member; Mem is a typedef in some releases."""

CONSTANTS: Final = "sqltrace_constants"
"""The enum that holds the release's #defines of interest; SQLite has no such type."""
CONSTANT_PREFIX: Final = "constant_"
"""What the enumerators begin with in the source, where their own names are #defined."""


def canonical(raw: Btf) -> Btf:
    """Return the types that the catalogue keeps, in canonical order."""
    return _Keeper(raw).kept()


class _Keeper:
    def __init__(self, raw: Btf) -> None:
        self._raw = raw
        self._types: list[Type] = [VOID]
        self._numbers: dict[int, int] = {0: 0}
        self._equal: dict[Type, int] = {}
        self._whole: set[int] = set()

    def kept(self) -> Btf:
        roots = [(name, number) for name in KEPT if (number := self._raw.find(name)) is not None]
        for _, number in roots:
            self._mark(number)
        for _, number in roots:
            self._convert(number)
        for name, number in roots:
            if self._raw.types[number].kind is Kind.TYPEDEF:
                self._unique(Type(Kind.TYPEDEF, name, type_id=self._convert(number)))
        # libbpf and bpftool learn the size of a pointer from this type's.
        self._convert(self._find("long unsigned int"))
        self._convert(self._find(CONSTANTS))
        return Btf(self._types)

    def _find(self, name: str) -> int:
        number = self._raw.find(name)
        if number is None:
            raise BtfError(f"the compiler did not describe {name}")
        return number

    def _mark(self, number: int) -> None:
        """Note that a type's definition is needed, and those of all that lies in it by value."""
        type_ = self._raw.types[number]
        if type_.kind in COMPOSITE and number not in self._whole:
            self._whole.add(number)
            for member in type_.members:
                self._mark(member.type_id)
        elif type_.kind in MODIFIERS or type_.kind is Kind.ARRAY:
            self._mark(type_.type_id)

    def _convert(self, number: int) -> int:
        if number not in self._numbers:
            new = self._new(number, self._raw.types[number])
            self._numbers[number] = new
        return self._numbers[number]

    def _new(self, number: int, type_: Type) -> int:
        kind = type_.kind
        if kind in (Kind.FUNC, Kind.FUNC_PROTO):
            return 0
        if kind in MODIFIERS:
            meant = self._raw.types[self._raw.resolve(number)].kind
            if kind is not Kind.TYPEDEF or meant not in (Kind.INT, Kind.FLOAT, Kind.ARRAY):
                return self._convert(type_.type_id)
            return self._unique(Type(kind, type_.name, type_id=self._convert(type_.type_id)))
        if kind is Kind.PTR:
            return self._unique(Type(kind, "", type_id=self._convert(type_.type_id)))
        if kind is Kind.ARRAY:
            element, index = self._convert(type_.type_id), self._convert(type_.index_id)
            return self._unique(Type(kind, "", type_id=element, index_id=index, count=type_.count))
        if kind is Kind.FWD or (kind in COMPOSITE and number not in self._whole):
            union = kind is Kind.UNION or (kind is Kind.FWD and type_.flag)
            return self._unique(Type(Kind.FWD, type_.name, flag=union)) if type_.name else 0
        if kind in COMPOSITE:
            return self._composite(number, type_)
        if kind is Kind.ENUM:
            values = tuple(Enumerator(e.name.removeprefix(CONSTANT_PREFIX), e.value) for e in type_.enumerators)
            negative = any(e.value < 0 for e in values)
            return self._unique(Type(kind, type_.name, size=type_.size, flag=negative, enumerators=values))
        if kind in (Kind.INT, Kind.FLOAT):
            return self._unique(Type(kind, type_.name, size=type_.size, encoding=type_.encoding))
        raise BtfError(f"{type_.name} is of a kind that the catalogue does not know: {kind.name}")

    def _composite(self, number: int, type_: Type) -> int:
        # Numbered before its members are: they may point back to it.
        self._types.append(type_)
        new = self._numbers[number] = len(self._types) - 1
        members = tuple(Member(m.name, self._convert(m.type_id), m.bits, m.bit_size) for m in type_.members)
        flag = any(m.bit_size for m in members)
        self._types[new] = Type(type_.kind, type_.name, size=type_.size, members=members, flag=flag)
        return new

    def _unique(self, type_: Type) -> int:
        if type_ not in self._equal:
            self._types.append(type_)
            self._equal[type_] = len(self._types) - 1
        return self._equal[type_]
