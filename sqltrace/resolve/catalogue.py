"""Rung 5: where the members lie in each release's source, from the type catalogue (sqltrace.btf).

The layout does not follow from the release alone: compile-time options move members, and a binary may not list
them.  Then the accessors tell which variants it can be, and what still differs between the ones left is not claimed.

Nor does the release tell what a vendor changed: libsql calls itself 3.45.1 and has other members in Vdbe.  Its
source id ends in `alt1`, as Debian's does, which is unchanged; the accessors decide which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqltrace.btf.catalogue import claims, covering, layout_for
from sqltrace.resolve.claims import FieldClaim
from sqltrace.resolve.releases import version_text

FIELDS: Final = (
    "Vdbe.db",
    "Vdbe.nVar",
    "Vdbe.magic",
    "Vdbe.pc",
    "Vdbe.nChange",
    "Vdbe.aVar",
    "Vdbe.eVdbeState",
    "Vdbe.aCounter",
    "Vdbe.zSql",
    "Vdbe.pVList",
    "sqlite3.aDb",
    "sqlite3.nDb",
    "sqlite3.errCode",
    "sqlite3.autoCommit",
    "sqlite3.nChange",
    "sqlite3.nTotalChange",
    "sizeof(Db)",
    "Db.zDbSName",
    "Db.pBt",
    "Db.safety_level",
    "Db.pSchema",
    "Btree.pBt",
    "BtShared.pPager",
    "Pager.zFilename",
    "Pager.eState",
    "Pager.journalMode",
    "Pager.noSync",
    "Pager.fullSync",
    "Pager.aStat",
    "sizeof(Mem)",
    "Mem.u",
    "Mem.z",
    "Mem.n",
    "Mem.flags",
    "Mem.enc",
    "MEM_Zero",
    "BtCursor.pBtree",
    "BtCursor.pgnoRoot",
    "BtCursor.info",
    "BtCursor.pKeyInfo",
    "BtreePayload.pKey",
    "BtreePayload.nKey",
    "BtreePayload.pData",
    "BtreePayload.nData",
    "BtreePayload.nZero",
    "Schema.tblHash",
    "Table.zName",
    "Table.tnum",
)
"""What hooks use, and what they will use for rows and pages."""


def catalogue_claims(
    release: int, options: frozenset[str] | None, known: Mapping[str, FieldClaim], *, modified: bool
) -> list[FieldClaim]:
    """Return what the release's source says, given the fields that the binary's own code told (`known`).

    Of several possible variants, those that contradict `known` are out, and only what the rest agree on is
    returned.  When all contradict it, the answer for unmodified source is the contradiction itself (the caller
    finds it), for `modified` source nothing.  Nothing, too, for a release that the catalogue does not answer.
    """
    version = version_text(release)
    found = claims(version, options, {n: c.offset for n, c in known.items()}, FIELDS, modified=modified)
    source = covering(version) or version
    taken = version if source == version else f"{source}, which stands for {version}"
    listed = "its options listed in the file" if options is not None else "its options not listed in the file"
    detail = f"source of {taken}, {listed}{_without_trace(version, known)}"
    return [FieldClaim(c.name, c.offset, c.size, detail=detail) for c in found]


def _without_trace(version: str, known: Mapping[str, FieldClaim]) -> str:
    """Say so where the binary's own code shows that SQLite was compiled with OMIT_TRACE, which no binary lists."""
    plain, traceless = layout_for(version), layout_for(version, omit_trace=True)
    if plain is None or traceless is None or "Vdbe.zSql" not in known:
        return ""
    places = (plain.offset("Vdbe.zSql"), traceless.offset("Vdbe.zSql"))
    at = [place[0] == known["Vdbe.zSql"].offset for place in places if place is not None]
    return ", with OMIT_TRACE" if at == [False, True] else ""
