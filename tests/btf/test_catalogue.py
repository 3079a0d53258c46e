"""What the catalogue answers, and when it rather does not."""

from __future__ import annotations

import pytest

from sqltrace.btf import store
from sqltrace.btf.catalogue import Claim, claims, covering, layout, layout_for, version_of
from sqltrace.btf.options import Variant, movers, variants, wide_variables
from sqltrace.btf.relayout import relaid

LISTED = frozenset({"THREADSAFE=1", "COMPILER=gcc-12.2.0"})


def test_85_releases_are_covered() -> None:
    covered = list(store.entries())
    assert len(covered) == 86
    assert covered[0] == "3.7.7.1"
    assert covered[-1] == "3.54.1"
    assert {n for e in store.entries().values() for n in e.layouts.values()} == set(store.files())


def test_the_whole_is_below_100_kb() -> None:
    assert store.ARCHIVE.stat().st_size + store.INDEX.stat().st_size < 100_000


def test_packing_gives_the_same_files_again() -> None:
    assert store.read_archive(store.write_archive(store.files())) == store.files()
    assert store.write_archive(store.files()) == store.write_archive(store.files())
    assert store.write_index(store.entries()) == store.INDEX.read_bytes()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.50.4", "3.50.4"),
        ("3.50.1", "3.50.2"),
        ("3.35.5", "3.35.2"),
        ("3.42.1", "3.42.0"),
        ("3.23.1", "3.24.0"),
        ("3.17.0", "3.18.0"),
        ("3.54.9", "3.54.1"),
        ("3.15.1", "3.15.2"),
        ("3.55.0", None),
        ("3.10.0", None),
        ("3.8.3.1", None),
        ("3.6.0", None),
    ],
)
def test_an_uncovered_release_is_like_its_minor_version_or_the_next_later_one(
    version: str, expected: str | None
) -> None:
    assert covering(version) == expected
    found = layout_for(version)
    assert (found.covered_by if found else None) == expected


@pytest.mark.parametrize(
    "version", ["", "3", "x", "3.5x", "3.-1", "3.50.4.1.1", "3.999999", "\N{ARABIC-INDIC DIGIT THREE}.5"]
)
def test_what_is_no_release_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="not a release"):
        covering(version)


def test_apsw_wheel_has_wide_masks() -> None:
    assert [c.offset for c in claims("3.53.4", LISTED | {"MAX_ATTACHED=125"}, {}, ["Vdbe.eVdbeState"])] == []
    told = {"Vdbe.zSql": 272}
    found = claims("3.53.4", LISTED | {"MAX_ATTACHED=125"}, told, ["Vdbe.zSql", "Vdbe.eVdbeState", "Vdbe.aCounter"])
    assert found == [Claim("Vdbe.zSql", 272, 8), Claim("Vdbe.eVdbeState", 199, 1), Claim("Vdbe.aCounter", 236, 4)]


def test_chromium_has_no_options_to_read_and_its_accessors_tell() -> None:
    names = ["Vdbe.zSql", "Vdbe.aCounter", "Vdbe.eVdbeState", "Vdbe.nVar", "sqlite3.autoCommit", "Mem.flags"]
    told = {"Vdbe.zSql": 240, "Vdbe.aCounter": 204, "sizeof(Mem)": 56}
    assert claims("3.50.4", None, told, names) == [
        Claim("Vdbe.zSql", 240, 8),
        Claim("Vdbe.aCounter", 204, 4),
        Claim("Vdbe.eVdbeState", 191, 1),
        Claim("Vdbe.nVar", 32, None),
        Claim("sqlite3.autoCommit", 101, 1),
        Claim("Mem.flags", 20, 2),
    ]


def test_what_differs_between_the_variants_left_is_not_claimed() -> None:
    assert claims("3.50.4", None, {}, ["Vdbe.zSql", "Vdbe.db"]) == [Claim("Vdbe.db", 0, 8)]


def test_an_unmodified_source_that_contradicts_the_code_is_said_so() -> None:
    assert claims("3.45.1", LISTED, {"Vdbe.zSql": 264}, ["Vdbe.zSql"]) == [Claim("Vdbe.zSql", 248, 8)]


def test_a_modified_source_that_contradicts_the_code_is_not_believed() -> None:
    assert claims("3.45.1", LISTED, {"Vdbe.zSql": 264}, ["Vdbe.db"], modified=True) == []


