"""Writes small ELF files, so that tests need no stored binaries: segments, relocations, unwind tables, build-id."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

R, W, X = 4, 2, 1


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes to be loaded at an address with these permissions."""

    address: int
    flags: int
    data: bytes


def relative_relocations(slots: Mapping[int, int], machine: int = 62) -> bytes:
    """Return a RELA table that puts each address into its slot."""
    kind = {62: 8, 183: 1027}[machine]
    return b"".join(struct.pack("<QIIq", slot, kind, 0, value) for slot, value in slots.items())


def build_id_note(identifier: bytes) -> bytes:
    """Return the note that a linker writes for --build-id."""
    return struct.pack("<III", 4, len(identifier), 3) + b"GNU\0" + identifier


def eh_frame(address: int, functions: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
    """Return .eh_frame_hdr followed by .eh_frame for (start, size) pairs, to be loaded at `address`."""
    header_size = 12 + 8 * len(functions)
    entries, table = b"", b""
    for start, size in functions:
        here = address + header_size + len(entries)
        table += struct.pack("<ii", start - address, here - address)
        entries += struct.pack("<IIiI", 12, 4, start - (here + 8), size)
    header = struct.pack("<BBBBiI", 1, 0x1B, 3, 0x3B, 0, len(functions))
    return header + table + entries, header_size


def build_elf(
    parts: Sequence[Part],
    *,
    kind: int = 3,
    machine: int = 62,
    relocations: Mapping[int, int] | None = None,
    note: bytes = b"",
    unwind: tuple[int, int] | None = None,
) -> bytes:
    """Return an ELF64 file without section headers.

    `relocations` (slot to address) land in a segment of their own at 0x7000000; `unwind` is the address and
    size of what `eh_frame` returned, which must be in one of the parts.
    """
    parts = list(parts)
    dynamic_at = None
    if relocations:
        table = relative_relocations(relocations, machine)
        dynamic = struct.pack("<6Q", 7, 0x7000000, 8, len(table), 0, 0)
        parts.append(Part(0x7000000, R | W, table + dynamic))
        dynamic_at = len(table)
    count = len(parts) + bool(relocations) + bool(note) + bool(unwind)
    offset = 64 + 56 * count
    headers, content = b"", b""
    for part in parts:
        at = offset + len(content)
        headers += struct.pack("<IIQQQQQQ", 1, part.flags, at, part.address, 0, len(part.data), len(part.data), 8)
        if dynamic_at is not None and part is parts[-1]:
            size = len(part.data) - dynamic_at
            headers += struct.pack("<IIQQQQQQ", 2, R, at + dynamic_at, 0, 0, size, size, 8)
        content += part.data + b"\0" * (-len(part.data) % 8)
    if note:
        headers += struct.pack("<IIQQQQQQ", 4, R, offset + len(content), 0, 0, len(note), len(note), 4)
        content += note
    if unwind:
        headers += struct.pack("<IIQQQQQQ", 0x6474E550, R, 0, unwind[0], 0, unwind[1], unwind[1], 4)
        # Its offset is not used: the address says where it is.
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    return (
        ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0) + headers + content
    )


def with_sections(file: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Return the ELF file with these sections, which are not loaded, and a table of their headers."""
    data = bytearray(file)
    names = b"\0"
    headers = bytes(64)
    for name, content in (*sections.items(), (".shstrtab", b"")):
        here = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else content  # noqa: PLW2901 - it names itself, too
        headers += struct.pack("<IIQQQQIIQQ", here, 1, 0, 0, len(data), len(content), 0, 0, 1, 0)
        data += content + b"\0" * (-len(content) % 8)
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<HHH", data, 58, 64, len(sections) + 2, len(sections) + 1)
    return bytes(data + headers)


def without_section_headers(file: bytes) -> bytes:
    """Return the ELF file without what leads to .symtab: section headers."""
    data = bytearray(file)
    data[40:48] = bytes(8)  # e_shoff
    data[60:64] = bytes(4)  # e_shnum, e_shstrndx
    return bytes(data)


def without_sections(file: bytes) -> bytes:
    """Return what `strip` leaves of an ELF file: what is loaded, and the headers of that."""
    headers_at, entry, count, names_index = struct.unpack_from("<Q10xHHH", file, 40)
    sections = [list(struct.unpack_from("<IIQQQQIIQQ", file, headers_at + entry * i)) for i in range(count)]
    kept = [i for i, section in enumerate(sections) if i == 0 or section[2] & 2]  # SHF_ALLOC
    end = max(s[4] + (0 if s[1] == 8 else s[5]) for s in (sections[i] for i in kept))  # SHT_NOBITS holds nothing
    names = bytearray(b"\0.shstrtab\0")
    table = bytearray()
    for i in kept:
        name, *middle, link, info, align, size = sections[i]
        start = sections[names_index][4] + name
        title = file[start : file.index(b"\0", start)]
        at = len(names) if title else 0
        names += title + b"\0" if title else b""
        link, info = (kept.index(n) if n in kept else 0 for n in (link, info))
        table += struct.pack("<IIQQQQIIQQ", at, *middle, link, info, align, size)
    table += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, end, len(names), 0, 0, 1, 0)
    body = file[:end] + names
    body += bytes(-len(body) % 8)
    head = bytearray(body[:64])
    struct.pack_into("<Q", head, 40, len(body))
    struct.pack_into("<HH", head, 60, len(kept) + 1, len(kept))
    return bytes(head + body[64:] + table)
