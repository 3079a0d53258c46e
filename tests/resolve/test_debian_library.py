"""Debian's libsqlite3.so.0 exports everything, so that each rung can be held against its symbols."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sqltrace.resolution import Evidence
from sqltrace.resolve.accessors import accessor_claims
from sqltrace.resolve.api_table import find_api_table
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import open_image
from sqltrace.resolve.options import compile_options
from sqltrace.resolve.resolver import FUNCTIONS, resolve
from sqltrace.resolve.strings import string_evidence
from sqltrace.resolve.symbolic import Executor
from sqltrace.resolve.symbols import symbols
from sqltrace.resolve.x86_64 import X86_64
from tests.support.elf_builder import without_section_headers
from tests.support.sqlite_layout import true_layout
from tests.support.symbol_oracle import symbol_addresses

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0")
# Of Debian's options only this one moves a member or changes its width.
OPTIONS = ("-DSQLITE_MAX_VARIABLE_NUMBER=250000",)

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="needs Debian's libsqlite3-0")


@pytest.fixture(scope="module")
def elf() -> Elf:
    return Elf(open_image(LIBRARY), str(LIBRARY))


@pytest.fixture(scope="module")
def executor(elf: Elf) -> Executor:
    return Executor(elf, X86_64(elf))


def test_the_symbol_rung_agrees_with_pyelftools(elf: Elf) -> None:
    found = symbols(elf)
    truth = symbol_addresses(LIBRARY)
    assert {name: truth[name] for name in found} == dict(found)
    assert len(found) > 250


def test_every_slot_of_the_api_table_agrees_with_the_symbols(elf: Elf, executor: Executor) -> None:
    table = find_api_table(elf, executor)
    assert table is not None
    truth = symbol_addresses(LIBRARY)
    assert {name: truth[name] for name in table.functions} == table.functions
    assert len(table.functions) > 240
    assert table.release == 3040001


def test_the_strings_rung_agrees_with_the_symbols_although_calls_go_through_the_plt(
    elf: Elf, executor: Executor
) -> None:
    found = string_evidence(elf, executor).functions
    truth = symbol_addresses(LIBRARY)
    assert {name: truth[name] for name in found} == dict(found)
    assert {"sqlite3_step", "sqlite3_reset", "sqlite3_finalize", "sqlite3_prepare_v2"} <= set(found)


def test_accessors_and_internal_functions_tell_what_the_source_says(elf: Elf, executor: Executor) -> None:
    truth = true_layout("3.40.1", OPTIONS)
    claims = [
        *accessor_claims(executor, symbols(elf), 3040001),
        *string_evidence(elf, executor).fields,
    ]
    assert {c.name for c in claims} >= {"Vdbe.zSql", "Vdbe.aVar", "Vdbe.aCounter", "Pager.zFilename", "Mem.n"}
    for claim in claims:
        assert claim.offset == truth[claim.name][0], claim
        assert claim.size in (None, truth[claim.name][1]) or claim.name == "Vdbe.aCounter", claim


def test_the_compile_options_are_those_that_debian_sets(elf: Elf) -> None:
    options = compile_options(elf)
    assert options is not None
    assert {"MAX_VARIABLE_NUMBER=250000", "THREADSAFE=1", "ENABLE_COLUMN_METADATA"} <= options


def test_the_whole_ladder_finds_everything_in_less_than_a_second() -> None:
    resolve(LIBRARY)  # warms the page cache
    start = time.process_time()
    resolution = resolve(LIBRARY)
    assert time.process_time() - start < 1
    truth = symbol_addresses(LIBRARY)
    assert {n: f.address for n, f in resolution.functions.items()} == {n: truth[n] for n in FUNCTIONS}
    assert resolution.functions["sqlite3BtreeInsert"].evidence == (Evidence.SYMBOL, Evidence.STRINGS)
    assert resolution.functions["sqlite3_step"].evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)
    assert resolution.layout["Vdbe.nVar"].size == 4
    assert resolution.sqlite_version == "3.40.1"
    assert resolution.features_off == ()


def test_section_headers_are_a_bonus_only(tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(without_section_headers(LIBRARY.read_bytes()))
    without, whole = resolve(tmp_path / "library.so"), resolve(LIBRARY)
    assert (without.functions, without.layout) == (whole.functions, whole.layout)
