"""Unwind data without its index, as gcc -static leaves it."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sqltrace.resolve.eh_frame import frames

AT = 0x2000


def cie(augmentation: bytes, data: bytes) -> bytes:
    body = struct.pack("<IB", 0, 1) + augmentation + b"\0\x01\x78\x10" + bytes([len(data)]) + data
    body += bytes(-len(body) % 4)
    return struct.pack("<I", len(body)) + body


def section(common: bytes, *functions: tuple[int, int]) -> bytes:
    table = common
    for start, size in functions:
        here = len(table)
        table += struct.pack("<IIiI", 16, here + 4, start - AT - here - 8, size) + bytes(4)
    return table + bytes(16)


def read(content: bytes) -> list[tuple[int, int]]:
    starts, sizes = frames(b"head" + content, AT, 4, len(content))
    return list(zip(starts.tolist(), sizes.tolist(), strict=True))


def test_functions_are_sorted_whatever_else_the_augmentation_says() -> None:
    functions = [(0x1100, 8), (0x1000, 32)]
    assert read(section(cie(b"zR", b"\x1b"), *functions)) == sorted(functions)
    assert read(section(cie(b"zPLR", b"\x9b\0\0\0\0\x1b\x1b"), *functions)) == sorted(functions)
    assert read(section(cie(b"zPLRS", b"\0" + bytes(8) + b"\x1b\x1b"), *functions)) == sorted(functions)


def test_addresses_in_another_encoding_are_left_out() -> None:
    assert read(section(cie(b"zR", b"\x00"), (0x1000, 32))) == []
    assert read(section(cie(b"", b""), (0x1000, 32))) == []


@given(st.binary(max_size=200), st.integers(0, 300))
def test_damaged_records_end_the_list(content: bytes, size: int) -> None:
    frames(section(cie(b"zR", b"\x1b"), (0x1000, 32))[:44] + content, AT, 0, size)
