"""All evidence must agree; where it does not, both sides are named."""

from __future__ import annotations

import dataclasses

import pytest

from sqltrace.errors import AmbiguousResolutionError, ResolutionError
from sqltrace.resolution import Evidence, FeatureOff, Field, Resolution
from sqltrace.resolve import describe, resolve, resolver
from sqltrace.resolve.api_table import ApiTable
from sqltrace.resolve.claims import Claims, FieldClaim
from sqltrace.resolve.strings import StringEvidence
from tests.support.sqlite_builds import build_twin


def test_agreeing_evidence_adds_up_strongest_first() -> None:
    claims = Claims("file")
    claims.add_field(FieldClaim("Mem.n", 16, None), Evidence.CATALOGUE)
    claims.add_field(FieldClaim("Mem.n", 16, 4), Evidence.ACCESSOR)
    assert dict(claims.fields()) == {"Mem.n": Field(16, 4, (Evidence.ACCESSOR, Evidence.CATALOGUE))}


@pytest.mark.parametrize("other", [FieldClaim("Mem.n", 12, 4), FieldClaim("Mem.n", 16, 8)])
def test_another_offset_or_width_is_a_contradiction(other: FieldClaim) -> None:
    claims = Claims("file")
    claims.add_field(FieldClaim("Mem.n", 16, 4), Evidence.ACCESSOR)
    with pytest.raises(AmbiguousResolutionError, match=r"accessor says 16.*catalogue says"):
        claims.add_field(other, Evidence.CATALOGUE)


def test_a_contradiction_about_an_optional_function_removes_only_that_function() -> None:
    claims = Claims("file", optional=("sqlite3BtreeInsert",))
    claims.add_function("sqlite3_step", 0x1000, Evidence.SYMBOL)
    claims.add_function("sqlite3BtreeInsert", 0x2000, Evidence.SYMBOL)
    claims.add_function("sqlite3BtreeInsert", 0x3000, Evidence.STRINGS)
    assert [name for name, _ in claims.functions()] == ["sqlite3_step"]
    ((name, reason),) = claims.disputes()
    assert (name, reason) == (
        "sqlite3BtreeInsert",
        "the evidence disagrees: symbol says 0x2000, strings says 0x3000",
    )
    with pytest.raises(AmbiguousResolutionError):
        claims.add_function("sqlite3_step", 0x2000, Evidence.STRINGS)


def test_an_optional_function_in_dispute_is_a_feature_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    real = resolver.string_evidence

    def shifted(*arguments: object) -> StringEvidence:
        found = real(*arguments)  # type: ignore[arg-type]
        swapped = {**found.functions, "sqlite3_close": found.functions["sqlite3_step"]}
        return dataclasses.replace(found, functions=swapped)

    monkeypatch.setattr(resolver, "string_evidence", shifted)
    resolution = resolve(build_twin().stripped)
    assert "sqlite3_close" not in resolution.functions
    assert [f.feature for f in resolution.features_off] == ["sqlite3_close"]


def test_functions_that_the_rungs_find_elsewhere_end_the_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = build_twin()
    real = resolver.find_api_table

    def shifted(*arguments: object) -> ApiTable | None:
        table = real(*arguments)  # type: ignore[arg-type]
        assert table is not None
        swapped = {**table.functions, "sqlite3_step": table.functions["sqlite3_reset"]}
        return dataclasses.replace(table, functions=swapped)

    monkeypatch.setattr(resolver, "find_api_table", shifted)
    with pytest.raises(AmbiguousResolutionError, match=r"sqlite3_step disagrees: api-table says 0x.* strings says 0x"):
        resolve(twin.stripped)


def test_what_is_required_and_not_found_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "find_api_table", lambda *_: None)
    monkeypatch.setattr(resolver, "string_evidence", lambda *_: StringEvidence(3, {}))
    with pytest.raises(ResolutionError, match=r"3\.50\.4, but sqlite3_step and sqlite3_reset .*--offset"):
        resolve(build_twin().stripped)


def test_a_description_aligns_its_columns_and_shows_no_control_characters() -> None:
    resolution = resolve(build_twin().stripped)
    odd = dataclasses.replace(
        resolution, path="/tmp/\x1b[31m", features_off=(FeatureOff("changes", "Vdbe.nChange not found"),)
    )
    text = describe(odd)
    assert "\x1b" not in text
    lines = text.splitlines()
    for name, function in resolution.functions.items():
        line = next(x for x in lines if x.startswith(f"{name} "))
        assert line.endswith(f"{function.address:#x}  {', '.join(function.evidence)}")
    assert any(x.split() == ["Vdbe.zSql", "248", "8", "accessor,", "catalogue"] for x in lines)
    assert lines[-1].split(maxsplit=1) == ["changes", "Vdbe.nChange not found"]


def test_a_resolution_survives_json() -> None:
    resolution = resolve(build_twin().stripped)
    assert Resolution.from_json(resolution.to_json()) == resolution


def test_counters_of_releases_that_count_from_one_are_left_alone() -> None:
    claims = [FieldClaim("Vdbe.aCounter", 168, 4), FieldClaim("Vdbe.zSql", 208, 8)]
    assert [c.name for c in resolver._usable(3007017, claims)] == ["Vdbe.zSql"]
    assert list(resolver._usable(3008000, claims)) == claims
