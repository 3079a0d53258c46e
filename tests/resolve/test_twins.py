"""SQLite built in many ways and stripped: the twin that kept its symbols and DWARF is the truth.

The table is in twin_table.py.  `make test` resolves the quick ones, `make test-all` all of them.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

from sqltrace.resolution import STAND_INS, Evidence, Resolution
from sqltrace.resolve.api_slots import SLOTS, slot_count
from sqltrace.resolve.resolver import (
    FUNCTIONS,
    INTERNAL_FUNCTIONS,
    LOCK_AND_PREPARE,
    PREPARE_FAMILY,
    REQUIRED_FUNCTIONS,
    resolve,
)
from tests.resolve.twin_table import CASES, Case
from tests.resolve.twin_truth import functions_of, layout_of
from tests.support.sqlite_builds import Build, amalgamation, build_twin
from tests.support.sqlite_layout import ARRAYS

ALL = "SQLTRACE_ALL_BUILDS" in os.environ
CHOSEN = [case for case in CASES if case.quick or ALL]
BY_STRINGS = {
    *(*REQUIRED_FUNCTIONS, "sqlite3_prepare", "sqlite3_prepare_v2", "sqlite3_prepare_v3"),
    *("sqlite3_close", "sqlite3_close_v2", *INTERNAL_FUNCTIONS),
}
"""What messages and calls lead to, so that it is found without the API table."""
RENAMED = {"interruptx": "interrupt", "xsnprintf": "snprintf", "xvsnprintf": "vsnprintf", "xthreadsafe": "threadsafe"}


@functools.cache
def resolution_of(build: Build) -> Resolution:
    lacking = build.lacks()
    if lacking is not None:
        assert not ALL, f"make test-all installs {lacking}"
        pytest.skip(f"needs {lacking}")
    return resolve(build.twin().stripped)


def to_be_found(build: Build) -> set[str]:
    """Return what is in this build and can be found."""
    present = functions_of(build).keys()
    if build.has_table:
        return set(FUNCTIONS) & present
    return (BY_STRINGS & present) | (set() if "sqlite3_prepare_v2" in present else {LOCK_AND_PREPARE})


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_a_stripped_build_resolves_to_what_its_unstripped_twin_says(case: Case) -> None:
    build = case.build
    resolution = resolution_of(build)
    assert (resolution.arch, resolution.format) == (build.arch, "macho" if build.is_macho else "elf")
    assert resolution.sqlite_version == build.version

    symbols = functions_of(build)
    found = {name: function.address for name, function in resolution.functions.items()}
    assert found == {name: symbols[name] for name in found}
    assert to_be_found(build) - found.keys() == set(case.missing)
    for function in resolution.functions.values():
        assert set(function.evidence) <= {Evidence.STRINGS, *([Evidence.API_TABLE] if build.has_table else [])}

    layout = layout_of(build)
    offsets = {name: field.offset for name, field in resolution.layout.items()}
    assert offsets == {name: layout[name][0] for name in offsets}
    for name, field in resolution.layout.items():
        assert field.size in (0, layout[name][1]) or name in ARRAYS, name
    assert layout.keys() - offsets.keys() <= {"Vdbe.iVdbeMagic", "Vdbe.magic"}

    assert {off.feature for off in resolution.features_off} == ({"prepare"} if not preparing(found) else set())


def preparing(found: Collection[str]) -> set[str]:
    return {*PREPARE_FAMILY, LOCK_AND_PREPARE} & set(found)


def test_the_table_of_builds_is_as_wide_as_it_says() -> None:
    builds = [case.build for case in CASES]
    assert len(set(builds)) == len(builds) >= 60
    assert len([case for case in CASES if case.quick]) >= 12
    words = [
        {b.version, b.compiler, b.arch, b.kind, b.has_table, *b.flags.split(), *b.target.split("-")} for b in builds
    ]
    for value in (
        *("gcc", "clang", "zig", "x86_64", "arm64", "musl", "macos", "pie", "no-pie", "static", "so", True, False),
        *("-O0", "-O2", "-O3", "-Os", "-flto"),
    ):
        assert sum(value in some for some in words) >= 5, value
    versions = {tuple(map(int, b.version.split("."))) for b in builds}
    assert min(versions) < (3, 21)
    assert len(versions) >= 20


@pytest.mark.skipif(not ALL, reason="needs all builds, which take an hour; set SQLTRACE_ALL_BUILDS=1")
def test_over_all_builds_everything_needed_is_found_and_nearly_all_row_hooks() -> None:
    rows, of = 0, 0
    for case in CASES:
        found = resolution_of(case.build).functions
        for name in REQUIRED_FUNCTIONS:
            assert {name, STAND_INS.get(name)} & found.keys(), case
        if case.build.arch == "x86_64":
            of += 1
            rows += {"sqlite3BtreeInsert", "sqlite3BtreeDelete"} <= found.keys()
    assert rows >= 0.95 * of


@pytest.mark.parametrize("version", sorted({case.build.version for case in CHOSEN}))
def test_the_api_table_has_the_members_that_the_release_declares(version: str) -> None:
    source = (amalgamation(version) / "sqlite3.c").read_text(encoding="latin-1")
    struct = re.search(r"^struct sqlite3_api_routines \{(.*?)^\};", source, re.MULTILINE | re.DOTALL)
    assert struct is not None
    members = re.sub(r"/\*.*?\*/", "", struct[1], flags=re.DOTALL).split(";")[:-1]
    declared = [re.search(r"\((?:SQLITE_CDECL)? *\* *(\w+) *\) *\(", member)[1] for member in members]  # type: ignore[index]
    major, minor, patch = map(int, version.split("."))
    count = slot_count(1000000 * major + 1000 * minor + patch)
    assert list(SLOTS[:count]) == [RENAMED.get(name, name) for name in declared]


def test_symbols_the_table_and_strings_agree_where_nothing_was_stripped() -> None:
    twin = build_twin()
    evidence = resolve(twin.unstripped).functions["sqlite3_step"].evidence
    assert evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)


def test_a_separate_debug_file_is_a_symbol_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = build_twin()
    build_id = resolve(twin.stripped).build_id
    assert build_id is not None
    (tmp_path / build_id[:2]).mkdir()
    debug = tmp_path / build_id[:2] / f"{build_id[2:]}.debug"
    subprocess.run(["objcopy", "--only-keep-debug", twin.unstripped, debug], check=True)
    monkeypatch.setattr("sqltrace.resolve.elf._DEBUG_FILES", tmp_path)
    evidence = resolve(twin.stripped).functions["sqlite3_step"].evidence
    assert evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)
