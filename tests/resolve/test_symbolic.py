"""Accessors as compilers wrote them: machine code in, field offset out."""

from __future__ import annotations

import pytest

from sqltrace.resolve.accessors import counters_offset, filename_claims, returned_field, running_claims
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.symbolic import Argument, Executor, Linear, Load, Trace
from sqltrace.resolve.x86_64 import X86_64, plain_decoder, plt_target, reachable
from tests.support.elf_builder import Part, R, W, X, build_elf

CODE = 0x1000
SLOTS = 0x3000


def image(code: bytes, **extra: object) -> Elf:
    parts = [Part(CODE, R | X, code + b"\xcc" * 16), Part(SLOTS, R | W, b"\0" * 64)]
    return Elf(build_elf(parts, **extra), "code")  # type: ignore[arg-type]


def trace(code: bytes, **options: int) -> Trace:
    elf = image(code)
    return Executor(elf, X86_64(elf)).run(CODE, **options)  # type: ignore[arg-type]


RETURNING = [
    # name, sizes, code, (offset, width)
    (
        "3.50.4 sqlite3_sql gcc -O2: test rdi, rdi; je; mov rax, [rdi+0xf8]; ret; xor eax, eax; ret",
        (8,),
        "4885ff 7408 488b87f8000000 c3 31c0 c3",
        (248, 8),
    ),
    (
        "3.50.4 sqlite3_sql gcc -O1: mov eax, 0; test; je; mov rax, [rdi+0xf8]; ret",
        (8,),
        "b800000000 4885ff 7407 488b87f8000000 c3",
        (248, 8),
    ),
    (
        "sqlite3_sql with cmov: xor eax, eax; test; lea; cmovne",
        (8,),
        "488b87f8000000 31c9 4885ff 480f44c1 c3",
        (248, 8),
    ),
    ("3.50.4 bind_parameter_count i16: movsx eax, word [rdi+0x20]", (2, 4), "4885ff 7405 0fbf4720 c3 31c0 c3", (32, 2)),
    ("3.40.1 bind_parameter_count int, Debian: mov eax, [rdi+0x20]", (2, 4), "f30f1efa 8b4720 c3", (32, 4)),
    ("get_autocommit with a frame pointer: movzx eax, byte [rdi+0x65]", (1,), "55 4889e5 0fb64765 5d c3", (101, 1)),
    ("a tail call into another accessor", (8,), "eb0e 9090909090909090909090909090 488b4708 c3", (8, 8)),
]


@pytest.mark.parametrize(("sizes", "code", "expected"), [r[1:] for r in RETURNING], ids=[r[0] for r in RETURNING])
def test_an_accessor_tells_the_offset_of_what_it_returns(
    sizes: tuple[int, ...], code: str, expected: tuple[int, int]
) -> None:
    assert returned_field(trace(bytes.fromhex(code)), sizes) == expected


NEAR_MISSES = [
    ("two different fields", "4885ff 7408 488b87f8000000 c3 488b4708 c3"),
    ("a field of what a field points to", "488b4708 488b4008 c3"),
    ("the address, not the content", "488d87f8000000 c3"),
    ("another width", "8b87f8000000 c3"),
    ("the other argument", "488b86f8000000 c3"),
    ("in front of the struct", "488b47f8 c3"),
    ("an endless loop", "ebfe"),
    ("no instruction at all", "06"),
]


@pytest.mark.parametrize("code", [n[1] for n in NEAR_MISSES], ids=[n[0] for n in NEAR_MISSES])
def test_what_is_not_exactly_one_field_tells_nothing(code: str) -> None:
    assert returned_field(trace(bytes.fromhex(code)), (8,)) is None


COUNTERS = [
    (
        "gcc folds the offset into the index: movsxd; add rsi, 0x34; mov eax, [rdi+rsi*4+4]",
        "4863f6 4883c634 8b44b704 c3",
    ),
    ("clang keeps it: movsxd rax, esi; mov eax, [rdi+rax*4+0xd4]", "4863c6 8b8487d4000000 c3"),
    ("lea first: lea rdx, [rdi+rsi*4]; mov eax, [rdx+0xd4]", "4863f6 488d14b7 8b82d4000000 c3"),
]


