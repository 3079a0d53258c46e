"""What the resolver asks about machine code of any architecture.

Code is scanned for patterns with numpy instead of being disassembled: capstone needs 0.5 s for each MiB, the scan
3 ms.  On x86-64 a pattern may match in the middle of an instruction, so that a match counts only where its target
is a known place: the address of an anchor string, or the start of a function.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from sqltrace.resolve.image import Addresses, Bytes, Image, Mask, Words
from sqltrace.resolve.symbolic import Executor, Machine


@dataclass(frozen=True, slots=True)
class Reference:
    """The instruction at `site` computes the address `target`."""

    site: int
    target: int


@dataclass(frozen=True, slots=True)
class Branches:
    """What looks like a direct call or jump: the instruction, where it leads, whether it is a call."""

    sites: Addresses
    targets: Addresses
    is_call: Mask

    @classmethod
    def joined(cls, parts: Iterable[Branches]) -> Branches:
        """Return all of them as one."""
        none = cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        several = [none, *parts]
        return cls(
            np.concatenate([p.sites for p in several]),
            np.concatenate([p.targets for p in several]),
            np.concatenate([p.is_call for p in several]),
        )


class Code(Protocol):
    """The machine code of one image."""

    machine: Machine

    def references(self, wanted: Addresses) -> list[Reference]:
        """Return the instructions that compute one of these sorted addresses."""

    def branches(self, address: int, code: Bytes) -> Branches:
        """Return the direct calls and unconditional jumps in the code at `address`."""

    def conditional_branches(self, address: int, code: Bytes) -> Branches:
        """Return the conditional jumps in the code at `address`, none of them a call."""

    def is_conditional(self, site: int) -> bool:
        """Whether the branch at `site` is conditional."""

    def may_start(self, address: int, code: Bytes, targets: Addresses, calls: Addresses) -> Mask:
        """Tell which targets, each called so many times, a function may well start at (the code is at `address`)."""

    def stub_target(self, address: int) -> int | None:
        """Return where a linkage stub leads within this file; None if there is no such stub at `address`."""

    def may_be_stub(self, addresses: Addresses) -> Mask:
        """Whether a stub can lie at such an address at all."""

    def reachable(self, start: int, end: int) -> frozenset[int]:
        """Return the addresses of the instructions up to `end` that direct jumps from `start` reach."""

    def constants_returned(self, functions: Words) -> tuple[Mask, Addresses]:
        """For each function: does it begin with `return N`, and N."""

    def comparisons(self, address: int, code: Bytes, value: int) -> Addresses:
        """Return where the code at `address` compares a register with this small number."""


def code_of(image: Image) -> Code:
    """Return what reads the machine code of this image."""
    # Here, because both import this module.
    from sqltrace.resolve.arm64_code import Arm64Code  # noqa: PLC0415
    from sqltrace.resolve.x86_64_code import X86_64Code  # noqa: PLC0415

    return Arm64Code(image) if image.arch == "arm64" else X86_64Code(image)


def executor_of(image: Image) -> Executor:
    """Return a symbolic executor for the functions of this image."""
    return Executor(image, code_of(image).machine)


CHUNK: Final = 1 << 20


def int32_at(code: Bytes, at: Addresses) -> Addresses:
    """Return the signed little-endian 32-bit numbers at these offsets."""
    value = np.zeros(len(at), np.uint32)
    for i in range(4):
        value |= code[at + i].astype(np.uint32) << np.uint32(8 * i)
    return value.view(np.int32).astype(np.int64)


def bytes_of_functions(image: Image, functions: Words, size: int) -> Bytes:
    """Return a row of `size` bytes for each function, zeros where it does not lie in the file's code."""
    code = np.zeros((len(functions), size), np.uint8)
    for segment in image.code:
        here = (functions >= segment.address) & (functions + np.uint64(size) <= np.uint64(segment.end))
        offset = functions[here].astype(np.int64) - segment.address + segment.offset
        code[here] = image.array[offset[:, None] + np.arange(size)]
    return code
