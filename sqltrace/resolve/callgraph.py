"""Who refers to a string, and who calls whom, in a stretch of machine code without symbols.

Both are found by scanning for byte patterns with numpy instead of disassembling: capstone needs 0.5 s for each
MiB, the scan 3 ms.  A pattern may match in the middle of an instruction, so that a match counts only where its
target is a known place: the address of an anchor string, or the start of a function.

SQLite is one translation unit (or one archive) and stays in one piece when linked, even with ThinLTO, so that
the graph is built only for a window around the references.

Function starts come from unwind data; where that has gaps (some builds have none at all) the targets of calls
stand in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from sqltrace.resolve.elf import Addresses, Bytes, Elf, Mask
from sqltrace.resolve.x86_64 import plt_target, reachable

_CHUNK: Final = 1 << 20
_LARGE: Final = 16000
_PADDING: Final = (0xCC, 0x90, 0xC3, 0x00, 0x0B)
"""What may stand before a function: int3, nop, ret, zero, the end of ud2."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An instruction at `site` computes the address `target`."""

    site: int
    target: int


def _positions(code: Bytes, byte: int, mask: int = 0xFF) -> Addresses:
    """Return where (code & mask) == byte, chunk by chunk to stay within the cache."""
    found = [
        np.flatnonzero((code[start : start + _CHUNK] & np.uint8(mask)) == byte) + start
        for start in range(0, len(code), _CHUNK)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _int32(code: Bytes, at: Addresses) -> Addresses:
    value = np.zeros(len(at), np.uint32)
    for i in range(4):
        value |= code[at + i].astype(np.uint32) << np.uint32(8 * i)
    return value.view(np.int32).astype(np.int64)


def find_references(elf: Elf, targets: Iterable[int]) -> list[Reference]:
    """Return every `lea reg, [rip + x]` (and, in a fixed-address program, `mov reg, x`) of these addresses."""
    wanted = np.array(sorted(set(targets)), dtype=np.int64)
    found: list[Reference] = []
    if not len(wanted):
        return found
    for segment in elf.code:
        code = elf.array[segment.offset : segment.offset + segment.size]
        at = _positions(code, 0x8D) - 1
        at = at[(at >= 0) & (at + 7 <= len(code))]
        at = at[((code[at] & 0xFB) == 0x48) & ((code[at + 2] & 0xC7) == 0x05)]
        target = segment.address + at + 7 + _int32(code, at + 3)
        nearest = np.minimum(np.searchsorted(wanted, target), len(wanted) - 1)
        hit = wanted[nearest] == target
        found += map(Reference, (segment.address + at[hit]).tolist(), target[hit].tolist())
    if not elf.position_independent:
        found += _immediates(elf, wanted.tolist())
    return found


def _immediates(elf: Elf, targets: Iterable[int]) -> Iterator[Reference]:
    patterns = [t.to_bytes(4, "little") for t in targets if 0 < t < 1 << 32]
    for address, pattern in elf.find_all(patterns, elf.code):
        before = elf.read(address - 2, 2)
        # mov reg, imm32; push imm32; mov [..], imm32 with an 8-bit displacement or none
        if before and (before[-1] & 0xF8 == 0xB8 or before[-1] == 0x68 or 0xC7 in elf.read(address - 3, 2)):
            yield Reference(address - 1, int.from_bytes(pattern, "little"))


class CallGraph:
    """Functions between two addresses and the direct calls among them."""

    def __init__(self, elf: Elf, low: int, high: int) -> None:
        self._elf = elf
        self._stretches: list[tuple[int, Bytes]] = []
        for segment in elf.code:
            start, end = max(low, segment.address), min(high, segment.end)
            if end - start > 16:
                offset = segment.offset + start - segment.address
                self._stretches.append((start, elf.array[offset : offset + end - start]))
        self._sites, self._targets, self._is_call = self._branches()
        self._targets = self._through_plt(self._targets)
        self.starts, self._ends = self._find_functions()
        self._owners: dict[int, int] = {}
        self._reachable: dict[int, frozenset[int]] = {}
        known = self._is_start(self._targets)
        order = np.argsort(self._sites[known], kind="stable")
        self._edge_sites = self._sites[known][order]
        self._edge_targets = self._targets[known][order]
        self._edge_is_call = self._is_call[known][order]

    # Building

    def _branches(self) -> tuple[Addresses, Addresses, Bytes]:
        """Return (site, target, is a call) of everything that looks like call rel32 or jmp rel32."""
        sites, targets, kinds = [], [], []
        for address, code in self._stretches:
            at = _positions(code, 0xE8, 0xFE)
            at = at[at + 5 <= len(code)]
            sites.append(address + at)
            targets.append(address + at + 5 + _int32(code, at + 1))
            kinds.append((code[at] == 0xE8).astype(np.uint8))
        if not sites:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
        return np.concatenate(sites), np.concatenate(targets), np.concatenate(kinds)

    def _through_plt(self, targets: Addresses) -> Addresses:
        """Replace calls of procedure linkage stubs by what the loader makes of them."""
        if not self._elf.position_independent:
            return targets
        starts = self._elf.functions[0]
        replaced = targets.copy()
        unknown = np.setdiff1d(targets, starts)
        for target in unknown[(unknown % 8 == 0)].tolist():
            pointer = plt_target(self._elf, target)
            if pointer is not None:
                replaced[targets == target] = pointer
        return replaced

    def _inside(self, addresses: Addresses) -> Mask:
        inside = np.zeros(len(addresses), bool)
        for address, code in self._stretches:
            inside |= (addresses >= address) & (addresses < address + len(code))
        return inside

    def _find_functions(self) -> tuple[Addresses, Addresses]:
        starts, ends = self._elf.functions
        inside = self._inside(starts)
        starts, ends = starts[inside], ends[inside]
        extra = self._called_in_gaps(starts, ends)
        if len(extra):
            both = np.concatenate((starts, extra))
            limits = np.concatenate((ends, np.full(len(extra), np.iinfo(np.int64).max)))
            order = np.argsort(both, kind="stable")
            starts, ends = both[order], limits[order]
        if len(starts):
            following = np.append(starts[1:], starts[-1] + 4096)
            ends = np.minimum(ends, following)
        return starts, ends

    def _called_in_gaps(self, starts: Addresses, ends: Addresses) -> Addresses:
        """Return call targets that no unwind data covers: called twice, or where a function may well start."""
        called, count = np.unique(self._targets[self._is_call == 1], return_counts=True)
        if len(starts):
            before = np.searchsorted(starts, called, "right") - 1
            covered = (before >= 0) & (called < ends[before])
            called, count = called[~covered], count[~covered]
        found = [np.zeros(0, np.int64)]
        for address, code in self._stretches:
            here = (called > address) & (called < address + len(code))
            target, times = called[here], count[here]
            previous = code[target - address - 1]
            aligned = (target % 16 == 0) & np.isin(previous, _PADDING)
            behind_end = np.isin(previous, _PADDING[:1] + _PADDING[2:3])
            found.append(target[aligned | behind_end | (times >= 2)])
        return np.concatenate(found)

    def _is_start(self, addresses: Addresses) -> Mask:
        if not len(self.starts):
            return np.zeros(len(addresses), bool)
        nearest = np.minimum(np.searchsorted(self.starts, addresses), len(self.starts) - 1)
        equal: Mask = self.starts[nearest] == addresses
        return equal

    # Asking

    def function_at(self, address: int) -> int | None:
        """Return the start of the function that holds `address`."""
        i = int(np.searchsorted(self.starts, address, "right")) - 1
        return int(self.starts[i]) if i >= 0 and address < int(self._ends[i]) else None

    def size(self, function: int) -> int:
        """Return how many bytes the function that starts here has."""
        i = int(np.searchsorted(self.starts, function))
        return int(self._ends[i]) - function

    def callees(self, function: int) -> set[int]:
        """Return the functions that this one calls or jumps to, its cold part not looked at."""
        start, end = np.searchsorted(self._edge_sites, (function, function + self.size(function)))
        return set(self._edge_targets[start:end].tolist()) - {function}

    def callers(self, function: int) -> set[int]:
        """Return the functions that call or jump to this one."""
        sites = self._edge_sites[self._edge_targets == function].tolist()
        return {owner for site in sites if (owner := self.owner_at(site)) is not None} - {function}

    def call_sites(self, caller: int, callee: int) -> list[int]:
        """Return where one function, or its cold part, calls or jumps to another."""
        sites = self._edge_sites[self._edge_targets == callee].tolist()
        return [site for site in sites if self.owner_at(site) == caller]

    def owner_at(self, address: int) -> int | None:
        """Return the function that holds `address`, or whose cold part does."""
        function = self.function_at(address)
        if function is None or not self._holds(function, address):
            return None
        return self._owner(function)

    def _holds(self, function: int, address: int) -> bool:
        """Whether `address` is in the function: where its end is a guess, it must be reachable from the start.

        Jump tables are not followed, so that the largest functions (sqlite3VdbeExec is one switch) are believed.
        """
        end = function + self.size(function)
        if self._elf.unwind_covers(function) or end - function > _LARGE:
            return True
        if function not in self._reachable:
            self._reachable[function] = reachable(self._elf, function, end)
        return address in self._reachable[function]

    def _owner(self, function: int) -> int:
        if function not in self._owners:
            self._owners[function] = self._find_owner(function)
        return self._owners[function]

    @cached_property
    def _jumps(self) -> tuple[Addresses, Addresses]:
        """(site, target) of everything that looks like a conditional or unconditional near jump."""
        sites, targets = [self._sites[self._is_call == 0]], [self._targets[self._is_call == 0]]
        for address, code in self._stretches:
            at = _positions(code, 0x0F)
            at = at[at + 6 <= len(code)]
            at = at[(code[at + 1] & 0xF0) == 0x80]
            sites.append(address + at)
            targets.append(address + at + 6 + _int32(code, at + 2))
        return np.concatenate(sites), np.concatenate(targets)

    def _find_owner(self, function: int) -> int:
        """Return whose cold part this is, itself when it is a function of its own.

        gcc moves unlikely code into a chunk with an unwind entry of its own (`.cold`): nobody calls it, one
        function jumps into it, and it jumps back into that function's middle or never returns.
        """
        if bool((self._edge_is_call[self._edge_targets == function] == 1).any()):
            return function
        end = function + self.size(function)
        sites, targets = self._jumps
        entering = (targets >= function) & (targets < end) & ((sites < function) | (sites >= end))
        owners = [o for s in sites[entering].tolist() if (o := self.function_at(s)) is not None and o != function]
        if not owners:
            return function
        likely = max(set(owners), key=owners.count)
        leaving = targets[(sites >= function) & (sites < end)]
        back = bool(((leaving > likely) & (leaving < likely + self.size(likely))).any())
        conditional = bool(np.isin(targets[entering], self.starts, invert=True).any())
        only_jumped = owners.count(likely) > 1 or back or conditional
        return likely if only_jumped or self._elf.data[self._offset(sites[entering][0])] == 0x0F else function

    def _offset(self, address: int) -> int:
        return self._elf.offset_of(int(address)) or 0
