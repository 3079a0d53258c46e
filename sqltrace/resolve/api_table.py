"""Rung 2: the table of all public functions that SQLite hands to loadable extensions.

`sqlite3_api_routines` (sqlite3ext.h, filled in by loadext.c) is one constant array of pointers to some 270
functions in an order that never changes.  Almost every static build holds it; SQLITE_OMIT_LOAD_EXTENSION
leaves it out.

The anchor is sqlite3_libversion_number: a function of the form `return 3050004`.  Around each pointer to
such a function stands a candidate; it counts if everything fits: only null or code pointers in a long run, and
a sqlite3_libversion (or sqlite3_sourceid) that returns a text of the same release.  The run of code pointers
goes on behind the table, so that the release decides how many of them belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from sqltrace.errors import AmbiguousResolutionError
from sqltrace.resolve.api_slots import LIBVERSION_NUMBER, SLOTS, slot_count
from sqltrace.resolve.code import code_of
from sqltrace.resolve.image import Image
from sqltrace.resolve.releases import version_text
from sqltrace.resolve.symbolic import Executor

_LEAST_RUN: Final = 150
_LEAST_FUNCTIONS: Final = 100
"""The oldest table that matters (3.7.16) has 192 members; options null at most a few dozen."""
_MOST_CANDIDATES: Final = 1000
"""Real files have one or two."""

_SOURCE_ID: Final = re.compile(rb"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ApiTable:
    """The table: where it is, of which release, and where each function that is not null starts."""

    address: int
    release: int
    source_id: str | None
    functions: Mapping[str, int]

    def detail(self, name: str) -> str:
        """Return which slot of the table has this function."""
        slot = SLOTS.index(name.removeprefix("sqlite3_"))
        return f"slot {slot} of sqlite3_api_routines at {self.address:#x} (at {self.address + 8 * slot:#x})"


def _candidates(image: Image) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (address, release, pointers) of each run of pointers that may be the table."""
    code = code_of(image)
    low = min(s.address for s in image.code)
    high = max(s.end for s in image.code)
    for table in image.pointers:
        words = table.words
        is_code = (words >= np.uint64(low)) & (words < np.uint64(high))
        index = np.flatnonzero(is_code)
        index = index[(index > LIBVERSION_NUMBER) & (index < len(words) - _LEAST_FUNCTIONS)]
        index = index[is_code[index - 1] & is_code[index + 1]]
        constant, value = code.constants_returned(words[index])
        # 3.MM.PP: without the limits on both parts other constants pass by the hundred.
        fits = constant & (value // 1000000 == 3) & (value // 1000 % 1000 < 100) & (value % 1000 < 100)
        for i in np.flatnonzero(fits)[:_MOST_CANDIDATES].tolist():
            start = int(index[i]) - LIBVERSION_NUMBER
            run = words[start : start + len(SLOTS)]
            member = is_code[start : start + len(SLOTS)] | (run == 0)
            stop = int(np.argmin(member)) if not member.all() else len(member)
            count = min(stop, slot_count(int(value[i])))
            if stop >= _LEAST_RUN and int((run[:count] != 0).sum()) >= _LEAST_FUNCTIONS:
                if count < slot_count(int(value[i])) and stop < len(run):
                    continue  # a table of that release is longer
                yield table.address + 8 * start, int(value[i]), run[:count].tolist()


def _text_returned(image: Image, executor: Executor, function: int) -> str | None:
    """Return the string that a function without arguments always returns."""
    texts = set()
    for value in executor.run(function).returns:
        text = image.cstring(value.constant, 128) if value.is_constant else None
        texts.add(text)
    only = texts.pop() if len(texts) == 1 else None
    return only.decode("latin-1") if only is not None else None


def find_api_table(image: Image, executor: Executor) -> ApiTable | None:
    """Return the file's table, None when it holds none.  Raises AmbiguousResolutionError when it holds several."""
    found: list[ApiTable] = []
    for address, release, pointers in _candidates(image):
        functions = {f"sqlite3_{name}": p for name, p in zip(SLOTS, pointers, strict=False) if p}
        if not all(map(image.is_code, functions.values())):
            continue
        version = _text_returned(image, executor, functions.get("sqlite3_libversion", 0))
        source_id = None
        if "sqlite3_sourceid" in functions:
            source_id = _text_returned(image, executor, functions["sqlite3_sourceid"])
        if source_id is not None and not _SOURCE_ID.match(source_id.encode("latin-1")):
            source_id = None
        known = version == version_text(release) if version is not None else source_id is not None
        if known:
            found.append(ApiTable(address, release, source_id, functions))
    if len({t.functions.get("sqlite3_step") for t in found}) > 1:
        sides = ", ".join(f"SQLite {version_text(t.release)} with its table at {t.address:#x}" for t in found)
        raise AmbiguousResolutionError(f"{image.path} holds more than one SQLite: {sides}")
    return found[0] if found else None
