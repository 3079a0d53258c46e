"""arm64: accessors as compilers wrote them, references and calls.  Whole builds are in test_twins.py."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from sqltrace.resolve.accessors import counters_offset, filename_claims, returned_field, running_claims
from sqltrace.resolve.arm64 import Arm64, stub_target
from sqltrace.resolve.arm64_code import Arm64Code
from sqltrace.resolve.code import Reference
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import Image
from sqltrace.resolve.symbolic import Executor, Trace
from tests.support.elf_builder import Part, R, W, X, build_elf

CODE = 0x10000
SLOTS = 0x30000
RET = 0xD65F03C0


def image(*words: int, **extra: object) -> Image:
    code = struct.pack(f"<{len(words)}I", *words)
    return Elf(build_elf([Part(CODE, R | X, code), Part(SLOTS, R | W, b"\0" * 64)], machine=183, **extra), "code")  # type: ignore[arg-type]


def trace(*words: int, **options: int) -> Trace:
    elf = image(*words)
    return Executor(elf, Arm64(elf)).run(CODE, **options)  # type: ignore[arg-type]


RETURNING = [
    # name, widths, code, (offset, width)
    ("sqlite3_sql: cbz x0; ldr x0, [x0, #248]; ret", (8,), (0xB4000040, 0xF9407C00, RET), (248, 8)),
    (
        "bti c and paciasp in front: ldr x0, [x0, #248]; autiasp; ret",
        (8,),
        (0xD503245F, 0xD503233F, 0xF9407C00, 0xD50323BF, RET),
        (248, 8),
    ),
    ("retaa at the end", (8,), (0xD503233F, 0xF9407C00, 0xD65F0BFF), (248, 8)),
    ("bind_parameter_count: ldrsh w0, [x0, #32]", (2, 4), (0x79C04000, RET), (32, 2)),
    ("get_autocommit: ldrb w0, [x0, #101]", (1,), (0x39419400, RET), (101, 1)),
    (
        "a frame: stp x29, x30, [sp, #-16]!; ldr x0, [x0, #8]; ldp x29, x30, [sp], #16",
        (8,),
        (0xA9BF7BFD, 0xF9400400, 0xA8C17BFD, RET),
        (8, 8),
    ),
    ("a pair: ldp x1, x0, [x0, #16]", (8,), (0xA9410001, RET), (24, 8)),
    (
        "csel: ldr x8, [x0, #248]; cmp x0, #0; csel x0, xzr, x8, eq",
        (8,),
        (0xF9407C08, 0xF100001F, 0x9A8803E0, RET),
        (248, 8),
    ),
    ("post-index leaves the address: ldr x8, [x0], #8; mov x0, x8", (8,), (0xF8408408, 0xAA0803E0, RET), (0, 8)),
]


@pytest.mark.parametrize(("sizes", "code", "expected"), [r[1:] for r in RETURNING], ids=[r[0] for r in RETURNING])
def test_an_accessor_tells_the_offset_of_what_it_returns(
    sizes: tuple[int, ...], code: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert returned_field(trace(*code), sizes) == expected


NEAR_MISSES = [
    ("the address, not the content: add x0, x0, #248", (0x9103E000, RET)),
    ("another width: ldr w0, [x0, #248]", (0xB940F800, RET)),
    ("the other argument: ldr x0, [x1, #248]", (0xF9407C20, RET)),
    ("in front of the struct: ldur x0, [x0, #-8]", (0xF85F8000, RET)),
    ("changed afterwards: ldr x0, [x0, #8]; lsr x0, x0, #1", (0xF9400400, 0xD341FC00, RET)),
    ("a field of what a field points to", (0xF9400400, 0xF9400800, RET)),
    ("an endless loop: b .", (0x14000000,)),
    ("no instruction at all", (0,)),
]


@pytest.mark.parametrize("code", [n[1] for n in NEAR_MISSES], ids=[n[0] for n in NEAR_MISSES])
def test_what_is_not_exactly_one_field_tells_nothing(code: tuple[int, ...]) -> None:
    assert returned_field(trace(*code), (8,)) is None


COUNTERS = [
    ("gcc: add x1, x0, w1, sxtw #2; ldr w0, [x1, #212]", (0x8B21C801, 0xB940D420, RET)),
    ("clang: add x8, x0, #212; ldr w0, [x8, w1, sxtw #2]", (0x91035008, 0xB861D900, RET)),
    ("smaddl: mov w8, #4; smaddl x8, w1, w8, x0; ldr w0, [x8, #212]", (0x52800088, 0x9B280028, 0xB940D500, RET)),
]


@pytest.mark.parametrize("code", [c[1] for c in COUNTERS], ids=[c[0] for c in COUNTERS])
def test_the_counters_are_found_wherever_the_compiler_adds_the_constant(code: tuple[int, ...]) -> None:
    assert counters_offset(trace(*code)) == 212


def test_a_running_statement_is_told_by_its_state_byte() -> None:
    # ldrb w8, [x0, #199]; cmp w8, #2; cset w0, eq; ret
    code = (0x39431C08, 0x7100091F, 0x1A9F17E0, RET)
    assert [(c.name, c.offset, c.size) for c in running_claims(trace(*code))] == [("Vdbe.eVdbeState", 199, 1)]


def test_a_number_built_from_two_halves_is_one_number() -> None:
    # ldr w8, [x0, #36]; mov w9, #0x0da3; movk w9, #0x2df2, lsl 16; cmp w8, w9; b.ne +8; ldr w0, [x0, #52]; ret
    code = (0xB9402408, 0x5281B469, 0x72A5BE49, 0x6B09011F, 0x54000041, 0xB9403400, RET)
    found = [(c.name, c.offset, c.size) for c in running_claims(trace(*code))]
    assert found == [("Vdbe.magic", 36, 4), ("Vdbe.pc", 52, 4)]


def test_the_way_to_the_file_name_is_followed_through_five_structs() -> None:
    code = (0xF9401000, 0xF9400400, 0xF9400400, 0xF9400000, 0xF9406C00, RET)
    assert [c.offset for c in filename_claims(trace(*code))] == [32, 8, 8, 0, 216]


def test_registers_with_names_of_their_own_are_registers() -> None:
    # cbz lr, +8; cmp sp, fp; ldr x0, [x0, #8]; ret
    code = (0xB400005E, 0xEB3D63FF, 0xF9400400, RET)
    assert [c.size for c in trace(*code).compares] == [8, 8]
    assert returned_field(trace(*code), (8,)) == (8, 8)


def test_a_call_through_a_linkage_stub_is_a_call_of_the_function_behind_it() -> None:
    # bl +12; ret; nop; stub: adrp x16, SLOTS; ldr x17, [x16]; add x16, x16, #0; br x17
    pages = (SLOTS - CODE) >> 12
    code = (0x94000003, RET, NOP, adrp(16, pages), 0xF9400211, 0x91000210, 0xD61F0220)
    elf = image(*code, relocations={SLOTS: CODE + 4})
    assert stub_target(elf, CODE + 12) == CODE + 4
    assert stub_target(elf, CODE) is None
    assert [c.target for c in Executor(elf, Arm64(elf)).run(CODE).calls] == [CODE + 4]


def adrp(register: int, pages: int) -> int:
    return 0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | register


def add(target: int, base: int, amount: int) -> int:
    return (0x91000000 if amount >= 0 else 0xD1000000) | abs(amount) << 10 | base << 5 | target


NOP = 0xD503201F
REFERENCES = [
    ("at once", (adrp(0, 0x20), add(1, 0, 0x18)), [1]),
    ("later", (adrp(0, 0x20), NOP, NOP, add(0, 0, 0x18)), [3]),
    ("from an anchor in front", (adrp(0, 0x20), add(0, 0, 0x8), add(1, 0, 0x10)), [2]),
    ("from an anchor behind, on the next page", (adrp(20, 0x21), add(20, 20, 0x8), NOP, add(1, 20, -0xFF0)), [3]),
    ("the register was overwritten", (adrp(0, 0x20), 0xF9400400, add(0, 0, 0x18)), []),
    ("a call lies between", (adrp(0, 0x20), 0x94000000, add(0, 0, 0x18)), []),
    ("a call lies between, but the register is kept", (adrp(20, 0x20), 0x94000000, add(0, 20, 0x18)), [2]),
    ("another page", (adrp(0, 0x24), add(0, 0, 0x18)), []),
    ("adr", (0x10100000 | 3,), [0]),
]


@pytest.mark.parametrize(("code", "sites"), [r[1:] for r in REFERENCES], ids=[r[0] for r in REFERENCES])
def test_references_are_followed_as_long_as_the_base_stays_in_its_register(
    code: tuple[int, ...], sites: list[int]
) -> None:
    target = CODE + 0x20000 + (0x18 if code[0] & 0x9F000000 == 0x90000000 else 0)
    found = Arm64Code(image(*code)).references(np.array([target], np.int64))
    assert found == [Reference(CODE + 4 * site, target) for site in sites]


def test_branches_and_what_they_reach() -> None:
    # b.eq +12; nop; b +8; ret; cbz x0, -16; tbz w0, #0, -4; ret; nop
    code = image(0x54000060, NOP, 0x14000002, RET, 0xB4FFFF80, 0x3607FFE0, RET, NOP)
    reads = Arm64Code(code)
    assert reads.reachable(CODE, CODE + 32) == frozenset(CODE + 4 * i for i in range(7))
    found = reads.conditional_branches(CODE, code.array[code.code[0].offset :][:32])
    assert sorted(zip(found.sites.tolist(), found.targets.tolist(), strict=True)) == [
        (CODE, CODE + 12),
        (CODE + 16, CODE),
        (CODE + 20, CODE + 16),
    ]
    calls = reads.branches(CODE, code.array[code.code[0].offset :][:32])
    assert (calls.sites.tolist(), calls.targets.tolist(), calls.is_call.tolist()) == ([CODE + 8], [CODE + 16], [False])


def test_returned_constants_are_seen_behind_a_prologue() -> None:
    number = (0x52800000 | 0x8A14 << 5, 0x72A00000 | 0x2E << 5, RET)
    code = image(*number, 0xD503245F, 0xD503233F, *number, 0x52800000, RET, *[NOP] * 8)
    functions = np.array([CODE, CODE + 12, CODE + 32, 0], np.uint64)
    fits, values = Arm64Code(code).constants_returned(functions)
    assert fits.tolist() == [True, True, False, False]
    assert values[:2].tolist() == [3050004, 3050004]
