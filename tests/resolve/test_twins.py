"""SQLite built in several ways and stripped: the twin that kept its symbols is the truth."""

from __future__ import annotations

import dataclasses

import pytest

from sqltrace.resolution import Evidence
from sqltrace.resolve.resolver import HOOKED, REQUIRED_FUNCTIONS, resolve
from tests.support.sqlite_builds import build_twin
from tests.support.sqlite_layout import true_layout
from tests.support.symbol_oracle import symbol_addresses

NO_TABLE = "-DSQLITE_OMIT_LOAD_EXTENSION"


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


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_a_stripped_build_resolves_to_what_its_unstripped_twin_says(build: Build) -> None:
    twin = build_twin(build.version, build.flags, link=build.link, shared=build.shared)
    resolution = resolve(twin.stripped)
    symbols = symbol_addresses(twin.unstripped)
    assert {n: f.address for n, f in resolution.functions.items()} == {n: symbols[n] for n in resolution.functions}
    wanted = (*REQUIRED_FUNCTIONS, "sqlite3_prepare", "sqlite3_prepare_v2", "sqlite3_prepare_v3")
    assert set(resolution.functions) >= set(wanted if NO_TABLE in build.flags else HOOKED)
    evidence = {e for f in resolution.functions.values() for e in f.evidence}
    assert evidence == ({Evidence.STRINGS} if NO_TABLE in build.flags else {Evidence.API_TABLE, Evidence.STRINGS})

    truth = true_layout(build.version, tuple(f for f in build.flags if f.startswith("-D")))
    truth.setdefault("Vdbe.magic", truth.get("Vdbe.iVdbeMagic", (-1, 0)))
    assert {n: f.offset for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
    for name, field in resolution.layout.items():
        assert field.size in (0, truth[name][1]) or name == "Vdbe.aCounter", name
    assert set(truth) - set(resolution.layout) <= {"Vdbe.iVdbeMagic", "Vdbe.magic"}
    assert resolution.features_off == ()
    assert resolution.sqlite_version == build.version


def test_symbols_the_table_and_strings_agree_where_nothing_was_stripped() -> None:
    twin = build_twin()
    evidence = resolve(twin.unstripped).functions["sqlite3_step"].evidence
    assert evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)
