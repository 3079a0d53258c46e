"""One release's layouts in each variant, and all releases put together without repetition."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqltrace.btf.generate.compile import types
from sqltrace.btf.generate.fetch import FetchError, Source, fetch, vanilla
from sqltrace.btf.store import Entry
from sqltrace.btf.writer import encode

FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "omit_trace": ("-DSQLITE_OMIT_TRACE",),
    "debug": ("-DSQLITE_DEBUG",),
}
"""The variants that are compiled; the others are computed from these (relayout.py)."""

_SOURCE_ID: Final = re.compile(r'^#define SQLITE_SOURCE_ID\s+"([^"]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Built:
    """One release's .btf files by variant, and where its source came from."""

    source: Source
    source_id: str
    sha256: str
    layouts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Whole:
    """The catalogue: its index and its distinct files."""

    entries: Mapping[str, Entry]
    files: Mapping[str, bytes]


def build(source: Source, cache: Path) -> Built:
    """Fetch one release's source and compile its variants.  Raises FetchError and CompileError."""
    amalgamation = fetch(source, cache)
    text = vanilla(amalgamation.text)
    source_id = _SOURCE_ID.search(text)
    if source_id is None:
        raise FetchError(f"{source.package_name} holds an sqlite3.c without a source id")
    layouts = {variant: encode(types(text, flags)) for variant, flags in FLAGS.items()}
    return Built(source, source_id.group(1), amalgamation.sha256, layouts)


def put_together(releases: Iterable[Built]) -> Whole:
    """Give each distinct layout a file, named after the first release (they come oldest first) that has it."""
    entries: dict[str, Entry] = {}
    names: dict[bytes, str] = {}
    for built in releases:
        version = built.source.version
        for variant, content in built.layouts.items():
            names.setdefault(content, f"{version}.btf" if variant == "default" else f"{version}-{variant}.btf")
        layouts = {variant: names[content] for variant, content in built.layouts.items()}
        origin = f"{built.source.registry} {built.source.package_name}"
        entries[version] = Entry(built.source_id, origin, built.sha256, layouts)
    return Whole(entries, {name: content for content, name in names.items()})
