"""Writes BTF, for `bpftool btf dump file` and for whatever else reads it."""

from __future__ import annotations

from sqltrace.btf.format import ARRAY, ENUMERATOR, HEADER, MAGIC, MEMBER, RECORD, WORD, Kind
from sqltrace.btf.reader import Btf


def encode(btf: Btf) -> bytes:
    """Return the bytes of a .btf file.  Strings stand in the order of their first use."""
    strings = {"": 0}
    size = 1

    def name(text: str) -> int:
        nonlocal size
        if text not in strings:
            strings[text] = size
            size += len(text.encode()) + 1
        return strings[text]

    records = bytearray()
    for type_ in btf.types[1:]:
        count = len(type_.members) + len(type_.enumerators)
        info = type_.kind << 24 | count | type_.flag << 31
        records += RECORD.pack(name(type_.name), info, type_.size or (0 if type_.kind is Kind.ARRAY else type_.type_id))
        if type_.kind is Kind.INT:
            records += WORD.pack(type_.encoding)
        elif type_.kind is Kind.ARRAY:
            records += ARRAY.pack(type_.type_id, type_.index_id, type_.count)
        for m in type_.members:
            records += MEMBER.pack(name(m.name), m.type_id, m.bits | m.bit_size << 24)
        for e in type_.enumerators:
            records += ENUMERATOR.pack(name(e.name), e.value & 0xFFFFFFFF)
    text = b"".join(s.encode() + b"\0" for s in strings)
    return HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(records), len(records), len(text)) + bytes(records) + text
