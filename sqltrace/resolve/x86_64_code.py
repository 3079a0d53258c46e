"""x86-64 machine code as patterns of bytes: references, calls, jumps, stubs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from sqltrace.resolve.code import CHUNK, Branches, Reference, bytes_of_functions, int32_at
from sqltrace.resolve.image import Addresses, Bytes, Image, Mask, Words
from sqltrace.resolve.symbolic import Machine
from sqltrace.resolve.x86_64 import X86_64, plain_decoder, plt_target, reachable

_PADDING: Final = (0xCC, 0x90, 0xC3, 0x00, 0x0B)
"""What may stand before a function: int3, nop, ret, zero, the end of ud2."""

_FILLING: Final = (0xCC, 0x90, 0x66, 0x0F)
"""What fills the space behind a function begins with these: int3, nop and its longer forms."""

_MOV_EAX, _PUSH_RBP = 0xB8, 0x55
_PROLOGUE: Final = (0xF3, _PUSH_RBP)
"""What may stand before the mov eax of `return N`: endbr64 and push rbp; mov rbp, rsp, each 4 bytes."""

_FRAME: Final = (_PUSH_RBP, 0x48, 0x89, 0xE5)
"""push rbp; mov rbp, rsp: on macOS nearly every function begins so."""


def _positions(code: Bytes, byte: int, mask: int = 0xFF) -> Addresses:
    """Return where (code & mask) == byte, chunk by chunk to stay within the cache."""
    found = [
        np.flatnonzero(
            (code[start : start + CHUNK] & np.uint8(mask) if mask != 0xFF else code[start : start + CHUNK]) == byte
        )
        + start
        for start in range(0, len(code), CHUNK)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _lea_positions(code: Bytes) -> Addresses:
    """Return where `lea reg, [rip + x]` may stand: REX.W, 8D, and a ModRM byte that says rip."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(code) - 6, CHUNK):
        chunk = code[start : min(start + CHUNK, len(code) - 6) + 2]
        at = np.flatnonzero(chunk[1:-1] == 0x8D)
        at = at[((chunk[at] & 0xFB) == 0x48) & ((chunk[at + 2] & 0xC7) == 0x05)]
        found.append(at + start)
    return np.concatenate(found)


