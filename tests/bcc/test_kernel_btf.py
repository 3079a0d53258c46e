from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqltrace.backends.bcc.kernel_btf import VMLINUX, member_offsets


def btf(name: str, members: list[tuple[str, int]], bitfields: bool = False) -> bytes:
    strings = b"\0"
    offsets = {}
    for word in [name, *(m for m, _ in members)]:
        offsets[word] = len(strings)
        strings += word.encode() + b"\0"
    info = 4 << 24 | len(members) | (1 << 31 if bitfields else 0)
    types = struct.pack("<III", offsets[name], info, 100)
    for member, bits in members:
        types += struct.pack("<III", offsets[member], 1, bits)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def test_members_are_found_by_name() -> None:
    data = btf("task_struct", [("state", 0), ("pid", 64), ("tgid", 96)])
    assert member_offsets("task_struct", ("pid", "tgid"), data) == {"pid": 8, "tgid": 12}


def test_the_bitfield_form_has_the_offset_in_24_bits() -> None:
    data = btf("task_struct", [("pid", 5 << 24 | 64)], bitfields=True)
    assert member_offsets("task_struct", ("pid",), data) == {"pid": 8}


def test_a_missing_member_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not define"):
        member_offsets("task_struct", ("nope",), btf("task_struct", [("pid", 64)]))


@given(st.binary(max_size=200))
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of its messages
        member_offsets("task_struct", ("pid",), data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_file_is_an_error_or_an_answer(at: int, value: int) -> None:
    data = bytearray(btf("task_struct", [("state", 0), ("pid", 64), ("tgid", 96)]))
    data[at % len(data)] = value
    with contextlib.suppress(ValueError):
        member_offsets("task_struct", ("pid",), bytes(data))


@pytest.mark.bcc
def test_the_running_kernel_is_understood() -> None:
    found = member_offsets("task_struct", ("pid", "tgid", "exit_code"), Path(VMLINUX).read_bytes())
    assert found["tgid"] == found["pid"] + 4
