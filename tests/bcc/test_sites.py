"""Machine code of function starts, as compilers write them, and the instruction that gets the probe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqltrace.backends.bcc.sites import ProbeSite, probe_site

RET = "c3"

CASES = {
    "gcc 12 -O2, no CET: push r15": ("4157 4156 c3", ProbeSite(0, "push")),
    "gcc 12 -O2, CET: endbr64; push rbp": ("f30f1efa 55 4889e5 c3", ProbeSite(4, "push")),
    "gcc -O2 sqlite3_reset of fossil: test rdi, rdi; je; push rbp": ("4885ff 7410 55 c3", ProbeSite(3, "branch")),
    "patchable entry: nop5": ("0f1f440000 55 c3", ProbeSite(0, "nop")),
    "endbr64; xor eax, eax; test rdi, rdi; je": ("f30f1efa 31c0 4885ff 7410 c3", ProbeSite(9, "branch")),
    "mov rax, [rdi]; push rbx": ("488b07 53 c3", ProbeSite(3, "push")),
    "the stack pointer moves first: sub rsp, 8; push rbx": ("4883ec08 53 c3", ProbeSite(0, "single-step")),
    "the argument is overwritten first: mov rdi, [rdi]; push rbx": ("488b3f 53 c3", ProbeSite(0, "single-step")),
    "the argument's low half is overwritten: xor edi, edi; push rbx": ("31ff 53 c3", ProbeSite(0, "single-step")),
    "a return before anything emulated": ("31c0 c3 55", ProbeSite(0, "single-step")),
    "a call first is no site: call; push": ("e810000000 53 c3", ProbeSite(0, "single-step")),
    "an indirect jump is not emulated: jmp rax": ("ffe0 53", ProbeSite(0, "single-step")),
    "a push of memory is not emulated: push [rdi]": ("ff37 53 c3", ProbeSite(0, "single-step")),
    "a loop jumps back to it: test; je +2; jmp -7": ("4885ff 7402 ebf9 c3", ProbeSite(3, "branch")),
    "a loop jumps back behind the start: test; je; jmp to the je": ("4885ff 7402 ebfc c3", ProbeSite(0, "single-step")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_site_of(name: str) -> None:
    code, expected = CASES[name]
    assert probe_site(bytes.fromhex(code.replace(" ", ""))) == expected


@given(st.binary(max_size=100))
def test_any_bytes_have_a_site_within_reach(code: bytes) -> None:
    site = probe_site(code)
    assert 0 <= site.offset < 48


def test_a_truncated_instruction_is_no_site() -> None:
    assert probe_site(b"\x48\x85") == ProbeSite(0, "single-step")