class X86_64Code:  # noqa: N801 (the architecture's name)
    """The machine code of one x86-64 image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.machine: Machine = X86_64(image)
        self._plain_decoder = plain_decoder()

    def references(self, wanted: Addresses) -> list[Reference]:
        """Return every `lea reg, [rip + x]` (and, in a fixed-address program, `mov reg, x`) of these addresses."""
        found: list[Reference] = []
        for segment in self._image.code:
            code = self._image.array[segment.offset : segment.offset + segment.size]
            at = _lea_positions(code)
            target = segment.address + at + 7 + int32_at(code, at + 3)
            near = (target >= wanted[0]) & (target <= wanted[-1])
            at, target = at[near], target[near]
            nearest = np.minimum(np.searchsorted(wanted, target), len(wanted) - 1)
            hit = wanted[nearest] == target
            found += map(Reference, (segment.address + at[hit]).tolist(), target[hit].tolist())
        if not self._image.position_independent:
            found += self._immediates(wanted)
        return found

    def _immediates(self, wanted: Addresses) -> Iterator[Reference]:
        for address, target in self._numbers_of(wanted[(wanted > 0) & (wanted < 1 << 32)]):
            before = self._image.read(address - 2, 2)
            # mov reg, imm32; push imm32; mov [..], imm32 with an 8-bit displacement or none
            loads = before and (before[-1] & 0xF8 == 0xB8 or before[-1] == 0x68)
            if loads or (before and 0xC7 in self._image.read(address - 3, 2)):
                yield Reference(address - 1, target)

    def _numbers_of(self, wanted: Addresses) -> Iterator[tuple[int, int]]:
        """Yield where in the code one of these 32-bit numbers stands, aligned or not, and which."""
        if not len(wanted):
            return
        low, span = np.uint32(wanted[0]), np.uint32(wanted[-1] - wanted[0])
        for segment in self._image.code:
            code = self._image.array[segment.offset : segment.offset + segment.size]
            for start in range(0, len(code), CHUNK):
                found: list[tuple[int, int]] = []
                for shift in range(4):
                    # What begins in this chunk, also where it ends in the next.
                    count = min(CHUNK, len(code) - start - shift) // 4
                    if count < 1:
                        continue
                    numbers = np.frombuffer(code, "<u4", count, start + shift)
                    at = np.flatnonzero(numbers - low <= span)
                    number = numbers[at].astype(np.int64)
                    hit = wanted[np.minimum(np.searchsorted(wanted, number), len(wanted) - 1)] == number
                    found += zip(
                        (segment.address + start + shift + 4 * at[hit]).tolist(), number[hit].tolist(), strict=True
                    )
                yield from sorted(found)

    def branches(self, address: int, code: Bytes) -> Branches:
        """Return everything that looks like call rel32, jmp rel32, or jmp rel8 at the end of a function."""
        at = _positions(code, 0xE8, 0xFE)
        at = at[at + 5 <= len(code)]
        near = Branches(address + at, address + at + 5 + int32_at(code, at + 1), code[at] == 0xE8)
        # clang leaves for a neighbour in two bytes: sqlite3_close for sqlite3Close.
        at = _positions(code, 0xEB)
        at = at[at + 3 <= len(code)]
        starts = np.isin(address + at + 2, self._image.functions[0])
        at = at[starts | ((address + at + 2) % 16 == 0) | np.isin(code[at + 2], _FILLING)]
        distance = code[at + 1].view(np.int8).astype(np.int64)
        return Branches.joined((near, Branches(address + at, address + at + 2 + distance, np.zeros(len(at), bool))))

    def conditional_branches(self, address: int, code: Bytes) -> Branches:
        """Return everything that looks like jcc rel32."""
        at = _positions(code, 0x0F)
        at = at[at + 6 <= len(code)]
        at = at[(code[at + 1] & 0xF0) == 0x80]
        return Branches(address + at, address + at + 6 + int32_at(code, at + 2), np.zeros(len(at), bool))

    def is_conditional(self, site: int) -> bool:
        """Whether the branch at `site` is jcc."""
        return self._image.read(site, 1) == b"\x0f"

    def may_start(self, address: int, code: Bytes, targets: Addresses, calls: Addresses) -> Mask:
        """Tell which targets are called twice, or aligned, or behind another's end, or set up a frame."""
        at = targets - address
        previous = code[at - 1]
        framed = np.ones(len(at), bool)
        for i, byte in enumerate(_FRAME):
            framed &= code[np.minimum(at + i, len(code) - 1)] == byte
        aligned = (targets % 16 == 0) & np.isin(previous, _PADDING)
        behind_end = np.isin(previous, _PADDING[:1] + _PADDING[2:3])
        likely: Mask = aligned | behind_end | framed | (calls >= 2)
        return likely

    def stub_target(self, address: int) -> int | None:
        """Return where the procedure linkage stub at `address` leads."""
        return plt_target(self._image, address)

    def may_be_stub(self, addresses: Addresses) -> Mask:
        """Stubs begin with jmp, bnd or endbr64; a fixed-address program has none for its own functions."""
        if not self._image.position_independent:
            return np.zeros(len(addresses), bool)
        first = bytes_of_functions(self._image, addresses.astype(np.uint64), 1)[:, 0]
        return np.isin(first, (0xFF, 0xF2, 0xF3))

    def reachable(self, start: int, end: int) -> frozenset[int]:
        """Return the instructions that direct jumps from `start` reach."""
        return reachable(self._image, self._plain_decoder, start, end)

    def constants_returned(self, functions: Words) -> tuple[Mask, Addresses]:
        """For each function: is it `mov eax, N; ...`, and N.  Looks past endbr64 and a frame pointer."""
        first = bytes_of_functions(self._image, functions, 1)[:, 0]
        fifth = bytes_of_functions(self._image, functions + np.uint64(4), 1)[:, 0]
        longer = np.isin(first, _PROLOGUE) & ((fifth == _MOV_EAX) | (fifth == _PUSH_RBP))
        likely = np.flatnonzero((first == _MOV_EAX) | longer)
        constant, value = np.zeros(len(functions), bool), np.zeros(len(functions), np.int64)
        constant[likely], value[likely] = self._constants_returned(functions[likely])
        return constant, value

    def _constants_returned(self, functions: Words) -> tuple[Mask, Addresses]:
        code = bytes_of_functions(self._image, functions, 24)
        row = np.arange(len(functions))
        at = np.where((code[:, :4] == (0xF3, 0x0F, 0x1E, 0xFA)).all(axis=1), 4, 0)  # endbr64
        push = (code[row, at] == 0x55) & (code[row, at + 1] == 0x48)  # push rbp; mov rbp, rsp in either encoding
        push &= ((code[row, at + 2] == 0x89) & (code[row, at + 3] == 0xE5)) | (
            (code[row, at + 2] == 0x8B) & (code[row, at + 3] == 0xEC)
        )
        at = np.where(push, at + 4, at)
        value = np.zeros(len(functions), np.int64)
        for i in range(4):
            value |= code[row, at + 1 + i].astype(np.int64) << (8 * i)
        return code[row, at] == 0xB8, value

    def comparisons(self, address: int, code: Bytes, value: int) -> Addresses:
        """Return every `cmp reg, imm8` with this number."""
        pattern = re.compile(rb"\x83[\xf8-\xff]" + re.escape(bytes([value])))
        return address + np.array([m.start() for m in pattern.finditer(code.tobytes())], np.int64)
