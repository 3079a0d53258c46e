"""x86-64 machine code as patterns of bytes."""

from __future__ import annotations

import pytest

from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import Image
from sqltrace.resolve.x86_64_code import X86_64Code
from tests.support.elf_builder import Part, R, X, build_elf

CODE = 0x10000


def image(code: bytes) -> Image:
    return Elf(build_elf([Part(CODE, R | X, code)]), "code")


SHORT_JUMPS = [
    # name, code, where jumps start
    ("clang: xor esi, esi; jmp; nop", b"\x31\xf6\xeb\x0c\x66\x2e\x0f\x1f\x84\0" + bytes(6), [2]),
    ("up to the next aligned address", b"\xcc" * 14 + b"\xeb\x10\x55", [14]),
    ("in mid-function: jmp; mov", b"\x31\xf6\xeb\x0c\x48\x89\xc7" + bytes(9), []),
    ("cut off", b"\x31\xf6\xeb", []),
]


@pytest.mark.parametrize(("code", "sites"), [r[1:] for r in SHORT_JUMPS], ids=[r[0] for r in SHORT_JUMPS])
def test_a_two_byte_jump_counts_where_a_function_may_end(code: bytes, sites: list[int]) -> None:
    read = image(code)
    found = X86_64Code(read).branches(CODE, read.array[read.code[0].offset :][: len(code)])
    assert found.sites.tolist() == [CODE + site for site in sites]
    assert found.targets.tolist() == [CODE + site + 2 + code[site + 1] for site in sites]
    assert not found.is_call.any()
