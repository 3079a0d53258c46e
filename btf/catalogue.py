"""Where SQLite's members lie, by release and compile-time options.

`claims` is for the resolver: given what a binary tells of its release and options, and what its own code told of
some members, it returns the places on which all variants agree that are still possible.  `layout_for` is for one
variant that is known.

86 releases are covered: those whose source could be had as a package.  Another one is answered from a covered one:
of the same minor version (the next later, else the last), else from the next later covered release.  Compared with
the sources of the 27 releases from 3.20 on that are not covered, that gave the right places for every member that
hooks use; "the nearest earlier release" would have been wrong for seven.  Before 3.16 layouts changed from release to
release, and an uncovered one is only answered when its neighbours on both sides have the same layout.  Releases later
than the last covered minor version are not answered.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqltrace.btf import store
from sqltrace.btf.options import MOVERS, Variant, mask_bytes, movers, variants, wide_variables
from sqltrace.btf.reader import Btf, Place
from sqltrace.btf.relayout import Meaning, relaid

_RULE_FROM: Final = (3, 16)
_CONSTANTS: Final = "sqltrace_constants"
_RENAMED: Final = {"Vdbe.magic": "Vdbe.iVdbeMagic"}
"""Members under their first name, and what later releases call them."""
_SIZEOF: Final = re.compile(r"sizeof\((\w+)\)")


@dataclass(frozen=True, slots=True)
class Claim:
    """A member lies at `offset` and is `size` bytes wide (None: that differs between the variants left).

    Of an array, `size` is that of an element, which is what code loads.  For `sizeof(Mem)` and for a constant such as
    `MEM_Zero`, `offset` is the value and `size` is 0.
    """

    name: str
    offset: int
    size: int | None


@dataclass(frozen=True)
class Layout:
    """The structs of one release in one variant; `covered_by` is the release whose source they were taken from."""

    version: str
    covered_by: str
    variant: Variant
    btf: Btf

    def place(self, name: str) -> Place | None:
        """Return where `Struct.member` lies, None when this release has no such member."""
        return self.btf.place(name) or (self.btf.place(_RENAMED[name]) if name in _RENAMED else None)

    def offset(self, name: str) -> tuple[int, int] | None:
        """Return the offset and the size of `Struct.member` in bytes; None for what is absent or a bit-field."""
        place = self.place(name)
        return (place.offset, place.size) if place is not None and not place.bit_size else None

    def sizeof(self, name: str) -> int | None:
        """Return the size of a struct in bytes."""
        return self.btf.sizeof(name)

    @functools.cached_property
    def constants(self) -> Mapping[str, int]:
        """The #defines of this release that give members their meaning: MEM_Zero, VDBE_RUN_STATE, ..."""
        return self.btf.enumerators(_CONSTANTS)

    def claim(self, name: str) -> Claim | None:
        """Return what this layout says of `Struct.member`, `sizeof(Struct)` or a constant."""
        asked_size = _SIZEOF.fullmatch(name)
        if asked_size:
            size = self.sizeof(asked_size.group(1))
            return Claim(name, size, 0) if size else None
        if "." in name:
            place = self.place(name)
            return Claim(name, place.offset, place.element) if place is not None and not place.bit_size else None
        return Claim(name, self.constants[name], 0) if name in self.constants else None

    def moved_by(self, name: str, options: Iterable[str]) -> bool:
        """Return whether any of these options (of MOVERS) moves a member, or for `sizeof(Struct)` resizes it."""
        asked_size = _SIZEOF.fullmatch(name)
        struct = asked_size.group(1) if asked_size else name.partition(".")[0]
        firsts = [first for option in options for first in MOVERS[option] if first.partition(".")[0] == struct]
        if asked_size:
            return bool(firsts)
        place = self.place(name)
        places = [self.btf.place(first) for first in firsts]
        return place is not None and any(p is not None and place.offset >= p.offset for p in places)


