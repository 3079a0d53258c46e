"""A struct as C, with the offset and size of each member: the form that pahole made known."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.btf.format import COMPOSITE, MODIFIERS, Kind
from sqltrace.btf.reader import Btf, BtfError

_DEEPEST = 16


def struct_lines(btf: Btf, name: str) -> Iterator[str]:
    """Yield the lines of a struct's definition, structs that lie in it by value written out where nameless.

    Raises BtfError when there is no such struct.
    """
    found = btf.find(name)
    number = btf.resolve(found) if found is not None else 0
    if btf.types[number].kind not in COMPOSITE:
        raise BtfError(f"the catalogue has no struct {name}")
    type_ = btf.types[number]
    keyword = "union" if type_.kind is Kind.UNION else "struct"
    yield f"{keyword} {type_.name or name} {{"
    yield from _members(btf, number, 0, 1)
    yield f"}};{'':<44}/* sizeof: {type_.size} */"


def _members(btf: Btf, number: int, base: int, depth: int) -> Iterator[str]:
    for member in btf.types[number].members:
        bits = base + member.bits
        inner = btf.types[btf.resolve(member.type_id)]
        indent = "    " * depth
        if inner.kind in COMPOSITE and not inner.name and depth < _DEEPEST:
            yield f"{indent}{'union' if inner.kind is Kind.UNION else 'struct'} {{"
            yield from _members(btf, btf.resolve(member.type_id), bits, depth + 1)
            yield f"{indent}}}{' ' + member.name if member.name else ''};"
            continue
        width = f" : {member.bit_size}" if member.bit_size else ""
        place = f"{bits // 8}:{bits % 8}" if member.bit_size else f"{bits // 8}"
        size = "" if member.bit_size else f" {btf.size(member.type_id):>5}"
        yield f"{indent + _declared(btf, member.type_id, member.name) + width + ';':<46} /* {place:>5}{size} */"


def _declared(btf: Btf, number: int, name: str, depth: int = 0) -> str:
    """Return a declaration of `name` with this type."""
    type_ = btf.types[number]
    if depth > _DEEPEST:
        raise BtfError("BTF has a type of types without end")
    if type_.kind is Kind.PTR:
        return _declared(btf, type_.type_id, f"*{name}", depth + 1)
    if type_.kind is Kind.ARRAY:
        inner = f"({name})" if name.startswith("*") else name
        return _declared(btf, type_.type_id, f"{inner}[{type_.count}]", depth + 1)
    if type_.kind in MODIFIERS - {Kind.TYPEDEF}:
        return _declared(btf, type_.type_id, name, depth + 1)
    if type_.kind is Kind.VOID:
        return f"void {name}"
    keyword = {Kind.STRUCT: "struct ", Kind.UNION: "union ", Kind.ENUM: "enum ", Kind.FWD: "struct "}.get(
        type_.kind, ""
    )
    if type_.kind is Kind.FWD and type_.flag:
        keyword = "union "
    return f"{keyword}{type_.name or '{...}'} {name}"
