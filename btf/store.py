"""The catalogue's two files: index.json, one line a release, and layouts.tar.xz, one .btf a distinct layout.

Most releases leave the structs alone, so that several share a file; it is named after the first of them.  The
files are much alike: together they compress to a tenth of what they would take one by one.
"""

from __future__ import annotations

import functools
import io
import json
import lzma
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sqltrace.btf.reader import BtfError

INDEX: Final = Path(__file__).with_name("index.json")
ARCHIVE: Final = Path(__file__).with_name("layouts.tar.xz")

GENERATOR: Final = 1
"""Raised when the same source gives other files than before."""

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One covered release.

    `origin` is the package that its source came from, `sha256` the checksum of its sqlite3.c there, `source_id`
    what that calls itself (vendors change it), `layouts` the file for each compiled variant.
    """

    source_id: str
    origin: str
    sha256: str
    layouts: Mapping[str, str]


def version_key(version: str) -> Version:
    """Return `3.8.11.1` as (3, 8, 11, 1), to be compared.  Raises ValueError for what is no version."""
    parts = version.split(".")
    if not 2 <= len(parts) <= 4 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise ValueError(f"{version!r} is not a release of SQLite, such as 3.50.4")
    return tuple(int(p) for p in parts)


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Return the covered releases, oldest first."""
    return read_index(INDEX.read_bytes())


@functools.cache
def files() -> Mapping[str, bytes]:
    """Return the distinct layouts: the content of each .btf file by its name."""
    return read_archive(ARCHIVE.read_bytes())


def read_index(data: bytes) -> dict[str, Entry]:
    """Parse index.json."""
    releases = json.loads(data)["releases"]
    return {version: Entry(**releases[version]) for version in sorted(releases, key=version_key)}


def write_index(releases: Mapping[str, Entry]) -> bytes:
    """Return index.json: one line a release, so that a change reads well."""
    lines = ",\n".join(
        f"{json.dumps(version)}: {json.dumps(asdict(releases[version]))}"
        for version in sorted(releases, key=version_key)
    )
    return f'{{"generator": {GENERATOR}, "releases": {{\n{lines}\n}}}}\n'.encode()


def read_archive(data: bytes) -> dict[str, bytes]:
    """Unpack layouts.tar.xz."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data))) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is None:
                raise BtfError(f"{ARCHIVE.name} holds {member.name}, which is not a file")
            found[member.name] = stream.read()
    return found


def write_archive(layouts: Mapping[str, bytes]) -> bytes:
    """Return layouts.tar.xz: without times and owners, so that the same layouts give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in layouts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
