"""What SQLite's compile-time options do to the layouts, and what a binary tells about them.

Found by compiling 3.8.11.1, 3.19.3, 3.34.0, 3.43.2 and 3.54.1 with each of 73 options alone; those listed here were
then compiled with each of the 85 releases (a test does it again for two).  Two kinds matter:

* OMIT_TRACE (also implied by OMIT_FLOATING_POINT), DEBUG, MAX_ATTACHED above 30 and MAX_VARIABLE_NUMBER change
  Vdbe, and all hooks need Vdbe.  The catalogue has each of these variants.
* MOVERS move only members that few hooks need.  The catalogue does not have them: where such an option is set, or
  may be set, the members in question are not certain.

A program can list its options (`PRAGMA compile_options`), so that most binaries hold the names of those that they
were built with (ctime.c: sqlite3azCompileOpt), unless built with OMIT_COMPILEOPTION_DIAGS as Chromium is.  Not
every release lists every option.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqltrace.btf.store import Version, version_key

MOVERS: Final = {
    # option: the first members of a struct that it moves, all behind them move too; "Struct." only its size changes
    "ENABLE_COLUMN_USED_MASK": ("VdbeCursor.cacheStatus", "VdbeCursor.pCache", "VdbeCursor.aType"),
    "ENABLE_NORMALIZE": ("Vdbe.pFree", "Table.pIndex"),  # the latter in 3.26 only
    "ENABLE_PREUPDATE_HOOK": ("sqlite3.xWalCallback",),
    "ENABLE_SETLK_TIMEOUT": ("sqlite3.nSavepoint", "Pager."),
    "ENABLE_STAT3": ("Index.colNotIdxed", "Index."),
    "ENABLE_STAT4": ("Index.colNotIdxed", "Index."),
    "ENABLE_STMT_SCANSTATUS": ("Vdbe.",),
    "ENABLE_UNLOCK_NOTIFY": ("sqlite3.",),
    "HAS_CODEC": ("BtShared.btsFlags", "Pager.pTmpSpace"),
    "OMIT_ALTERTABLE": ("Table.addColOffset",),
    "OMIT_AUTHORIZATION": ("sqlite3.xAuth",),
    "OMIT_AUTOVACUUM": ("BtShared.autoVacuum",),
    "OMIT_CHECK": ("Table.pCheck",),
    "OMIT_DEPRECATED": ("sqlite3.xProfile",),
    "OMIT_PROGRESS_CALLBACK": ("sqlite3.xProgress",),
    "OMIT_SHARED_CACHE": ("BtShared.nRef", "Btree.lock", "BtLock.pBtree"),
    "OMIT_TWOSIZE_LOOKASIDE": ("sqlite3.lookaside", "Lookaside.pSmallInit"),
    "OMIT_VIRTUALTABLE": (
        *("sqlite3.nVTrans", "sqlite3.aModule", "Table.nModuleArg", "Table.pVTable", "Column.isHidden"),
    ),
    "OMIT_WAL": ("sqlite3.xWalCallback", "Pager.pWal"),
    "TEST": ("Pager.xReiniter",),
    "USER_AUTHENTICATION": ("sqlite3.",),
}

_LISTED_FROM: Final = {
    "ENABLE_STMT_SCANSTATUS": (3, 20),
    "ENABLE_PREUPDATE_HOOK": (3, 20),
    "ENABLE_COLUMN_USED_MASK": (3, 20),
    "MAX_ATTACHED": (3, 20),
    "MAX_VARIABLE_NUMBER": (3, 20),
    "OMIT_TWOSIZE_LOOKASIDE": (999,),
}
"""Where an option's absence from the list begins to mean something; for all others it always does."""
_ABSENT_BEFORE: Final = {
    "ENABLE_STMT_SCANSTATUS": (3, 8, 8),
    "ENABLE_PREUPDATE_HOOK": (3, 13),
    "ENABLE_COLUMN_USED_MASK": (3, 8, 11),
    "ENABLE_SETLK_TIMEOUT": (3, 50),
    "OMIT_TWOSIZE_LOOKASIDE": (3, 31),
}
"""Before these releases there was no such option to be set, or it moved nothing."""
_BYTE_MASKS: Final = (3, 8, 6)
"""From this release on yDbMask is an array of bytes when wide, before it was one 64-bit integer."""
_INT_FROM_32767: Final = (3, 32)
"""From this release on 32,767 variables make ynVar an int, before 32,768 did."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile a release; `mask_bytes` is the size of a yDbMask that is not the usual int, else 0."""

    debug: bool = False
    omit_trace: bool = False
    mask_bytes: int = 0
    wide_variables: bool = False

    def __str__(self) -> str:
        """Name the options that make this variant."""
        names = (
            "DEBUG" if self.debug else "",
            "OMIT_TRACE" if self.omit_trace else "",
            f"MAX_ATTACHED: {self.mask_bytes}-byte masks" if self.mask_bytes else "",
            "MAX_VARIABLE_NUMBER>32767" if self.wide_variables else "",
        )
        return ", ".join(filter(None, names)) or "default"


