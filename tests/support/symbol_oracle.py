"""What a symbol table says, read by pyelftools: a second opinion on our own reading."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

from elftools.elf.elffile import ELFFile


@functools.cache
def symbol_addresses(path: Path) -> dict[str, int]:
    """Return each defined function of .dynsym and .symtab whose name holds `sqlite3`."""
    found = {}
    with path.open("rb") as file:
        elf = ELFFile(file)
        for section in (".dynsym", ".symtab"):
            table = elf.get_section_by_name(section)
            for symbol in table.iter_symbols() if table is not None else ():
                defined = symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
                if defined and "sqlite3" in symbol.name:
                    found[symbol.name] = symbol["st_value"]
    return found


def macho_symbol_addresses(file: bytes) -> dict[str, int]:
    """Return each defined symbol of a thin Mach-O file whose name holds `sqlite3`, without its underscore."""
    found = {}
    at = 32
    for _ in range(struct.unpack_from("<I", file, 16)[0]):
        command, size = struct.unpack_from("<II", file, at)
        if command == 2:  # LC_SYMTAB
            entries, count, names, _ = struct.unpack_from("<IIII", file, at + 8)
            for i in range(count):
                name, kind, _, _, value = struct.unpack_from("<IBBHQ", file, entries + 16 * i)
                end = file.index(b"\0", names + name)
                text = file[names + name : end].decode()
                if kind & 0xEE == 0x0E and "sqlite3" in text:
                    found[text.removeprefix("_")] = value
        at += size
    return found
