"""Where in a function a uprobe is cheap.

The instruction under a uprobe decides its price.  The kernel emulates a push, a nop and a relative branch
(arch/x86/kernel/uprobes.c: push_setup_xol_ops, branch_setup_xol_ops); anything else it single-steps out of line,
which costs 7 to 15 times as much (docs/limits.md, `make bench`).  Functions compiled with control-flow protection
begin with endbr64, which is single-stepped; others begin with a test or a sub.

So the probe goes to the first emulated instruction of the straight line at the function's start, as long as nothing
before it branches, moves the stack pointer (a return probe must find the return address there) or overwrites the
first argument, and nothing in the function jumps back to it (one call must be one hit).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import capstone
from capstone import x86

from sqltrace.backends.elf_file import ElfFile
from sqltrace.resolution import Resolution

LOOK_AHEAD = 48
"""Bytes from the function's start in which a site is sought."""
BODY = 4096
"""Bytes that are searched for branches back into the prologue."""

PROBED = ("sqlite3_step", "sqlite3_reset", "sqlite3_finalize")
"""The functions that have a probe."""

_STEPPED = "single-step"


@dataclass(frozen=True, slots=True)
class ProbeSite:
    """An instruction to probe: its distance from the function's start, and what it is to the kernel.

    kind: `nop`, `push`, `branch` (all emulated) or `single-step`.
    """

    offset: int
    kind: str

    def __str__(self) -> str:
        return f"+{self.offset} {self.kind}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A function's site, and its offset in the file, which is what the kernel wants."""

    site: ProbeSite
    offset: int


def _kind(instruction: capstone.CsInsn) -> str:
    if instruction.id == x86.X86_INS_NOP:
        return "nop"
    if instruction.id == x86.X86_INS_PUSH and instruction.operands[0].type == x86.X86_OP_REG:
        return "push"
    if _target(instruction) is not None and instruction.id != x86.X86_INS_CALL:
        return "branch"
    return _STEPPED


def _target(instruction: capstone.CsInsn) -> int | None:
    """Where a relative branch or call leads; None for other instructions."""
    if instruction.group(capstone.CS_GRP_JUMP) or instruction.group(capstone.CS_GRP_CALL):
        operand = instruction.operands[0]
        if operand.type == x86.X86_OP_IMM:
            return int(operand.imm)
    return None


def _may_be_skipped(instruction: capstone.CsInsn) -> bool:
    for group in (capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET, capstone.CS_GRP_INT):
        if instruction.group(group):
            return False
    _, written = instruction.regs_access()
    names = {instruction.reg_name(register) for register in written}
    return not names & {"rsp", "esp", "sp", "rdi", "edi", "di", "dil"}


def _straight_line(code: bytes) -> Iterator[capstone.CsInsn]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    yield from decoder.disasm(code[:LOOK_AHEAD], 0)


def _branch_targets(code: bytes) -> set[int]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    return {t for i in decoder.disasm(code[:BODY], 0) if (t := _target(i)) is not None}


def probe_site(code: bytes) -> ProbeSite:
    """Choose the site in a function, given its first bytes (BODY of them, or up to the end of the segment)."""
    for instruction in _straight_line(code):
        kind = _kind(instruction)
        if kind != _STEPPED:
            site = ProbeSite(instruction.address, kind)
            if any(0 < target <= site.offset for target in _branch_targets(code)):
                break
            return site
        if not _may_be_skipped(instruction):
            break
    return ProbeSite(0, _STEPPED)


def placed(path: str, resolution: Resolution, names: Iterable[str] = PROBED) -> dict[str, Placed]:
    """Choose the sites of functions in an ELF file.  Raises NotAnImageError; KeyError for a function not known."""
    elf = ElfFile.read(path)
    found = {}
    for name in names:
        start = elf.file_offset(resolution.hookable(name).address)
        site = probe_site(elf.code(start, BODY))
        found[name] = Placed(site, start + site.offset)
    return found
