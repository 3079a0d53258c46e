"""The options a SQLite was compiled with, as the binary itself lists them.

`sqlite3azCompileOpt` (ctime.c) is an array of pointers to texts such as "THREADSAFE=1", in alphabetical order;
THREADSAFE is always among them.  SQLITE_OMIT_COMPILEOPTION_DIAGS leaves the array out.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from sqltrace.resolve.image import Image, PointerTable

_ANCHORS: Final = (b"THREADSAFE=0", b"THREADSAFE=1", b"THREADSAFE=2")
_OPTION: Final = re.compile(r"[A-Z0-9_]{3,}(=.*)?")
_MOST: Final = 500
_MOST_LISTS: Final = 100
"""More pointers to one option are no lists."""


def _option_at(image: Image, table: PointerTable, index: int) -> str | None:
    if not 0 <= index < len(table.words):
        return None
    text = image.cstring(int(table.words[index]), 100)
    decoded = text.decode("latin-1") if text else ""
    return decoded if _OPTION.fullmatch(decoded) else None


def compile_options(image: Image) -> frozenset[str] | None:
    """Return the options, as in {"OMIT_TRACE", "THREADSAFE=1"}; None when the file has no (or no single) list."""
    lists = set()
    for address, _ in image.find_ends(_ANCHORS, image.constants):
        for table in image.pointers:
            for index in np.flatnonzero(table.words == np.uint64(address))[:_MOST_LISTS].tolist():
                lists.add(_around(image, table, index))
    return lists.pop() if len(lists) == 1 else None


def _around(image: Image, table: PointerTable, index: int) -> frozenset[str]:
    found: set[str] = set()
    for step in (-1, 1):
        for i in range(index, index + step * _MOST, step):
            option = _option_at(image, table, i)
            if option is None:
                break
            found.add(option)
    return frozenset(found)
