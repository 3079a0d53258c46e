"""What a symbol table says, read by pyelftools: a second opinion on our own reading."""

from __future__ import annotations

import functools
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
