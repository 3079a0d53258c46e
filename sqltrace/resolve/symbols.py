"""Rung 1: symbol tables.

.dynsym is there in every shared library that exports SQLite; .symtab where nobody ran strip; Fedora keeps a
compressed .symtab in .gnu_debugdata (GDB manual, "MiniDebugInfo"); distributions keep separate debug files
under /usr/lib/debug/.build-id (GDB manual, "Debugging Information in Separate Files").
Some programs rename SQLite: Chromium exports chrome_sqlite3_step, Expo exsqlite3_step.

Mach-O puts an underscore before every name, which is a prefix like any other.

Only definitions count: a program that merely calls sqlite3_step has an undefined symbol of that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sqltrace.errors import AmbiguousResolutionError
from sqltrace.resolve.image import Image

_NAME: Final = re.compile(rb"sqlite3[A-Za-z0-9_]{1,60}(?=[\0@])")
_PREFIX: Final = re.compile(rb"[A-Za-z0-9_.]{0,40}")
_LONGEST_PREFIX: Final = 40
_MOST_NAMES: Final = 1 << 18
"""SQLite has 3000 functions; a table with many times as many is made to exhaust us."""
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


def _defined_in(image: Image, origin: str = "") -> dict[str, dict[int, str]]:
    """Return each defined function with `sqlite3` in its name: the addresses that go by it, and the table."""
    found: dict[str, dict[int, str]] = {}
    for table in image.symbol_tables():
        # A linker may let one name be the tail of another: chrome_sqlite3_step, sqlite3_step.
        at: dict[int, str] = {}
        for match in _NAME.finditer(table.names):
            start = table.names.rfind(b"\0", max(0, match.start() - _LONGEST_PREFIX - 1), match.start()) + 1
            prefix = table.names[start : match.start()] if start else b"@"
            if _PREFIX.fullmatch(prefix):
                at[start - 1] = (prefix + match.group()).decode()
                at[match.start() - 1] = match.group().decode()
            if len(at) > _MOST_NAMES:
                break
        if not at:
            continue
        wanted = np.isin(table.name_offsets, np.fromiter(at, np.int64, len(at)))
        for name, address in zip(table.name_offsets[wanted].tolist(), table.addresses[wanted].tolist(), strict=True):
            found.setdefault(at[name], {}).setdefault(address, table.title + origin)
    return found


def symbols(image: Image) -> Mapping[str, int]:
    """Return the addresses of `named_functions`."""
    return {name: function.address for name, function in named_functions(image).items()}


def named_functions(image: Image) -> Mapping[str, NamedFunction]:
    """Return SQLite's functions that a symbol table names, under SQLite's own names, internal ones included.

    Empty where there is no SQLite in the tables.  Raises AmbiguousResolutionError when they hold two of them.
    """
    found = _defined_in(image)
    for origin, companion in image.companions():
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
        raise AmbiguousResolutionError(f"{image.path} holds more than one SQLite: {sides}")
    # Static functions of other files may share an internal name; such a name says nothing.
    return {
        name: NamedFunction(address, prefix + name, table)
        for prefix, own in complete.items()
        for name, addresses in own.items()
        if len(addresses) == 1
        for address, table in addresses.items()
    }
