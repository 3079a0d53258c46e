"""Which parts of an event need which facts, and what is off where a fact is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from sqltrace.resolution import FeatureOff

_DATABASE_PATH: Final = ("sqlite3.aDb", "Db.pBt", "Btree.pBt", "BtShared.pPager", "Pager.zFilename")
_VALUES: Final = ("Vdbe.nVar", "Vdbe.aVar", "sizeof(Mem)", "Mem.u", "Mem.n", "Mem.flags")

_NEEDS: Final = (
    ("db", _DATABASE_PATH),
    ("vars", ("Vdbe.nVar",)),
    ("bound_bytes", _VALUES),
    ("bound_bytes of zeroblobs", ("MEM_Zero",)),
    ("changes", ("Vdbe.nChange",)),
    ("changes of failed statements", ("sqlite3.nChange", "sqlite3.nTotalChange")),
    ("counters", ("Vdbe.aCounter",)),
    ("autocommit", ("sqlite3.autoCommit",)),
    ("extended rc", ("sqlite3.errCode",)),
)


def features_off(
    functions: Collection[str], fields: Collection[str], preparing: Collection[str]
) -> Iterator[FeatureOff]:
    """Yield what will not be reported, named as the members of the `statement` event, with the missing facts."""
    for feature, needed in _NEEDS:
        missing = [name for name in needed if name not in fields]
        if missing:
            yield FeatureOff(feature, f"{' and '.join(missing)} not found")
    if "Vdbe.eVdbeState" not in fields and not {"Vdbe.magic", "Vdbe.pc"} <= set(fields):
        yield FeatureOff("statements that run while sqltrace attaches", "Vdbe.eVdbeState not found")
    if not any(name in functions for name in preparing):
        yield FeatureOff("prepare", "no function of the sqlite3_prepare family found")
