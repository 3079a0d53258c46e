"""Who refers to a string, and who calls whom, in a stretch of machine code without symbols.

SQLite is one translation unit (or one archive) and stays in one piece when linked, even with ThinLTO, so that
the graph is built only for a window around the references.

Function starts come from unwind data; where that has gaps (some builds have none at all) the targets of calls
stand in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from sqltrace.resolve.code import Branches, Reference, code_of
from sqltrace.resolve.image import Addresses, Bytes, Image, Mask

_LARGE: Final = 16000
_LONGEST: Final = 16
"""No instruction has more bytes."""
_MOST_CHECKED: Final = 2 << 20
"""Bytes of code, a second or two: SQLite has no more, and strangers' files may have any number of calls."""


def find_references(image: Image, targets: Iterable[int]) -> list[Reference]:
    """Return every instruction that computes one of these addresses."""
    wanted = np.array(sorted(set(targets)), dtype=np.int64)
    return code_of(image).references(wanted) if len(wanted) else []


class _Jumps:
    """Jumps by where they are and by where they lead; thousands of functions ask."""

    def __init__(self, sites: Addresses, targets: Addresses) -> None:
        self._sites, self._targets = sites, targets
        self._by_target = np.argsort(targets, kind="stable")
        self._sorted_targets = targets[self._by_target]
        by_site = np.argsort(sites, kind="stable")
        self._sorted_sites, self._targets_by_site = sites[by_site], targets[by_site]

    def into(self, start: int, end: int) -> tuple[Addresses, Addresses]:
        """Return sites and targets of the jumps to an address in [start, end), unconditional ones first."""
        low, high = np.searchsorted(self._sorted_targets, (start, end))
        index = np.sort(self._by_target[low:high])
        return self._sites[index], self._targets[index]

    def from_within(self, start: int, end: int) -> Addresses:
        """Return the targets of the jumps at an address in [start, end)."""
        low, high = np.searchsorted(self._sorted_sites, (start, end))
        return self._targets_by_site[low:high]