@pytest.mark.parametrize("code", [c[1] for c in COUNTERS], ids=[c[0] for c in COUNTERS])
def test_the_counters_are_found_wherever_the_compiler_hides_the_constant(code: str) -> None:
    assert counters_offset(trace(bytes.fromhex(code))) == 212


def test_sixteen_bytes_per_element_are_no_counters() -> None:
    assert counters_offset(trace(bytes.fromhex("4863f6 48c1e604 8b8437d4000000 c3"))) is None


def test_a_running_statement_is_told_by_its_state_byte() -> None:
    code = bytes.fromhex("31c0 4885ff 740a 80bfc700000002 0f94c0 c3")  # cmp byte [rdi+0xc7], 2; sete al
    assert [(c.name, c.offset, c.size) for c in running_claims(trace(code))] == [("Vdbe.eVdbeState", 199, 1)]


def test_before_3_39_it_is_told_by_magic_and_program_counter() -> None:
    # cmp dword [rdi+0x24], 0x2df20da3; jne; mov eax, [rdi+0x34]; not eax; shr eax, 31; ret
    code = bytes.fromhex("817f24a30df22d 7509 8b4734 f7d0 c1e81f c3 90 31c0 c3")
    found = [(c.name, c.offset, c.size) for c in running_claims(trace(code))]
    assert found == [("Vdbe.magic", 36, 4), ("Vdbe.pc", 52, 4)]


def test_the_way_to_the_file_name_is_followed_through_five_structs() -> None:
    # mov rax, [rdi+32]; mov rax, [rax+8]; mov rax, [rax+8]; mov rax, [rax]; mov rax, [rax+216]; ret
    code = bytes.fromhex("488b4720 488b4008 488b4008 488b00 488b80d8000000 c3")
    assert [c.offset for c in filename_claims(trace(code))] == [32, 8, 8, 0, 216]


def test_the_second_database_is_not_taken_for_the_first() -> None:
    code = bytes.fromhex("488b4720 488b4028 488b4008 488b00 488b80d8000000 c3")
    assert list(filename_claims(trace(code))) == []


def test_a_call_is_entered_only_as_deep_as_asked() -> None:
    code = bytes.fromhex("e801000000 c3 488b4710 c3")  # call +1; ret; mov rax, [rdi+16]; ret
    assert returned_field(trace(code), (8,)) is None
    assert returned_field(trace(code, depth=1), (8,)) == (16, 8)


def test_a_call_through_the_plt_is_a_call_of_the_function_behind_it() -> None:
    # call stub; ret ... stub: endbr64; jmp [rip+x]
    stub = CODE + 16
    code = bytes.fromhex("e80b000000 c3".replace(" ", "")).ljust(16, b"\x90")
    code += bytes.fromhex("f30f1efa ff25") + (SLOTS - (stub + 10)).to_bytes(4, "little")
    elf = image(code.ljust(48, b"\x90"), relocations={SLOTS: CODE + 40})
    assert plt_target(elf, stub) == CODE + 40
    assert plt_target(elf, CODE) is None
    assert [c.target for c in Executor(elf, X86_64(elf)).run(CODE).calls] == [CODE + 40]


def test_budgets_end_what_would_not_end() -> None:
    forks = bytes.fromhex("7400" * 64 + "c3")  # 2 ** 64 paths
    done = trace(forks, budget=500, max_paths=50)
    assert not done.complete
    assert len(done.returns) <= 50
    assert len(trace(forks, once=True).returns) == 1


def test_only_what_jumps_reach_belongs_to_a_function() -> None:
    elf = image(bytes.fromhex("7402 90 c3 eb01 cc c3"))
    assert reachable(elf, plain_decoder(), CODE, CODE + 8) == {CODE, CODE + 2, CODE + 3, CODE + 4, CODE + 7}


def test_linear_values_cancel_out() -> None:
    x, y = Linear(0, ((Argument(0), 1),)), Linear(3, ((Load(Linear(8), 4), 2),))
    assert x.plus(y).plus(x, -1) == y
    assert y.times(0) == Linear(0)
    assert x.single == Argument(0)
    assert y.single is None
