"""arm64 machine code as patterns of 4-byte words: references, calls, jumps, stubs."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sqltrace.resolve.arm64 import Arm64, stub_target
from sqltrace.resolve.code import Branches, Reference, bytes_of_functions
from sqltrace.resolve.image import Addresses, Bytes, Image, Mask, Words
from sqltrace.resolve.symbolic import Machine

_Instructions = npt.NDArray[np.uint32]

_FARTHEST: Final = 400
"""So many instructions a base address is followed; compilers keep one for a whole function (gcc -fsection-anchors)."""
_NEAR: Final = 1
"""Pages between a base address and what is computed from it: add and sub reach 4095 bytes."""
_LINK_KEEPS: Final = 18
"""Calls may change x0 to x18."""
_RET, _RETAA, _NOP, _ZERO, _BRK = 0xD65F03C0, 0xD65F0BFF, 0xD503201F, 0, 0xD4200020
_BTI_C: Final = 0xD503245F
_PROLOGUE: Final = (_BTI_C, 0xD503233F, 0xA9BF7BFD, 0x910003FD)
"""bti c; paciasp; stp x29, x30, [sp, -16]!; mov x29, sp."""


def _words(address: int, code: Bytes) -> tuple[int, _Instructions]:
    """Return the first aligned address of the code and the instructions from there on."""
    skip = -address % 4
    count = (len(code) - skip) // 4
    return address + skip, np.frombuffer(code[skip : skip + 4 * count].tobytes(), "<u4")


def _signed(values: npt.NDArray[np.uint32], shift: int, bits: int) -> Addresses:
    field: Addresses = (values.astype(np.int64) >> shift) & ((1 << bits) - 1)
    return field - ((field >> (bits - 1)) << bits)


def _adr_immediates(words: _Instructions) -> Addresses:
    values = words.astype(np.int64)
    field: Addresses = ((values >> 29) & 3) | (((values >> 5) & 0x7FFFF) << 2)
    return field - ((field >> 20) << 21)


class _Values(NamedTuple):
    """The instructions number `at` put addresses into registers."""

    at: Addresses
    register: Addresses
    value: Addresses


def _near(start: int, words: _Instructions) -> _Values:
    """Return what adr computes."""
    at = np.flatnonzero((words & 0x9F000000) == 0x10000000).astype(np.int64)
    return _Values(at, (words[at] & 31).astype(np.int64), start + 4 * at + _adr_immediates(words[at]))


def _page_bases(start: int, words: _Instructions, wanted: Addresses) -> _Values:
    """Return what adrp computes, where that is near one of the wanted addresses."""
    pages = np.unique(np.concatenate([(wanted >> 12) + i for i in range(-_NEAR, _NEAR + 1)]))
    at = np.flatnonzero((words & 0x9F000000) == 0x90000000).astype(np.int64)
    page = ((start + 4 * at) >> 12) + _adr_immediates(words[at])
    near = np.isin(page, pages)
    return _Values(at[near], (words[at[near]] & 31).astype(np.int64), page[near] << 12)


def _derived(words: _Instructions, bases: _Values) -> _Values:
    """Return what `add x, base, n` and `sub x, base, n` compute, as long as the base stays in its register."""
    at, register, value = bases
    parts = [_Values(at[:0], register[:0], value[:0])]
    for distance in range(1, _FARTHEST + 1):
        inside = at + distance < len(words)
        at, register, value = at[inside], register[inside], value[inside]
        if not len(at):
            break
        word = words[at + distance].astype(np.int64)
        target = word & 31
        computes = (word & 0xBFC00000) == 0x91000000
        computes &= ((word >> 5) & 31) == register
        step = ((word >> 10) & 0xFFF) * np.where((word >> 30) & 1, -1, 1)
        parts.append(_Values(at[computes] + distance, target[computes], value[computes] + step[computes]))
        branch = ((word & 0x7C000000) == 0x14000000) | ((word & 0xFE000000) == 0x54000000)
        branch |= (word & 0x7C000000) == 0x34000000
        lost = ~branch & (target == register)
        lost |= ((word & 0xFC000000) == 0x94000000) & (register <= _LINK_KEEPS)
        at, register, value = at[~lost], register[~lost], value[~lost]
    return _Values(*(np.concatenate([p[i] for p in parts]) for i in range(3)))


def _ends(word: int) -> bool:
    """Whether control does not go on behind this instruction: br, ret and their like; brk; udf."""
    leaves = word & 0xFE000000 == 0xD6000000 and word >> 21 & 15 in (0, 2)
    return leaves or word & 0xFFE0001F == 0xD4200000 or word >> 16 == 0


class Arm64Code:
    """The machine code of one arm64 image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.machine: Machine = Arm64(image)

    def references(self, wanted: Addresses) -> list[Reference]:
        """Return every `adrp x, page; ...; add y, x, n` and `adr x, n` of these addresses; the site is the add."""
        found: dict[Reference, None] = {}
        for segment in self._image.code:
            start, words = _words(segment.address, self._image.array[segment.offset : segment.offset + segment.size])
            bases = _page_bases(start, words, wanted)
            derived = _derived(words, bases)
            for values in (_near(start, words), derived, _derived(words, derived)):
                nearest = np.minimum(np.searchsorted(wanted, values.value), len(wanted) - 1)
                hit = wanted[nearest] == values.value
                sites = (start + 4 * values.at[hit]).tolist()
                found |= dict.fromkeys(map(Reference, sites, values.value[hit].tolist()))
        return list(found)

    def branches(self, address: int, code: Bytes) -> Branches:
        """Return every bl and b."""
        start, words = _words(address, code)
        at = np.flatnonzero((words & 0x7C000000) == 0x14000000)
        site: Addresses = start + 4 * at.astype(np.int64)
        return Branches(site, site + 4 * _signed(words[at], 0, 26), (words[at] >> 31) == 1)

    def conditional_branches(self, address: int, code: Bytes) -> Branches:
        """Return every b.cond, cbz, cbnz, tbz and tbnz."""
        start, words = _words(address, code)
        wide = np.flatnonzero(((words & 0xFF000000) == 0x54000000) | ((words & 0x7E000000) == 0x34000000))
        short = np.flatnonzero((words & 0x7E000000) == 0x36000000)
        sites = start + 4 * np.concatenate((wide, short)).astype(np.int64)
        offsets = np.concatenate((_signed(words[wide], 5, 19), _signed(words[short], 5, 14)))
        return Branches(sites, sites + 4 * offsets, np.zeros(len(sites), bool))

    def is_conditional(self, site: int) -> bool:
        """Whether the branch at `site` is neither b nor bl."""
        return int.from_bytes(self._image.read(site, 4), "little") & 0x7C000000 != 0x14000000

    def may_start(self, address: int, code: Bytes, targets: Addresses, calls: Addresses) -> Mask:
        """Tell which targets are called twice or stand behind an instruction that does not go on."""
        aligned = (targets % 4 == 0) & (targets - address >= 4)
        before = np.zeros(len(targets), np.uint32)
        at = targets[aligned] - address - 4
        for i in range(4):
            before[aligned] |= code[at + i].astype(np.uint32) << np.uint32(8 * i)
        ends = np.isin(before, (_RET, _RETAA, _NOP, _ZERO, _BRK)) | ((before & 0xFC000000) == 0x14000000)
        likely: Mask = aligned & (ends | (calls >= 2))
        return likely

    def stub_target(self, address: int) -> int | None:
        """Return where the linkage stub at `address` leads."""
        return stub_target(self._image, address)

    def may_be_stub(self, addresses: Addresses) -> Mask:
        """Stubs begin with adrp x16 or bti c; a fixed-address program has none for its own functions."""
        if not self._image.position_independent:
            return np.zeros(len(addresses), bool)
        words = bytes_of_functions(self._image, addresses.astype(np.uint64), 4).view("<u4")[:, 0]
        likely: Mask = ((words & 0x9F00001F) == 0x90000010) | (words == _BTI_C)
        return likely

    def reachable(self, start: int, end: int) -> frozenset[int]:
        """Return the instructions that direct jumps from `start` reach."""
        _, words = _words(start, np.frombuffer(self._image.read(start, end - start), np.uint8))
        code = words.tolist()
        found: set[int] = set()
        pending = [0]
        while pending:
            at = pending.pop()
            while 0 <= at < len(code) and at not in found:
                found.add(at)
                word = code[at]
                if word & 0x7C000000 == 0x14000000 and not word >> 31:  # b
                    at += (word & 0x3FFFFFF) - ((word >> 25 & 1) << 26)
                    continue
                if word & 0xFF000000 == 0x54000000 or word & 0x7E000000 == 0x34000000:
                    pending.append(at + (word >> 5 & 0x7FFFF) - ((word >> 23 & 1) << 19))
                elif word & 0x7E000000 == 0x36000000:
                    pending.append(at + (word >> 5 & 0x3FFF) - ((word >> 18 & 1) << 14))
                elif _ends(word):
                    break
                at += 1
        return frozenset(start + 4 * i for i in found)

    def constants_returned(self, functions: Words) -> tuple[Mask, Addresses]:
        """For each function: is it `mov w0, n; movk w0, m, lsl 16; ...`, and the number."""
        words = bytes_of_functions(self._image, functions, 24).view("<u4")
        row = np.arange(len(functions))
        at = np.zeros(len(functions), np.int64)
        for _ in range(len(_PROLOGUE)):
            at += np.isin(words[row, at], _PROLOGUE)
        low, high = words[row, at], words[row, at + 1]
        fits = ((low & 0xFFE0001F) == 0x52800000) & ((high & 0xFFE0001F) == 0x72A00000)
        value = ((low >> 5) & 0xFFFF).astype(np.int64) | ((high >> 5) & 0xFFFF).astype(np.int64) << 16
        return fits, value

    def comparisons(self, address: int, code: Bytes, value: int) -> Addresses:
        """Return every `cmp w, n` with this number."""
        start, words = _words(address, code)
        return start + 4 * np.flatnonzero((words & 0xFFFFFC1F) == (0x7100001F | value << 10))