def covering(version: str) -> str | None:
    """Return the covered release that answers for a release, None when none does.  Raises ValueError for garbage."""
    known = list(store.entries())
    if version in known:
        return version
    key = store.version_key(version)
    earlier = [v for v in known if store.version_key(v) < key]
    later = [v for v in known if store.version_key(v) > key]
    if key < _RULE_FROM:
        if earlier and later and _entry(earlier[-1]).layouts == _entry(later[0]).layouts:
            return later[0]
        return None
    same_minor = [v for v in (*later[:1], *earlier[-1:]) if store.version_key(v)[:2] == key[:2]]
    return next(iter(same_minor or later), None)


def version_of(source_id: str) -> str | None:
    """Return the covered release with this source id: by the time of its check-in, which vendors leave alone."""
    for version, entry in store.entries().items():
        if len(source_id) >= 19 and entry.source_id[:19] == source_id[:19]:
            return version
    return None


@functools.lru_cache(maxsize=256)
def layout(version: str, variant: Variant) -> Layout | None:
    """Return the layout of a release in one variant, None when the release is not covered."""
    covered_by = covering(version)
    if covered_by is None:
        return None
    files = _entry(covered_by).layouts
    stored = files["debug" if variant.debug else "omit_trace" if variant.omit_trace else "default"]
    btf = _parsed(stored)
    typedefs: dict[str, Meaning] = {}
    if variant.mask_bytes:
        array = store.version_key(covered_by) >= (3, 8, 6)
        typedefs["yDbMask"] = Meaning(1, variant.mask_bytes) if array else Meaning(variant.mask_bytes)
    if variant.wide_variables:
        typedefs["ynVar"] = Meaning(4)
    without = "Vdbe.startTime" if variant.debug and variant.omit_trace else ""
    if typedefs or without:
        btf = relaid(btf, typedefs, without)
    return Layout(version, covered_by, variant, btf)


def layout_for(
    version: str,
    *,
    max_attached: int | None = None,
    max_variable_number: int | None = None,
    omit_trace: bool = False,
    debug: bool = False,
) -> Layout | None:
    """Return a release's layout when compiled with these options, None when the release is not covered."""
    masks = mask_bytes(version, max_attached or 0)
    wide = wide_variables(version, max_variable_number or 0)
    return layout(version, Variant(debug, omit_trace, masks, wide))


def claims(
    version: str,
    options: frozenset[str] | None,
    known: Mapping[str, int],
    names: Iterable[str],
    *,
    modified: bool = False,
) -> list[Claim]:
    """Return what the catalogue says for sure of these names.

    `options` are those found in the binary, None when it has no list; `known` the offsets that its own code told;
    `modified`: a vendor changed the source.  Variants that contradict `known` are out, and only what all others
    agree on is returned.  When all contradict it, an unmodified source's answer is that of the likeliest variant, so
    that the caller meets the contradiction; for a modified one there is no answer.
    """
    possible = [found for v in variants(version, options) if (found := layout(version, v)) is not None]
    fitting = [candidate for candidate in possible if _fits(candidate, known)]
    if not fitting and modified:
        return []
    left = fitting or possible[:1]
    uncertain = movers(version, options, modified=modified)
    agreed: list[Claim] = []
    for name in names:
        said = [None if candidate.moved_by(name, uncertain) else candidate.claim(name) for candidate in left]
        claim = _common(said)
        if claim is not None:
            agreed.append(claim)
    return agreed


def _common(said: list[Claim | None]) -> Claim | None:
    first = said[0] if said else None
    if first is None or any(c is None or c.offset != first.offset for c in said):
        return None
    same_size = all(c is not None and c.size == first.size for c in said)
    return first if same_size else Claim(first.name, first.offset, None)


def _fits(candidate: Layout, known: Mapping[str, int]) -> bool:
    for name, offset in known.items():
        claim = candidate.claim(name)
        if claim is not None and claim.offset != offset:
            return False
    return True


def _entry(version: str) -> store.Entry:
    return store.entries()[version]


@functools.lru_cache(maxsize=32)
def _parsed(file: str) -> Btf:
    return Btf.parse(store.files()[file])
