"""Binaries as users have them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sqltrace.events.wire import layout_words
from sqltrace.resolution import Evidence
from sqltrace.resolve.resolver import FUNCTIONS, INTERNAL_FUNCTIONS, resolve
from tests.support.elf_builder import without_section_headers
from tests.support.real_binaries import CIPHERS, from_npm
from tests.support.sqlite_layout import true_layout
from tests.support.symbol_oracle import symbol_addresses

FOSSIL = Path("/usr/bin/fossil")


@pytest.mark.parametrize("name", ["linux-x64", "linuxmusl-x64", "linux-arm64", "linuxmusl-arm64"])
def test_a_prebuilt_addon_resolves_without_its_symbols(name: str, tmp_path: Path) -> None:
    addon = from_npm(CIPHERS, f"prebuilds/{name}.node")
    stripped = tmp_path / "stripped.node"
    stripped.write_bytes(without_section_headers(addon.read_bytes()))
    if name.endswith("x64"):  # strip knows this machine's format only
        subprocess.run(["strip", addon, "-o", stripped], check=True)
    symbols = symbol_addresses(addon)
    resolution = resolve(stripped)
    assert {n: f.address for n, f in resolution.functions.items()} == {n: symbols[n] for n in resolution.functions}
    # Here sqlite3VdbeReset is inlined.
    assert set(FUNCTIONS) - set(resolution.functions) == {"sqlite3VdbeReset"} - set(symbols)
    assert resolution.functions["sqlite3_step"].evidence == (Evidence.API_TABLE, Evidence.STRINGS)
    truth = true_layout("3.53.4")
    assert {n: f.offset for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
    assert set(resolution.layout) == set(truth)
    assert resolution.sqlite_version == "3.53.4"
    assert resolution.features_off == ()


@pytest.mark.skipif(not FOSSIL.exists(), reason="needs Debian's fossil")
def test_debian_fossil_resolves_by_strings_alone() -> None:
    resolution = resolve(FOSSIL)
    assert {"sqlite3_step", "sqlite3_reset", "sqlite3_finalize", "sqlite3_prepare_v2"} <= set(resolution.functions)
    assert {*INTERNAL_FUNCTIONS, "sqlite3_close", "sqlite3_close_v2"} <= set(resolution.functions)
    assert {f.evidence for f in resolution.functions.values()} == {(Evidence.STRINGS,)}
    truth = true_layout("3.41.0")
    assert {n: (f.offset) for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
    both = (Evidence.ACCESSOR, Evidence.CATALOGUE)
    for name in ("Vdbe.zSql", "Vdbe.nVar", "Vdbe.aVar", "Vdbe.aCounter", "Vdbe.eVdbeState", "sizeof(Mem)"):
        assert resolution.layout[name].evidence == both, name
    assert resolution.sqlite_version == "3.41.0"
    assert resolution.features_off == ()


@pytest.mark.skipif(not FOSSIL.exists(), reason="needs Debian's fossil")
def test_what_is_found_is_what_the_hooks_read() -> None:
    assert len(layout_words(resolve(FOSSIL))) == 64
