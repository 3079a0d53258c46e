"""Writes small Mach-O files, so that tests need no stored binaries."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

TEXT, CONSTANTS, DATA = 0x1000, 0x2000, 0x3000
"""Where the sections lie, counted from the base address; in the file they lie at the same offsets."""
_SIZE = 0x4000


def uleb(value: int) -> bytes:
    """Return an unsigned LEB128 number."""
    out = b""
    while True:
        byte, value = value & 0x7F, value >> 7
        out += bytes([byte | 0x80 if value else byte])
        if not value:
            return out


def exports_trie(names: Mapping[str, int]) -> bytes:
    """Return a trie with one edge for each name, to its offset from the base address."""
    leaves = [struct.pack("B", len(uleb(0) + uleb(o))) + uleb(0) + uleb(o) + b"\0" for o in names.values()]
    size = 2 + sum(len(n) + 1 + 2 for n in names)
    root, at = bytes([0, len(names)]), size
    for name, leaf in zip(names, leaves, strict=True):
        root += name.encode() + b"\0" + bytes([at & 0x7F | 0x80, at >> 7])
        at += len(leaf)
    return root + b"".join(leaves)


def chained_fixups(pointer_format: int, first: int) -> bytes:
    """Return fixups whose only chain begins `first` bytes into the segment number 1."""
    in_segment = struct.pack("<IHHQIHH", 24, 0x1000, pointer_format, 0, 0, 1, first)
    in_image = struct.pack("<III", 2, 0, 12) + in_segment
    return struct.pack("<7I", 0, 28, 0, 0, 0, 0, 0) + in_image


def build_macho(
    code: bytes = b"",
    constants: bytes = b"",
    data: bytes = b"",
    *,
    base: int = 0x100000000,
    cpu: int = 0x0100000C,
    kind: int = 6,
    uuid: bytes = b"",
    starts: Sequence[int] = (),
    symbols: Mapping[str, int] | None = None,
    exports: Mapping[str, int] | None = None,
    rebase: bytes = b"",
    fixups: bytes = b"",
) -> bytes:
    """Return a file with __text, __cstring and __data; addresses in `symbols` are absolute, others are offsets."""
    tail = b""

    def placed(content: bytes) -> tuple[int, int]:
        nonlocal tail
        at = _SIZE + len(tail)
        tail += content + b"\0" * (-len(content) % 8)
        return at, len(content)

    def section(name: str, segment: str, offset: int, size: int, flags: int) -> bytes:
        where = (base + offset, size, offset, 0, 0, 0, flags, 0, 0, 0)
        return struct.pack("<16s16sQQIIIIIIII", name.encode(), segment.encode(), *where)

    def segment(name: str, start: int, end: int, protection: int, sections: bytes) -> bytes:
        content = (base + start, end - start, start, end - start, protection, protection, len(sections) // 80, 0)
        return struct.pack("<II16sQQQQIIII", 0x19, 72 + len(sections), name.encode(), *content) + sections

    text = section("__text", "__TEXT", TEXT, len(code), 0x80000400)
    text += section("__cstring", "__TEXT", CONSTANTS, len(constants), 2)
    commands = [
        segment("__TEXT", 0, DATA, 5, text),
        segment("__DATA", DATA, _SIZE, 3, section("__data", "__DATA", DATA, len(data), 0)),
    ]
    if uuid:
        commands.append(struct.pack("<II16s", 0x1B, 24, uuid))
    deltas = b"".join(uleb(b - a) for a, b in zip([0, *starts], starts, strict=False))
    commands.append(struct.pack("<IIII", 0x26, 16, *placed(deltas)))
    if symbols:
        names, entries = b"\0", b""
        for name, address in symbols.items():
            entries += struct.pack("<IBBHQ", len(names), 0x0F, 1, 0, address)
            names += name.encode() + b"\0"
        commands.append(struct.pack("<IIIIII", 2, 24, placed(entries)[0], len(symbols), *placed(names)))
    trie = exports_trie(exports) if exports else b""
    if fixups:
        commands.append(struct.pack("<IIII", 0x80000034, 16, *placed(fixups)))
        commands.append(struct.pack("<IIII", 0x80000033, 16, *placed(trie)))
    else:
        commands.append(struct.pack("<II10I", 0x80000022, 48, *placed(rebase), 0, 0, 0, 0, 0, 0, *placed(trie)))
    header = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, kind, len(commands), sum(map(len, commands)), 0, 0)
    file = bytearray(_SIZE)
    for at, content in ((0, header + b"".join(commands)), (TEXT, code), (CONSTANTS, constants), (DATA, data)):
        file[at : at + len(content)] = content
    return bytes(file) + tail


def universal(*parts: tuple[int, bytes]) -> bytes:
    """Return a universal file of these files, each with the machine it is for."""
    header = struct.pack(">4sI", b"\xca\xfe\xba\xbe", len(parts))
    at, content = 0x1000, b""
    for cpu, part in parts:
        header += struct.pack(">IIIII", cpu, 0, at + len(content), len(part), 12)
        content += part + b"\0" * (-len(part) % 0x1000)
    return header.ljust(0x1000, b"\0") + content


def without_symbols(file: bytes, *, function_starts: bool = True) -> bytes:
    """Return a thin file whose load commands no longer lead to symbols, exports and perhaps function starts."""
    data = bytearray(file)
    at = 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:
            data[at + 8 : at + 24] = bytes(16)
        elif command in (0x22, 0x80000022):
            data[at + 40 : at + 48] = bytes(8)
        elif command == 0x80000033 or (command == 0x26 and not function_starts):
            data[at + 8 : at + 16] = bytes(8)
        at += size
    return bytes(data)
