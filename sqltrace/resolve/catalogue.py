"""Rung 5: where the members lie in each release's source.

Measured with offsetof on the amalgamations from 3.21.0 to 3.54.1 (tests/resolve/test_catalogue.py does it
again).  Only what hooks use is here; 64-bit Linux only.

The layout does not follow from the release alone.  Of the compile-time options, these move a member that is
listed here: SQLITE_OMIT_TRACE (also implied by SQLITE_OMIT_FLOATING_POINT) takes 8 bytes out of Vdbe;
SQLITE_MAX_ATTACHED above 30 makes two masks in front of Vdbe.aCounter larger; SQLITE_DEBUG changes nearly
everything; SQLITE_MAX_VARIABLE_NUMBER above 32767 widens Vdbe.nVar.  Where the binary does not list its options
(it never lists OMIT_TRACE), the accessors tell which of these variants it is, and what still differs between the
ones left is not claimed.

Nor does the release tell what a vendor changed: libsql calls itself 3.45.1 and has other members in Vdbe.  Its
source id ends in `alt1`, as Debian's does, which is unchanged; the accessors decide which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sqltrace.resolve.claims import FieldClaim
from sqltrace.resolve.releases import version_text

_FIRST: Final = 3021000
_END: Final = 3055000
"""Releases from _FIRST to before _END were looked at."""

_MEMBERS: Final[Mapping[str, tuple[tuple[int, int | None, int], ...]]] = {
    # (from this release on, offset, width); None: the release has no such member
    "Vdbe.db": ((3021000, 0, 8),),
    "Vdbe.nVar": ((3021000, 32, 0),),
    "Vdbe.magic": ((3021000, 36, 4), (3039000, None, 0)),  # called iVdbeMagic from 3.35
    "Vdbe.pc": ((3021000, 52, 4), (3039000, 48, 4)),
    "Vdbe.nChange": ((3021000, 60, 4), (3037000, 64, 8), (3039000, 56, 8)),
    "Vdbe.aVar": ((3021000, 160, 8), (3027000, 128, 8), (3037000, 136, 8), (3039000, 128, 8)),
    "Vdbe.eVdbeState": ((3039000, 197, 1), (3043000, 199, 1)),
    "Vdbe.aCounter": (
        (3021000, 204, 4),
        (3027000, 208, 4),
        (3037000, 216, 4),
        (3039000, 208, 4),
        (3043000, 212, 4),
    ),
    "Vdbe.zSql": ((3021000, 232, 8), (3027000, 240, 8), (3037000, 248, 8), (3038000, 256, 8), (3039000, 248, 8)),
    "sqlite3.aDb": ((3021000, 32, 8),),
    "sqlite3.errCode": ((3021000, 80, 4),),
    "sqlite3.autoCommit": ((3021000, 95, 1), (3035000, 97, 1), (3038000, 101, 1)),
    "sqlite3.nChange": ((3021000, 116, 4), (3035000, 120, 4), (3037000, 120, 8)),
    "sqlite3.nTotalChange": ((3021000, 120, 4), (3035000, 124, 4), (3037000, 128, 8)),
    "Db.pBt": ((3021000, 8, 8),),
    "Btree.pBt": ((3021000, 8, 8),),
    "BtShared.pPager": ((3021000, 0, 8),),
    "Pager.zFilename": ((3021000, 208, 8), (3039000, 216, 8)),
    "sizeof(Mem)": ((3021000, 56, 0),),
    "Mem.u": ((3021000, 0, 8),),
    "Mem.n": ((3021000, 12, 4), (3039000, 16, 4)),
    "Mem.flags": ((3021000, 8, 2), (3039000, 20, 2)),
    "MEM_Zero": ((3021000, 0x4000, 0), (3039000, 0x400, 0)),
}

_AFTER_START_TIME: Final = ("Vdbe.eVdbeState", "Vdbe.aCounter", "Vdbe.zSql")
"""Behind Vdbe.startTime, which OMIT_TRACE leaves out."""
_AFTER_MASKS: Final = ("Vdbe.aCounter", "Vdbe.zSql")
"""Behind Vdbe.btreeMask and lockMask."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile the release: how its options move members."""

    omit_trace: bool = False
    wide_masks: bool = False
    variable_number_size: int | None = None


def _option_value(options: Iterable[str], name: str) -> int | None:
    for option in options:
        key, _, value = option.partition("=")
        if key == name and value.isdigit():
            return int(value)
    return None


def variants(options: frozenset[str] | None) -> tuple[Variant, ...]:
    """Return the variants that the options (None: not known) leave possible; none where all bets are off."""
    if options is None:
        return tuple(Variant(trace, masks) for masks in (False, True) for trace in (False, True))
    if options & {"DEBUG", "OMIT_DISKIO"}:
        return ()
    size = 4 if (_option_value(options, "MAX_VARIABLE_NUMBER") or 0) > 32767 else 2
    masks = (_option_value(options, "MAX_ATTACHED") or 0) > 30
    # ctime.c lists OMIT_TRACE only where it is defined as something else than 1.
    listed = any(o.partition("=")[0] in ("OMIT_TRACE", "OMIT_FLOATING_POINT") for o in options)
    return tuple(Variant(omit_trace, masks, size) for omit_trace in ((True,) if listed else (False, True)))


def layout(release: int, variant: Variant) -> Iterator[FieldClaim]:
    """Yield the members of one release compiled in one way; nothing for a release that was not looked at."""
    if not _FIRST <= release < _END:
        return
    for name, rows in _MEMBERS.items():
        offset, width = None, 0
        for since, at, size in rows:
            if since <= release:
                offset, width = at, size
        if offset is None or (variant.wide_masks and name in _AFTER_MASKS):
            continue
        if variant.omit_trace and name in _AFTER_START_TIME:
            offset -= 8
        if name == "Vdbe.nVar":
            yield FieldClaim(name, offset, variant.variable_number_size)
        else:
            yield FieldClaim(name, offset, width)


def _fits(release: int, variant: Variant, known: Mapping[str, FieldClaim]) -> bool:
    if any(c.name in known and known[c.name].offset != c.offset for c in layout(release, variant)):
        return False
    if not variant.wide_masks:
        return True
    narrow = {c.name: c.offset for c in layout(release, replace(variant, wide_masks=False))}
    return all(known[n].offset > narrow[n] for n in _AFTER_MASKS if n in known and n in narrow)


def catalogue_claims(
    release: int, options: frozenset[str] | None, known: Mapping[str, FieldClaim], *, modified: bool
) -> list[FieldClaim]:
    """Return what the release's source says, given the fields that the binary's own code told (`known`).

    Of several possible variants, those that contradict `known` are out, and only what the rest agree on is
    returned.  When all contradict it, the answer for unmodified source is the contradiction itself (the caller
    finds it), for `modified` source nothing.
    """
    possible = variants(options)
    fitting = [v for v in possible if _fits(release, v, known)]
    if not fitting and (modified or not possible):
        return []
    layouts = [list(layout(release, v)) for v in fitting or possible[:1]]
    detail = f"source of {version_text(release)}, {_options_text(options, fitting)}"
    return [replace(c, detail=detail) for c in layouts[0] if all(c in other for other in layouts[1:])]


def _options_text(options: frozenset[str] | None, fitting: list[Variant]) -> str:
    """Say which options the layout was taken for."""
    known = "its options listed in the file" if options is not None else "its options not listed in the file"
    if any(v.omit_trace for v in fitting) and any(not v.omit_trace for v in fitting):
        return f"{known}, with or without OMIT_TRACE"
    return f"{known}, with OMIT_TRACE" if fitting and fitting[0].omit_trace else known