def option_value(options: frozenset[str], name: str) -> int | None:
    """Return n of the option `name=n`, None when it is not among them."""
    for option in options:
        key, _, value = option.removeprefix("SQLITE_").partition("=")
        if key == name and value.isascii() and value.isdigit() and len(value) < 12:
            return int(value)
    return None


def mask_bytes(version: str, max_attached: int) -> int:
    """Return Variant.mask_bytes for a build with this SQLITE_MAX_ATTACHED."""
    if max_attached <= 30:
        return 0
    return (min(max_attached, 125) + 9) // 8 if version_key(version) >= _BYTE_MASKS else 8


def wide_variables(version: str, max_variable_number: int) -> bool:
    """Return Variant.wide_variables for a build with this SQLITE_MAX_VARIABLE_NUMBER."""
    return max_variable_number > (32766 if version_key(version) >= _INT_FROM_32767 else 32767)


def variants(version: str, options: frozenset[str] | None) -> Iterator[Variant]:
    """Yield the variants that a binary's list of options leaves possible, the likeliest first; None: no list.

    None is possible with OMIT_DISKIO, which has no pager.
    """
    names = frozenset(o.removeprefix("SQLITE_").partition("=")[0] for o in options or ())
    if "OMIT_DISKIO" in names:
        return
    # OMIT_TRACE=1 is not listed from 3.36 on (ctime.c: "# if SQLITE_OMIT_TRACE != 1").
    traces = (True,) if names & {"OMIT_TRACE", "OMIT_FLOATING_POINT"} else (False, True)
    debugs = (False, True) if options is None else ("DEBUG" in names,)
    attached = _limit(version, options, "MAX_ATTACHED")
    numbers = _limit(version, options, "MAX_VARIABLE_NUMBER")
    masks = dict.fromkeys(mask_bytes(version, n) for n in (range(30, 126) if attached is None else (attached,)))
    widths = (False, True) if numbers is None else (wide_variables(version, numbers),)
    for mask in masks:
        for debug in debugs:
            for omit_trace in traces:
                for wide in widths:
                    yield Variant(debug, omit_trace, mask, wide)


def _limit(version: str, options: frozenset[str] | None, name: str) -> int | None:
    """Return the value of a limit, 0 for the default, None when it may be anything."""
    if options is None:
        return None
    value = option_value(options, name)
    if value is None and version_key(version) >= _LISTED_FROM[name]:
        return 0
    return value


def movers(version: str, options: frozenset[str] | None, *, modified: bool = False) -> frozenset[str]:
    """Return those of MOVERS that are set in this build, or may be.

    `modified`: the source is not vanilla.  SQLCipher's trees have HAS_CODEC without listing it.
    """
    key = version_key(version)
    names = frozenset(o.removeprefix("SQLITE_").partition("=")[0] for o in options or ())
    return frozenset(o for o in MOVERS if o in names or _hidden(o, key, options is not None, modified))


def _hidden(option: str, version: Version, listed: bool, modified: bool) -> bool:
    """Return whether an option that is not in the list may be set all the same."""
    if option == "HAS_CODEC":
        return modified or (not listed and version < (3, 32))
    if version < _ABSENT_BEFORE.get(option, ()):
        return False
    return not listed or version < _LISTED_FROM.get(option, ())
