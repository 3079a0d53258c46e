"""The catalogue as the resolver asks it; tests/btf compares it with the compiler."""

from __future__ import annotations

from sqltrace.resolve.catalogue import catalogue_claims
from sqltrace.resolve.claims import FieldClaim


def test_a_release_beyond_the_newest_is_not_guessed() -> None:
    assert catalogue_claims(3099000, None, {}, modified=False) == []


def test_a_release_that_is_not_covered_is_answered_from_one_that_is() -> None:
    (claim,) = [c for c in catalogue_claims(3044001, None, {}, modified=False) if c.name == "Pager.zFilename"]
    assert claim.offset == 216
    assert "which stands for 3.44.1" in claim.detail


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
