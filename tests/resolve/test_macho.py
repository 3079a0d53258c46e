"""Mach-O files as tests write them, whole and damaged, and as others built them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqltrace.cli import main
from sqltrace.errors import NotAnImageError, SqltraceError
from sqltrace.resolution import Evidence
from sqltrace.resolve import explain_all, resolver
from sqltrace.resolve.formats import read_image, read_images
from sqltrace.resolve.image import Image
from sqltrace.resolve.macho import MachO
from sqltrace.resolve.resolver import FUNCTIONS, INTERNAL_FUNCTIONS, REQUIRED_FUNCTIONS, explain_image, resolve
from tests.support.macho_builder import (
    CONSTANTS,
    DATA,
    TEXT,
    build_macho,
    chained_fixups,
    universal,
    without_symbols,
)
from tests.support.real_binaries import CIPHERS, from_npm
from tests.support.sqlite_layout import true_layout
from tests.support.symbol_oracle import macho_symbol_addresses

BASE = 0x100000000
X86_64, ARM64 = 0x01000007, 0x0100000C
SOURCE_ID = b"2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3\0"
# SET_SEGMENT_AND_OFFSET 1, 0; DO_REBASE_IMM_TIMES 1; DO_REBASE_ADD_ADDR 8; DO_REBASE_ULEB_TIMES 2;
# DO_REBASE_ULEB_TIMES_SKIPPING 2, 8; ADD_ADDR_IMM 1; DO_REBASE_IMM_TIMES 1; DONE
REBASE = bytes([0x21, 0, 0x51, 0x70, 8, 0x60, 2, 0x80, 2, 8, 0x41, 0x51, 0])


@pytest.fixture(autouse=True, scope="module")
def surprises_are_seen() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "_SURPRISES", ())
        yield


def small(**options: object) -> bytes:
    words = struct.pack("<12Q", *(BASE + TEXT + 4 * i for i in range(12)))
    return build_macho(b"\x1f\x20\x03\xd5" * 64, SOURCE_ID, words, **options)  # type: ignore[arg-type]


def image(file: bytes) -> Image:
    return MachO(file, "small")


def test_segments_code_strings_and_uuid_come_from_the_load_commands() -> None:
    macho = image(small(uuid=bytes(range(16))))
    assert (macho.format, macho.arch, macho.build_id) == ("macho", "arm64", bytes(range(16)).hex())
    assert macho.is_code(BASE + TEXT + 255)
    assert not macho.is_code(BASE + CONSTANTS)
    assert [s.address for s in macho.constants] == [BASE + CONSTANTS]
    assert macho.cstring(BASE + CONSTANTS) == SOURCE_ID[:-1]
    assert macho.address_of(macho.offset_of(BASE + DATA) or 0) == BASE + DATA


def test_function_starts_end_where_the_next_one_starts_or_the_section_ends() -> None:
    starts, ends = image(small(starts=(TEXT, TEXT + 8, TEXT + 200))).functions
    assert (starts - BASE - TEXT).tolist() == [0, 8, 200]
    assert (ends - BASE - TEXT).tolist() == [8, 200, 256]
    assert image(small(starts=(TEXT, TEXT + 8))).contradicts_start(BASE + TEXT + 4)
    assert len(image(small()).functions[0]) == 0


def test_rebase_opcodes_say_where_pointers_are() -> None:
    macho = image(small(rebase=REBASE))
    slots = [i for i in range(12) if macho.relocated(BASE + DATA + 8 * i) is not None]
    assert slots == [0, 1, 3, 4, 5, 7, 10]
    assert macho.relocated(BASE + DATA + 8) == BASE + TEXT + 4


@pytest.mark.parametrize("pointer_format", [1, 2, 6, 9, 12])
def test_chained_fixups_are_followed_and_imports_left_out(pointer_format: int) -> None:
    signed = pointer_format in (1, 9, 12)
    target = TEXT + 4 if pointer_format in (6, 9, 12) else BASE + TEXT + 4
    stride = 8 if signed else 4

    def next_(distance: int) -> int:
        return distance // stride << 51

    words = [0, target | next_(16), 7, 5 | next_(8) | (1 << 62 if signed else 1 << 63), target]
    if signed:  # the last one is authenticated, and then always an offset
        words[4] = 1 << 63 | TEXT + 4
    data = struct.pack("<5Q", *words)
    macho = image(build_macho(b"\0" * 64, SOURCE_ID, data, fixups=chained_fixups(pointer_format, 8)))
    slots = {i: macho.relocated(BASE + DATA + 8 * i) for i in range(5)}
    assert slots == {0: None, 1: BASE + TEXT + 4, 2: None, 3: None, 4: BASE + TEXT + 4}
    table = next(t for t in macho.pointers if t.address == BASE + DATA)
    assert table.words[[1, 4]].tolist() == [BASE + TEXT + 4] * 2


@pytest.mark.parametrize("fixups", [b"", chained_fixups(6, 0)])
def test_symbols_and_exports_name_functions(fixups: bytes) -> None:
    file = small(
        symbols={"_sqlite3_step": BASE + TEXT, "_sqlite3_data": BASE + DATA},
        exports={"_sqlite3_reset": TEXT + 8, "_other": TEXT, "_sqlite3_beyond": DATA},
        fixups=fixups,
    )
    found = {}
    for table in image(file).symbol_tables():
        for offset, address in zip(table.name_offsets.tolist(), table.addresses.tolist(), strict=True):
            end = table.names.index(b"\0", offset + 1)
            found[table.title, table.names[offset + 1 : end]] = address
    assert found == {
        ("LC_SYMTAB", b"_sqlite3_step"): BASE + TEXT,
        ("exports", b"_sqlite3_reset"): BASE + TEXT + 8,
    }


def test_a_universal_file_has_an_image_for_each_architecture(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(universal((X86_64, small(cpu=X86_64)), (7, small(cpu=7)), (ARM64, small())))
    images = read_images(file)
    assert [i.arch for i in images] == ["x86_64", "arm64"]
    assert {i.cstring(BASE + CONSTANTS) for i in images} == {SOURCE_ID[:-1]}
    assert read_image(file).arch in ("x86_64", "arm64")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xcf\xfa\xed\xfe", "cut off within the Mach-O header"),
        (b"\xce\xfa\xed\xfe" + bytes(60), "not a 64-bit little-endian one"),
        (b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(60), "neither an ELF nor a Mach-O file"),
        (b"\xca\xfe\xba\xbe\0\0\0\x01" + bytes(60), "lies outside of it"),
        (universal((7, small(cpu=7))), "for machine 0x7"),
        (small(kind=1), "neither a program nor a library"),
        (small()[:0x3800], "a segment lies outside of it"),
        (small()[:100], "load commands end too early|a load command of"),
        (small()[:28] + b"\xff" * 200 + small()[228:], "a load command of 4294967295 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(NotAnImageError, match=reason) as caught:
        resolve(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


WHOLE = universal(
    (ARM64, small(uuid=bytes(16), starts=(TEXT, TEXT + 8), rebase=REBASE, exports={"_sqlite3_step": TEXT})),
    (ARM64, small(symbols={"_sqlite3_step": BASE + TEXT}, fixups=chained_fixups(6, 0), exports={"_a": TEXT})),
)
INTERESTING = sorted(
    {*range(0x40), *range(0x1000, 0x1300), *range(0x5000, 0x5100), *range(0x6000, 0x6300), *range(0xA000, 0xA100)}
)


@example(flips=[(41024, 15)], size=45056)  # a page table behind the end of the chained fixups
@settings(max_examples=300, deadline=2000)
@given(
    flips=st.lists(st.tuples(st.sampled_from(INTERESTING), st.integers(0, 255)), max_size=12),
    size=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
def test_a_damaged_file_ends_in_an_error_that_explains_itself(
    flips: list[tuple[int, int]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(WHOLE)
    for offset, value in flips:
        data[offset] = value
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(data[:size])
    with pytest.raises(SqltraceError):
        explain_all(file)


@pytest.mark.parametrize("name", ["darwin-arm64", "darwin-x64"])
def test_a_prebuilt_addon_resolves_without_its_symbols(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = from_npm(CIPHERS, f"prebuilds/{name}.node").read_bytes()
    symbols = macho_symbol_addresses(content)
    stripped = MachO(without_symbols(content), name)
    resolution = explain_image(stripped).resolution
    assert {n: f.address for n, f in resolution.functions.items()} == {n: symbols[n] for n in FUNCTIONS}
    assert resolution.functions["sqlite3_step"].evidence == (Evidence.API_TABLE, Evidence.STRINGS)
    truth = true_layout("3.53.4")
    assert {n: f.offset for n, f in resolution.layout.items()} == {n: truth[n][0] for n in resolution.layout}
    assert set(resolution.layout) == set(truth)
    assert resolution.sqlite_version == "3.53.4"
    assert resolution.features_off == ()

    monkeypatch.setattr(resolver, "find_api_table", lambda *_: None)
    strings_only = explain_image(stripped).resolution
    assert {n: f.address for n, f in strings_only.functions.items()} == {n: symbols[n] for n in strings_only.functions}
    assert set(strings_only.functions) >= {
        *REQUIRED_FUNCTIONS,
        *INTERNAL_FUNCTIONS,
        "sqlite3_close",
        "sqlite3_prepare_v2",
    }
    assert {f.evidence for f in strings_only.functions.values()} == {(Evidence.STRINGS,)}
    assert {n: f.offset for n, f in strings_only.layout.items()} == {n: truth[n][0] for n in strings_only.layout}
    assert Evidence.ACCESSOR in strings_only.layout["Vdbe.zSql"].evidence


def test_symbols_agree_with_what_else_is_found() -> None:
    addon = from_npm(CIPHERS, "prebuilds/darwin-arm64.node")
    evidence = resolve(addon).functions["sqlite3_step"].evidence
    assert evidence == (Evidence.SYMBOL, Evidence.API_TABLE, Evidence.STRINGS)


def test_inspect_shows_each_architecture_of_a_universal_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [(ARM64, "darwin-arm64"), (X86_64, "darwin-x64")]
    file = tmp_path / "both.node"
    file.write_bytes(
        universal(*((cpu, from_npm(CIPHERS, f"prebuilds/{name}.node").read_bytes()) for cpu, name in parts))
    )
    assert main(["inspect", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"3.53.4   macho arm64   {file}",
        f"3.53.4   macho x86_64  {file}",
    ]