class CallGraph:
    """Functions between two addresses and the direct calls among them."""

    def __init__(self, image: Image, low: int, high: int) -> None:
        self._image = image
        self._code = code_of(image)
        self._stretches: list[tuple[int, Bytes]] = []
        for segment in image.code:
            start, end = max(low, segment.address), min(high, segment.end)
            if end - start > 16:
                offset = segment.offset + start - segment.address
                self._stretches.append((start, image.array[offset : offset + end - start]))
        branches = Branches.joined(self._code.branches(*stretch) for stretch in self._stretches)
        self._sites, self._is_call = branches.sites, branches.is_call
        self._targets = self._through_stubs(branches.targets)
        self.starts, self._ends = self._find_functions()
        self._owners: dict[int, int] = {}
        self._reachable: dict[int, frozenset[int]] = {}
        known = self._is_start(self._targets)
        order = np.argsort(self._sites[known], kind="stable")
        self._edge_sites = self._sites[known][order]
        self._edge_targets = self._targets[known][order]
        self._edge_is_call = self._is_call[known][order]

    # Building

    def _through_stubs(self, targets: Addresses) -> Addresses:
        """Replace calls of linkage stubs by what the loader makes of them."""
        replaced = targets.copy()
        unknown = np.unique(targets)
        starts = self._image.functions[0]
        if len(starts):
            nearest = np.minimum(np.searchsorted(starts, unknown), len(starts) - 1)
            unknown = unknown[starts[nearest] != unknown]
        for target in unknown[self._code.may_be_stub(unknown)].tolist():
            pointer = self._code.stub_target(target)
            if pointer is not None:
                replaced[targets == target] = pointer
        return replaced

    def _inside(self, addresses: Addresses) -> Mask:
        inside = np.zeros(len(addresses), bool)
        for address, code in self._stretches:
            inside |= (addresses >= address) & (addresses < address + len(code))
        return inside

    def _find_functions(self) -> tuple[Addresses, Addresses]:
        starts, ends = self._image.functions
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
        called, count = np.unique(self._targets[self._is_call], return_counts=True)
        if len(starts):
            before = np.searchsorted(starts, called, "right") - 1
            covered = (before >= 0) & (called < ends[before])
            called, count = called[~covered], count[~covered]
        found = [np.zeros(0, np.int64)]
        for address, code in self._stretches:
            here = (called > address) & (called < address + len(code))
            target, times = called[here], count[here]
            found.append(target[self._code.may_start(address, code, target, times)])
        return self._really_called(np.concatenate((starts, *found)), np.concatenate(found))

    def _really_called(self, starts: Addresses, guessed: Addresses) -> Addresses:
        """Return the guessed starts without those whose only call lies within an instruction, and so is none.

        A loop's head may be aligned like a function and stand behind a zero; taken for a start, it would part one.
        """
        starts = np.sort(starts)
        order = np.argsort(self._targets[self._is_call], kind="stable")
        sites, targets = self._sites[self._is_call][order], self._targets[self._is_call][order]
        first, behind = np.searchsorted(targets, guessed), np.searchsorted(targets, guessed, "right")
        once = np.flatnonzero(behind - first == 1)
        sites = sites[first[once]]
        callers = np.searchsorted(starts, sites, "right") - 1
        callers -= (callers >= 0) & (starts[callers] == guessed[once])
        near = np.flatnonzero((callers >= 0) & (sites - starts[callers] < _LARGE))
        near = near[np.argsort(callers[near], kind="stable")]
        keep = np.ones(len(guessed), bool)
        budget = _MOST_CHECKED
        for here in np.split(near, np.flatnonzero(np.diff(callers[near])) + 1) if len(near) else ():
            start, end = int(starts[callers[here[0]]]), int(sites[here].max()) + _LONGEST
            budget -= end - start
            if budget < 0:
                break
            reached = np.array(sorted(self._code.reachable(start, end)), np.int64)
            if len(reached):
                last = reached[np.searchsorted(reached, sites[here], "right") - 1]
                for i in np.flatnonzero((last < sites[here]) & (sites[here] < last + _LONGEST)).tolist():
                    size = self._code.machine.size_at(int(last[i]))
                    keep[once[here[i]]] = sites[here[i]] >= last[i] + size
        return guessed[keep]

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

    def callers_among(self, function: int, allowed: Collection[int]) -> set[int] | None:
        """Return `callers` where all of them are `allowed`, else None: the first that is not ends the search."""
        found: set[int] = set()
        for site in self._edge_sites[self._edge_targets == function].tolist():
            owner = self.owner_at(site)
            if owner is not None and owner != function:
                if owner not in allowed:
                    return None
                found.add(owner)
        return found

    def call_sites(self, caller: int, callee: int) -> list[int]:
        """Return where one function, or its cold part, calls or jumps to another."""
        sites = self._edge_sites[self._edge_targets == callee].tolist()
        return [site for site in sites if self.owner_at(site) == caller]

    def comparing_with(self, value: int) -> list[int]:
        """Return the functions in which something is compared with this small number."""
        sites = [s for address, code in self._stretches for s in self._code.comparisons(address, code, value).tolist()]
        # The end of the instruction, too, has to lie in the function.
        both = ((self.function_at(site), self.function_at(site + 2)) for site in sites)
        return sorted({start for start, end in both if start is not None and start == end})

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
        if self._image.unwind_covers(function) or end - function > _LARGE:
            return True
        if function not in self._reachable:
            self._reachable[function] = self._code.reachable(function, end)
        return address in self._reachable[function]

    def _owner(self, function: int) -> int:
        if function not in self._owners:
            self._owners[function] = self._find_owner(function)
        return self._owners[function]

    @cached_property
    def _jumps(self) -> _Jumps:
        """Everything that looks like a conditional or unconditional near jump."""
        conditional = Branches.joined(self._code.conditional_branches(*stretch) for stretch in self._stretches)
        sites = np.concatenate((self._sites[~self._is_call], conditional.sites))
        return _Jumps(sites, np.concatenate((self._targets[~self._is_call], conditional.targets)))

    def _find_owner(self, function: int) -> int:
        """Return whose cold part this is, itself when it is a function of its own.

        gcc moves unlikely code into a chunk with an unwind entry of its own (`.cold`): nobody calls it, one
        function jumps into it, and it jumps back into that function's middle or never returns.
        """
        if bool(self._edge_is_call[self._edge_targets == function].any()):
            return function
        end = function + self.size(function)
        sites, targets = self._jumps.into(function, end)
        entering = (sites < function) | (sites >= end)
        owners = [o for s in sites[entering].tolist() if (o := self.function_at(s)) is not None and o != function]
        if not owners:
            return function
        likely = max(set(owners), key=owners.count)
        leaving = self._jumps.from_within(function, end)
        back = bool(((leaving > likely) & (leaving < likely + self.size(likely))).any())
        conditional = bool(np.isin(targets[entering], self.starts, invert=True).any())
        only_jumped = owners.count(likely) > 1 or back or conditional
        return likely if only_jumped or self._code.is_conditional(int(sites[entering][0])) else function