def test_members_that_an_option_moves_are_not_claimed() -> None:
    names = ["Pager.pWal", "Pager.zFilename", "sizeof(Pager)"]
    assert [c.name for c in claims("3.50.4", LISTED, {}, names)] == names
    assert [c.name for c in claims("3.50.4", LISTED | {"OMIT_WAL"}, {}, names)] == ["Pager.zFilename"]


def test_an_option_that_a_release_does_not_list_may_be_set() -> None:
    assert "OMIT_TWOSIZE_LOOKASIDE" in movers("3.50.4", LISTED)
    assert "OMIT_TWOSIZE_LOOKASIDE" not in movers("3.30.1", LISTED)
    assert "ENABLE_PREUPDATE_HOOK" in movers("3.19.3", LISTED)
    assert "ENABLE_PREUPDATE_HOOK" not in movers("3.50.4", LISTED)
    assert {v.mask_bytes for v in variants("3.19.3", LISTED)} == {0, *range(5, 17)}
    assert {v.mask_bytes for v in variants("3.50.4", LISTED)} == {0}


def test_sqlcipher_does_not_list_what_it_adds_to_the_pager() -> None:
    assert [c.name for c in claims("3.50.4", LISTED, {}, ["Pager.zFilename", "Pager.pPCache"], modified=True)] == [
        "Pager.zFilename"
    ]


def test_without_a_pager_there_is_no_layout() -> None:
    assert claims("3.50.4", LISTED | {"OMIT_DISKIO"}, {}, ["Vdbe.db"]) == []


def test_debian_sets_max_variable_number_to_250000() -> None:
    assert claims("3.40.1", LISTED | {"MAX_VARIABLE_NUMBER=250000"}, {}, ["Vdbe.nVar"]) == [Claim("Vdbe.nVar", 32, 4)]
    assert claims("3.40.1", LISTED, {}, ["Vdbe.nVar"]) == [Claim("Vdbe.nVar", 32, 2)]
    assert [wide_variables(v, 32767) for v in ("3.31.1", "3.32.0")] == [False, True]


def test_constants_are_those_of_the_release() -> None:
    assert claims("3.38.5", LISTED, {}, ["MEM_Zero", "sizeof(Mem)", "VDBE_RUN_STATE"]) == [
        Claim("MEM_Zero", 0x4000, 0),
        Claim("sizeof(Mem)", 56, 0),
    ]
    assert claims("3.39.0", LISTED, {}, ["MEM_Zero", "VDBE_RUN_STATE"]) == [
        Claim("MEM_Zero", 0x400, 0),
        Claim("VDBE_RUN_STATE", 2, 0),
    ]


def test_a_renamed_member_is_found_under_its_first_name() -> None:
    assert [c.offset for v in ("3.34.0", "3.38.5") for c in claims(v, LISTED, {}, ["Vdbe.magic"])] == [36, 36]
    assert claims("3.39.0", LISTED, {}, ["Vdbe.magic"]) == []


def test_a_source_id_names_its_release_whatever_a_vendor_did_to_its_end() -> None:
    assert (
        version_of("2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45ealt1") == "3.50.4"
    )
    assert version_of("2015-07-29 20:00:57 cf538e2783e468bbc25e7cb2a9ee64d3e0e80b2f") == "3.8.11.1"
    assert version_of("2031-01-01 00:00:00 x") is None
    assert version_of("") is None


@pytest.mark.parametrize("version", store.entries())
def test_omit_trace_is_the_default_without_start_time(version: str) -> None:
    default, compiled = layout_for(version), layout_for(version, omit_trace=True)
    assert default is not None
    assert compiled is not None
    computed = relaid(default.btf, {}, "Vdbe.startTime")
    for name, number in compiled.btf.structs():
        ours = computed.types[computed.find(name) or 0]
        theirs = compiled.btf.types[number]
        assert ours.size == theirs.size
        assert [(m.name, m.bits, m.bit_size) for m in ours.members] == [
            (m.name, m.bits, m.bit_size) for m in theirs.members
        ]


def test_a_variant_says_what_it_is() -> None:
    assert str(Variant()) == "default"
    assert str(Variant(debug=True, mask_bytes=16)) == "DEBUG, MAX_ATTACHED: 16-byte masks"
    assert layout("3.55.0", Variant()) is None
