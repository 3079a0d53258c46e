"""SQLite built in several ways and stripped: the twin that kept its symbols is the truth."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from sqltrace.resolution import Evidence
from sqltrace.resolve.resolver import FUNCTIONS, INTERNAL_FUNCTIONS, REQUIRED_FUNCTIONS, resolve
from tests.support.sqlite_builds import build_twin
from tests.support.sqlite_layout import ARRAYS, true_layout
from tests.support.symbol_oracle import symbol_addresses

NO_TABLE = "-DSQLITE_OMIT_LOAD_EXTENSION"
BY_STRINGS = ("sqlite3_close", "sqlite3_close_v2", *INTERNAL_FUNCTIONS)


@dataclasses.dataclass(frozen=True)
class Build:
    version: str
    flags: tuple[str, ...]
    link: tuple[str, ...] = ()
    shared: bool = False

    def __str__(self) -> str:
        return " ".join((self.version, *self.flags, *self.link)).replace("-DSQLITE_", "")


BUILDS = [
    Build("3.50.4", ("-O2",)),
    Build("3.50.4", ("-O2",), shared=True),
    Build("3.50.4", ("-O2", "-fno-pie", NO_TABLE, "-DSQLITE_OMIT_TRACE"), ("-no-pie",)),
    Build("3.50.4", ("-O1", NO_TABLE, "-DSQLITE_MAX_ATTACHED=125")),
    Build("3.37.2", ("-O2", NO_TABLE)),
    Build("3.54.1", ("-O2", NO_TABLE, "-DSQLITE_THREADSAFE=0")),
]


EXTENSIONS = tuple(f"-DSQLITE_ENABLE_{name}" for name in ("FTS5", "FTS3", "RTREE", "SESSION", "PREUPDATE_HOOK"))
MORE_BUILDS = [
    Build("3.50.4", ("-O0",)),
    Build("3.50.4", ("-O2", "-flto"), ("-flto", "-O2")),
    Build("3.53.4", ("-O2", "-flto", NO_TABLE, "-fcf-protection=full"), ("-flto", "-O2")),
    Build("3.50.4", ("-Os", NO_TABLE)),
    Build("3.31.1", ("-Os", NO_TABLE, *EXTENSIONS)),
    Build("3.45.3", ("-O3", NO_TABLE, *EXTENSIONS)),
    Build("3.34.0", ("-O1", NO_TABLE, *EXTENSIONS)),
    Build("3.29.0", ("-O2", NO_TABLE)),
    Build("3.26.0", ("-O2", NO_TABLE)),
    Build("3.24.0", ("-O3", NO_TABLE)),
    Build("3.47.2", ("-O2", "-fno-asynchronous-unwind-tables", NO_TABLE), ("-Wl,--no-eh-frame-hdr",)),
]
"""Each takes half a minute to build: only with SQLTRACE_ALL_BUILDS=1."""


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_stripped_build_resolves_to_what_its_unstripped_twin_says(build: Build) -> None:
    twin = build_twin(build.version, build.flags, link=build.link, shared=build.shared)
    resolution = resolve(twin.stripped)
    symbols = symbol_addresses(twin.unstripped)
    assert {n: f.address for n, f in resolution.functions.items()} == {n: symbols[n] for n in resolution.functions}
    wanted = (*REQUIRED_FUNCTIONS, "sqlite3_prepare", "sqlite3_prepare_v2", "sqlite3_prepare_v3", *BY_STRINGS)
    assert set(resolution.functions) >= set(wanted if NO_TABLE in build.flags else FUNCTIONS)
    evidence = {e for f in resolution.functions.values() for e in f.evidence}
    assert {resolution.functions[n].evidence for n in INTERNAL_FUNCTIONS} == {(Evidence.STRINGS,)}
    assert evidence == ({Evidence.STRINGS} if NO_TABLE in build.flags else {Evidence.API_TABLE, Evidence.STRINGS})

    truth = true_layout(build.version, tuple(f for f in build.flags if f.startswith("-D")))
    truth.setdefault("Vdbe.magic", truth.get("Vdbe.iVdbeMagic", (-1, 0)))
    assert {n: f.offset for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
    for name, field in resolution.layout.items():
        assert field.size in (0, truth[name][1]) or name in ARRAYS, name
    assert set(truth) - set(resolution.layout) <= {"Vdbe.iVdbeMagic", "Vdbe.magic"}
    assert resolution.features_off == ()
    assert resolution.sqlite_version == build.version


def test_symbols_the_table_and_strings_agree_where_nothing_was_stripped() -> None:
    twin = build_twin()
    evidence = resolve(twin.unstripped).functions["sqlite3_step"].evidence
    assert evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)


@pytest.mark.skipif("SQLTRACE_ALL_BUILDS" not in os.environ, reason="takes minutes; set SQLTRACE_ALL_BUILDS=1")
@pytest.mark.parametrize("build", MORE_BUILDS, ids=str)
def test_unusual_builds_resolve_to_nothing_wrong(build: Build) -> None:
    twin = build_twin(build.version, build.flags, link=build.link)
    resolution = resolve(twin.stripped)
    symbols = symbol_addresses(twin.unstripped)
    # Link-time optimisation leaves clones: sqlite3_reset.isra.0
    truth = {name.partition(".")[0]: address for name, address in symbols.items() if ".cold" not in name} | symbols
    assert {n: f.address for n, f in resolution.functions.items()} == {n: truth[n] for n in resolution.functions}
    layout = true_layout(build.version, tuple(f for f in build.flags if f.startswith("-D")))
    layout.setdefault("Vdbe.magic", layout.get("Vdbe.iVdbeMagic", (-1, 0)))
    assert {n: f.offset for n, f in resolution.layout.items()} == {n: layout[n][0] for n in resolution.layout}


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
