"""The catalogue against the compiler, on both sides of every change of layout."""

from __future__ import annotations

import pytest

from sqltrace.resolve.catalogue import Variant, catalogue_claims, layout
from sqltrace.resolve.claims import FieldClaim
from tests.support.sqlite_layout import true_layout

VERSIONS = [
    "3.21.0",
    "3.26.0",
    "3.29.0",
    "3.34.0",
    "3.35.2",
    "3.37.0",
    "3.38.5",
    "3.39.0",
    "3.42.0",
    "3.43.0",
    "3.54.1",
]
CASES = [
    *((version, (), Variant()) for version in VERSIONS),
    *((version, ("-DSQLITE_OMIT_TRACE",), Variant(omit_trace=True)) for version in ("3.29.0", "3.54.1")),
    *((version, ("-DSQLITE_MAX_ATTACHED=125",), Variant(wide_masks=True)) for version in ("3.38.5", "3.50.4")),
]


def release(version: str) -> int:
    major, minor, patch = map(int, version.split("."))
    return major * 1000000 + minor * 1000 + patch


@pytest.mark.parametrize(("version", "flags", "variant"), CASES, ids=str)
def test_the_catalogue_says_what_the_compiler_says(version: str, flags: tuple[str, ...], variant: Variant) -> None:
    truth = true_layout(version, flags)
    truth.setdefault("Vdbe.magic", truth.get("Vdbe.iVdbeMagic", (-1, 0)))
    claims = list(layout(release(version), variant))
    assert {c.name: c.offset for c in claims} == {c.name: truth[c.name][0] for c in claims}
    for claim in claims:
        assert claim.size in (None, truth[claim.name][1]) or claim.name == "Vdbe.aCounter", claim
    left_out = {"Vdbe.aCounter", "Vdbe.zSql"} if variant.wide_masks else set()
    assert set(truth) - {c.name for c in claims} <= {"Vdbe.iVdbeMagic", "Vdbe.magic"} | left_out


def test_a_release_that_nobody_looked_at_is_not_guessed() -> None:
    assert list(layout(3020001, Variant())) == []
    assert list(layout(3055000, Variant())) == []


def test_accessors_decide_between_variants_where_the_options_are_not_listed() -> None:
    told = {"Vdbe.zSql": FieldClaim("Vdbe.zSql", 240, 8), "Vdbe.aCounter": FieldClaim("Vdbe.aCounter", 204, 4)}
    claims = {c.name: c.offset for c in catalogue_claims(3050004, None, told, modified=False)}
    assert claims["Vdbe.eVdbeState"] == 191
    assert claims["Vdbe.nChange"] == 56


def test_what_differs_between_the_variants_left_is_not_claimed() -> None:
    names = {c.name for c in catalogue_claims(3050004, None, {}, modified=False)}
    assert "Vdbe.nChange" in names
    assert not names & {"Vdbe.zSql", "Vdbe.aCounter", "Vdbe.eVdbeState"}


def test_modified_source_that_contradicts_its_release_is_not_believed() -> None:
    told = {"Vdbe.zSql": FieldClaim("Vdbe.zSql", 264, 8), "Vdbe.aCounter": FieldClaim("Vdbe.aCounter", 212, 4)}
    options = frozenset({"MAX_ATTACHED=10", "THREADSAFE=1"})
    assert catalogue_claims(3045001, options, told, modified=True) == []
    unmodified = catalogue_claims(3045001, options, told, modified=False)
    assert FieldClaim("Vdbe.zSql", 248, 8) in unmodified


def test_a_debug_build_is_left_to_the_accessors() -> None:
    assert catalogue_claims(3050004, frozenset({"DEBUG", "THREADSAFE=1"}), {}, modified=False) == []
