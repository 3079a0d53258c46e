"""What an unstripped twin says: where its functions are, and how its structs lie."""

from __future__ import annotations

from tests.support.sqlite_builds import Build
from tests.support.sqlite_layout import dwarf_layout, true_layout
from tests.support.symbol_oracle import macho_symbol_addresses, symbol_addresses


def functions_of(build: Build) -> dict[str, int]:
    """Return each function's address; a clone that optimisation left (`sqlite3_reset.isra.0`) counts as such."""
    file = build.twin().unstripped
    symbols = macho_symbol_addresses(file.read_bytes()) if build.is_macho else symbol_addresses(file)
    whole = {n: a for n, a in symbols.items() if not any(part in n for part in (".cold", ".part"))}
    return {name.partition(".")[0]: address for name, address in whole.items()} | symbols


def layout_of(build: Build) -> dict[str, tuple[int, int]]:
    """Return (offset, size) of each member: from DWARF, and for Mach-O from a program that its compiler compiled."""
    if build.is_macho:
        layout = true_layout(build.version, build.defines, build.compile_command)
    else:
        layout = dwarf_layout(build.twin().unstripped, build.version)
    if "Vdbe.iVdbeMagic" in layout:
        layout = {**layout, "Vdbe.magic": layout["Vdbe.iVdbeMagic"]}
    return layout
