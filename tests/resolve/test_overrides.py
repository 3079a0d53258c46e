"""--offset and --layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sqltrace.errors import ResolutionError, UsageError
from sqltrace.resolve import Overrides, parse_overrides, resolve
from tests.support.sqlite_builds import build_twin


def test_addresses_are_hexadecimal_or_decimal() -> None:
    parsed = parse_overrides(["sqlite3_step=0x1A2b", "sqlite3_reset=77"])
    assert parsed == Overrides({"sqlite3_step": 0x1A2B, "sqlite3_reset": 77}, {})


def test_what_inspect_prints_for_one_file_is_the_layout_of_another(tmp_path: Path) -> None:
    found = resolve(build_twin().stripped)
    (tmp_path / "layout").write_text(json.dumps(found.to_json()))
    parsed = parse_overrides([], tmp_path / "layout")
    assert {n: f.offset for n, f in parsed.layout.items()} == {n: f.offset for n, f in found.layout.items()}
    assert {f.evidence for f in resolve(build_twin().stripped, overrides=parsed).layout.values()} == {("override",)}


def test_functions_beyond_those_that_are_searched_for_can_be_given() -> None:
    step = resolve(build_twin().stripped).functions["sqlite3_step"].address
    found = resolve(build_twin().stripped, overrides=Overrides({"sqlite3BtreeInsert": step}))
    assert found.functions["sqlite3BtreeInsert"].address == step


def test_a_plain_list_of_offsets_will_do(tmp_path: Path) -> None:
    (tmp_path / "layout").write_text('{"Vdbe.zSql": 248, "sizeof(Mem)": 56}')
    assert {n: f.offset for n, f in parse_overrides([], tmp_path / "layout").layout.items()} == {
        "Vdbe.zSql": 248,
        "sizeof(Mem)": 56,
    }


@pytest.mark.parametrize("text", ["", "sqlite3_step", "sqlite3_step=", "sqlite3_step=-1", "step=5", "sqlite3_step=0xg"])
def test_a_malformed_offset_is_explained(text: str) -> None:
    with pytest.raises(UsageError, match="--offset wants"):
        parse_overrides([text])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "[" * 100000,
        '{"zSql": 1}',
        '{"Vdbe.zSql": -1}',
        '{"Vdbe.zSql": 65535}',
        '{"Vdbe.zSql": "1"}',
        '{"Vdbe.zSql": true}',
        '{"Vdbe.zSql": {"offset": 8, "size": 3}}',
        '{"Vdbe.zSql": {"offset": 8, "size": []}}',
        '{"Vdbe.zSql": {"offset": 12, "size": 8}}',
    ],
)
def test_a_malformed_layout_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "layout").write_text(content)
    with pytest.raises(UsageError):
        parse_overrides([], tmp_path / "layout")


def test_a_missing_layout_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        parse_overrides([], tmp_path / "missing")


def without_unwind_data(tmp_path: Path) -> Path:
    """Return a stripped program whose table of functions cannot be found: only its code tells."""
    content = bytearray(build_twin().stripped.read_bytes())
    headers, size, count = int.from_bytes(content[32:40], "little"), 56, int.from_bytes(content[56:58], "little")
    for at in range(headers, headers + size * count, size):
        if content[at : at + 4] == (0x6474E550).to_bytes(4, "little"):
            content[at : at + 4] = bytes(4)
    (tmp_path / "program").write_bytes(content)
    return tmp_path / "program"


@pytest.mark.parametrize("unwind", [True, False])
@pytest.mark.parametrize("distance", [1, 2, 4, 7, 64])
def test_no_function_starts_in_the_middle_of_another(tmp_path: Path, distance: int, unwind: bool) -> None:
    program = build_twin().stripped if unwind else without_unwind_data(tmp_path)
    step = resolve(build_twin().stripped).functions["sqlite3_step"].address
    overrides = Overrides({"sqlite3_step": step + distance})
    with pytest.raises(ResolutionError, match=r"sqlite3_step at 0x\w+ .*; correct --offset"):
        resolve(program, overrides=overrides)


def test_a_right_address_is_accepted_without_unwind_data(tmp_path: Path) -> None:
    program = without_unwind_data(tmp_path)
    addresses = {name: f.address for name, f in resolve(build_twin().stripped).functions.items()}
    found = resolve(program, overrides=Overrides(addresses))
    assert {name: f.address for name, f in found.functions.items()} == addresses


def test_no_function_lies_in_data() -> None:
    with pytest.raises(ResolutionError, match="would not lie in executable code; correct --offset"):
        resolve(build_twin().stripped, overrides=Overrides({"sqlite3_step": 64}))
