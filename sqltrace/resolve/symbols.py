"""Rung 1: symbol tables.

.dynsym is there in every shared library that exports SQLite; .symtab where nobody ran strip; Fedora keeps a
compressed .symtab in .gnu_debugdata (GDB manual, "MiniDebugInfo"); distributions keep separate debug files
under /usr/lib/debug/.build-id (GDB manual, "Debugging Information in Separate Files").
Some programs rename SQLite: Chromium exports chrome_sqlite3_step, Expo exsqlite3_step.

Only definitions count: a program that merely calls sqlite3_step has an undefined symbol of that name.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sqltrace.errors import AmbiguousResolutionError, NotAnImageError
from sqltrace.resolve.elf import SYMBOL, Elf, open_image

_NAME: Final = re.compile(rb"(?<=\0)([A-Za-z0-9_.]{0,40}?)(sqlite3[A-Za-z0-9_]{1,60})(?=[\0@])")
_STT_FUNC: Final = 2
_SHT_NOBITS: Final = 8
_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 5, 6, 10
_DEBUG_FILES: Final = Path("/usr/lib/debug/.build-id")
_MINI_DEBUG_LIMIT: Final = 256 << 20

_LEAST_API: Final = 40
"""So many public functions under one prefix are SQLite itself; a wrapper renames a few."""
_INTERNAL: Final = "sqlite3VdbeExec"
"""So is a program that has this one; link-time optimisation may leave it few public functions."""


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A function that a symbol table names: its address, the name as it stands there, and which table it is."""

    address: int
    symbol: str
    table: str


def _tables(elf: Elf) -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.void]], bytes]]:
    """Yield name, symbols and names of each symbol table of this file, the names with a zero in front."""
    for symbols_name, strings_name in ((".dynsym", ".dynstr"), (".symtab", ".strtab")):
        table, strings = elf.sections.get(symbols_name), elf.sections.get(strings_name)
        if table is None or strings is None or _SHT_NOBITS in (table.kind, strings.kind):
            continue
        entries = np.frombuffer(elf.data, SYMBOL, table.size // SYMBOL.itemsize, table.offset)
        yield symbols_name, entries, b"\0" + bytes(elf.data[strings.offset : strings.offset + strings.size])
    if not elf.sections and _DT_STRTAB in elf.dynamic and _DT_SYMTAB in elf.dynamic:
        # sstrip removes the section headers; linkers put .dynstr right behind .dynsym.
        size = elf.dynamic[_DT_STRTAB] - elf.dynamic[_DT_SYMTAB]
        if 0 < size < elf.size:
            strings_size = min(max(elf.dynamic.get(_DT_STRSZ, 0), 0), elf.size)
            names = elf.read(elf.dynamic[_DT_STRTAB], strings_size)
            yield ".dynsym", elf.table_at(elf.dynamic[_DT_SYMTAB], SYMBOL, size), b"\0" + names


def _defined_in(elf: Elf, origin: str = "") -> dict[str, dict[int, str]]:
    """Return each defined function with `sqlite3` in its name: the addresses that go by it, and the table."""
    found: dict[str, dict[int, str]] = {}
    for table, entries, names in _tables(elf):
        # A linker may let one name be the tail of another: chrome_sqlite3_step, sqlite3_step.
        at: dict[int, str] = {}
        for match in _NAME.finditer(names):
            at[match.start(1) - 1] = match.group().decode()
            at[match.start(2) - 1] = match.group(2).decode()
        if not at:
            continue
        wanted = (entries["section"] != 0) & (entries["info"] & 15 == _STT_FUNC) & (entries["value"] != 0)
        wanted &= np.isin(entries["name"], np.fromiter(at, np.uint32, len(at)))
        for entry in entries[wanted].tolist():
            found.setdefault(at[entry[0]], {}).setdefault(entry[4], table + origin)
    return found


def _companions(elf: Elf) -> Iterator[tuple[str, Elf]]:
    """Yield the file's symbols-only copies: MiniDebugInfo and the debug file with the same build-id."""
    section = elf.sections.get(".gnu_debugdata")
    if section is not None and section.kind != _SHT_NOBITS:
        decompressor = lzma.LZMADecompressor()
        try:
            data = decompressor.decompress(
                bytes(elf.data[section.offset : section.offset + section.size]), _MINI_DEBUG_LIMIT
            )
            yield ".gnu_debugdata", Elf(data, elf.path)
        except (lzma.LZMAError, NotAnImageError, EOFError):
            pass
    if elf.build_id is not None:
        path = _DEBUG_FILES / elf.build_id[:2] / f"{elf.build_id[2:]}.debug"
        try:
            companion = Elf(open_image(path), str(path))
        except NotAnImageError:
            return
        if companion.build_id == elf.build_id:
            yield str(path), companion


def symbols(elf: Elf) -> Mapping[str, int]:
    """Return the addresses of `named_functions`."""
    return {name: function.address for name, function in named_functions(elf).items()}


def named_functions(elf: Elf) -> Mapping[str, NamedFunction]:
    """Return SQLite's functions that a symbol table names, under SQLite's own names, internal ones included.

    Empty where there is no SQLite in the tables.  Raises AmbiguousResolutionError when they hold two of them.
    """
    found = _defined_in(elf)
    for origin, companion in _companions(elf):
        for name, addresses in _defined_in(companion, f" of {origin}").items():
            found[name] = addresses | found.get(name, {})
    prefixes = {name.removesuffix("sqlite3_step") for name in found if name.endswith("sqlite3_step")}
    complete = {}
    for prefix in sorted(prefixes):
        own = {name.removeprefix(prefix): a for name, a in found.items() if name.startswith(prefix + "sqlite3")}
        if _INTERNAL in own or sum(name.startswith("sqlite3_") for name in own) >= _LEAST_API:
            complete[prefix] = own
    places = {tuple(sorted(own["sqlite3_step"])): prefix for prefix, own in complete.items()}
    if len(places) > 1 or any(len(place) > 1 for place in places):
        sides = ", ".join(
            f"{prefix}sqlite3_step at {address:#x}"
            for prefix, own in complete.items()
            for address in sorted(own["sqlite3_step"])
        )
        raise AmbiguousResolutionError(f"{elf.path} holds more than one SQLite: {sides}")
    # Static functions of other files may share an internal name; such a name says nothing.
    return {
        name: NamedFunction(address, prefix + name, table)
        for prefix, own in complete.items()
        for name, addresses in own.items()
        if len(addresses) == 1
        for address, table in addresses.items()
    }
