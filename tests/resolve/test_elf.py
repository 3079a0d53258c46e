"""ELF files as tests write them, whole and damaged."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqltrace.errors import NotAnImageError, SqltraceError
from sqltrace.resolve import resolver
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import Segment, open_image
from sqltrace.resolve.resolver import resolve, resolve_image, source_ids
from tests.support.elf_builder import Part, R, W, X, build_elf, build_id_note, eh_frame


@pytest.fixture(autouse=True, scope="module")
def surprises_are_seen() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "_SURPRISES", ())
        yield


CODE = Part(0x1000, R | X, b"\x90" * 256)
DATA = Part(0x3000, R | W, struct.pack("<4Q", 0, 0x1010, 0, 0x1020))


def small_elf() -> bytes:
    unwind, size = eh_frame(0x2000, [(0x1000, 16), (0x1010, 32), (0x1080, 8)])
    source_id = b"2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3\0"
    return build_elf(
        [CODE, Part(0x2000, R, unwind + source_id), DATA],
        relocations={0x3000: 0x1030, 0x3010: 0x1040},
        note=build_id_note(bytes(range(20))),
        unwind=(0x2000, size),
    )


def test_build_id_segments_and_addresses_come_from_the_program_headers() -> None:
    elf = Elf(small_elf(), "small")
    assert elf.build_id == bytes(range(20)).hex()
    assert elf.position_independent
    assert elf.read(0x1000, 4) == b"\x90" * 4
    assert elf.address_of(elf.offset_of(0x3008) or 0) == 0x3008
    assert elf.is_code(0x10FF)
    assert not elf.is_code(0x3000)
    assert elf.offset_of(0x9999) is None
    assert elf.read(0x10FF, 100) == b"\x90"


def test_pointer_words_are_as_the_loader_leaves_them() -> None:
    elf = Elf(small_elf(), "small")
    table = next(t for t in elf.pointers if t.address == 0x3000)
    assert table.words.tolist() == [0x1030, 0x1010, 0x1040, 0x1020]
    assert elf.relocated(0x3010) == 0x1040
    assert elf.relocated(0x3008) is None


def test_function_starts_and_ends_come_from_the_unwind_table() -> None:
    starts, ends = Elf(small_elf(), "small").functions
    assert starts.tolist() == [0x1000, 0x1010, 0x1080]
    assert ends.tolist() == [0x1010, 0x1030, 0x1088]


def test_an_address_within_a_function_is_no_function_start() -> None:
    elf = Elf(small_elf(), "small")
    assert elf.contradicts_start(0x1014)
    assert not elf.contradicts_start(0x1010)
    assert not elf.contradicts_start(0x1040)  # nothing covers it


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is neither an ELF nor a Mach-O file"),
        (b"MZ" + b"\0" * 100, "is neither an ELF nor a Mach-O file"),
        (b"\x7fELF\x02\x01", "is cut off"),
        (build_elf([CODE], machine=243), "for riscv64"),
        (b"\x7fELF\x01" + build_elf([CODE], machine=3)[5:], "for i386"),
        (build_elf([CODE], kind=1), "neither a program nor a shared library"),
        (build_elf([]), "without anything to load"),
        (build_elf([CODE])[:-8], "cut off or damaged"),
    ],
)
def test_what_is_no_program_for_a_known_machine_is_refused_in_one_sentence(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(NotAnImageError, match=reason) as caught:
        resolve(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_directories_fifos_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", "nul\0byte"):
        with pytest.raises(NotAnImageError):
            resolve(path)


def test_a_deleted_file_is_read_through_its_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(small_elf())
    with file.open("rb") as opened:
        file.unlink()
        assert open_image(f"/proc/self/fd/{opened.fileno()}") == small_elf()


def test_an_absurd_count_of_anything_neither_hangs_nor_allocates() -> None:
    for offset, layout in ((32, "<Q"), (56, "<H"), (64 + 32, "<Q"), (64 + 16, "<Q")):
        data = bytearray(small_elf())
        struct.pack_into(layout, data, offset, (1 << 8 * struct.calcsize(layout)) - 1)
        with pytest.raises(SqltraceError):
            resolve_image(Elf(bytes(data), "damaged"))


def repeated(times: int) -> bytes:
    """Return a file of which each of many segments is nearly the whole."""
    whole = build_elf([Part(0x1000 + 0x100000 * i, R | X, b"") for i in range(times)])
    data = bytearray(whole + b"\x90" * 4096)
    for i in range(times):
        struct.pack_into("<Q", data, 64 + 56 * i + 8, 0)
        struct.pack_into("<Q", data, 64 + 56 * i + 32, len(data))
    return bytes(data)


def test_segments_that_repeat_the_file_again_and_again_are_refused() -> None:
    with pytest.raises(NotAnImageError, match="add up to more than it holds"):
        Elf(repeated(1000), "repeated")


def test_a_file_of_a_terabyte_of_nothing_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    data = bytearray(build_elf([CODE]))
    struct.pack_into("<Q", data, 64 + 32, 1 << 39)
    file.write_bytes(data)
    os.truncate(file, 1 << 40)
    with pytest.raises(NotAnImageError, match="too large"):
        resolve(file)


@settings(max_examples=300, deadline=2000)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(small_elf()) - 1), st.integers(0, 255)), max_size=12),
    size=st.integers(0, len(small_elf())) | st.just(len(small_elf())),
)
def test_a_damaged_file_ends_in_an_error_that_explains_itself(flips: list[tuple[int, int]], size: int) -> None:
    data = bytearray(small_elf())
    for offset, value in flips:
        data[offset] = value
    with pytest.raises(SqltraceError):
        resolve_image(Elf(bytes(data[:size]), "damaged"))


@pytest.mark.parametrize("before", [0, 1, 7, (1 << 20) - 90, (1 << 20) - 7, (1 << 20) - 4, 1 << 20])
def test_a_source_id_is_found_wherever_it_stands(before: int) -> None:
    text = b"2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3"
    near_misses = b"2025-07- ---------- 20-20-20 "
    content = np.frombuffer(near_misses[:before].ljust(before, b"-") + text, np.uint8)
    image = SimpleNamespace(array=content, data=content.tobytes(), segments=[Segment(0, 0, len(content), False, False)])
    assert source_ids(image) == {text.decode()}
    image.segments = [Segment(0, 0, len(content) - 3, False, False)]
    assert source_ids(image) == set()
