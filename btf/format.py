"""The parts of the BTF format that its reader and its writer share.

BTF (BPF Type Format) is what the kernel uses to describe C types: a header, a list of type records that refer to
each other by number, and a section of NUL-terminated strings.  It is a hundredth of the size of DWARF, and
`bpftool btf dump file` prints it.  Format: Documentation/bpf/btf.rst in the kernel's source.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

MAGIC: Final = 0xEB9F
HEADER: Final = struct.Struct("<HBBIIIII")  # magic, version, flags, header size, then offset and size of both sections
RECORD: Final = struct.Struct("<III")  # name, kind and count and flag, size or referred type
MEMBER: Final = struct.Struct("<III")  # name, type, offset in bits (with the flag: and the size of a bit-field)
ARRAY: Final = struct.Struct("<III")  # element type, index type, count
ENUMERATOR: Final = struct.Struct("<II")  # name, value
WORD: Final = struct.Struct("<I")


class Kind(enum.IntEnum):
    """What a type record describes."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


COMPOSITE: Final = frozenset({Kind.STRUCT, Kind.UNION})
MODIFIERS: Final = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
"""Kinds that are another type under a name or with a qualifier: of the same size and layout."""
REFERRING: Final = MODIFIERS | {Kind.PTR, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG}
"""Kinds whose last word is a type, where other kinds have a size."""

TRAILERS: Final = {
    # kind: (bytes after the record, bytes after it for each of its `count`)
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}
