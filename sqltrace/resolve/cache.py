"""Remembers resolutions, and that a file holds no SQLite, between runs.

An entry is keyed by the build-id, the file's size and its first 64 KiB (content hash where there is no
build-id), and by the resolver's own source, so that an improved resolver never meets an old answer.  A build-id
alone would let anybody's file speak for the system's library: it is whatever its author wrote into the note.
Hashing a large file without a build-id takes half a second, so that its hash is remembered, too, under what the
file system says of the file.

The cache must never be the reason for a failure or for a wrong answer.  What cannot be read is resolved again,
what cannot be written is not; entries appear by rename, complete.  Under sudo HOME may still be the user's: a
directory or an entry that is not our own is neither trusted nor written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import sqltrace.btf
import sqltrace.resolve
from sqltrace.errors import NoSQLiteError, OutputError
from sqltrace.resolution import Resolution
from sqltrace.resolve.formats import read_image
from sqltrace.resolve.image import Image
from sqltrace.resolve.overrides import Overrides
from sqltrace.resolve.resolver import resolve_image, source_ids

_HEAD: Final = 64 << 10
_LARGEST_ENTRY: Final = 1 << 20
_SETTLED: Final = 2
"""Seconds: a file that changed later than so long ago may change again under the same time stamp."""
_OURS: Final = re.compile(r"[0-9a-f]{64}\.(json|hash)|\.[0-9A-Za-z_]{8}")
"""An entry, the hash of a file without a build-id, or the beginning of one whose writer was killed."""
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_NOTHING: Final = object()


def resolve_cached(
    path: str | os.PathLike[str],
    *,
    overrides: Overrides | None = None,
    only_sqlite: bool = False,
    use_cache: bool = True,
) -> Resolution:
    """Like `resolve`, from the cache where it can be; with overrides the cache is left alone.

    With `only_sqlite`, NoSQLiteError is raised for a file without a source id even where overrides name functions.
    """
    before = _identity(path)
    image = read_image(path)
    if overrides and only_sqlite and not source_ids(image):
        raise NoSQLiteError(f"{image.path} holds no SQLite")
    directory = _directory() if use_cache and not overrides else None
    if directory is None:
        return resolve_image(image, overrides=overrides)
    # The same before and after the file was opened: it is this one.
    identity = before if before == _identity(path) else None
    entry = directory / f"{_key(image, directory, identity)}.json"
    known = _read(entry, image.path)
    if known is not None:
        return known
    try:
        resolution = resolve_image(image)
    except NoSQLiteError:
        _write(entry, {"resolution": None})
        raise
    _write(entry, {"resolution": resolution.to_json()})
    return resolution


def clear_cache() -> int:
    """Forget every remembered resolution and return how many there were.  Raises OutputError.

    Whoever resolves meanwhile is not disturbed: an entry that vanishes is one that was never there.
    """
    directory = _directory(create=False)
    if directory is None:
        return 0
    count = 0
    try:
        for entry in directory.iterdir():
            if _OURS.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
                count += entry.suffix == ".json"
    except OSError as error:
        raise OutputError(f"cannot clear {directory}: {error.strerror}") from None
    return count


@cache
def _resolver_version() -> bytes:
    """Return a digest of the resolver's and the catalogue's files."""
    digest = hashlib.sha256()
    for package in (sqltrace.resolve, sqltrace.btf):
        for file in sorted(Path(str(package.__file__)).parent.iterdir()):
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.digest()


def _identity(path: str | os.PathLike[str]) -> str | None:
    """Return what tells this content of this file from every other; None where that is not sure."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if time.time() - status.st_ctime < _SETTLED:
        return None
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _key(image: Image, directory: Path, identity: str | None) -> str:
    digest = hashlib.sha256(_resolver_version())
    digest.update(f"{image.build_id}:{image.size}:".encode())
    if image.build_id or identity is None:
        _add_content(digest, image)
        return digest.hexdigest()
    # Numbers of devices are given out again; the beginning of the file is not the same then.
    quick = hashlib.sha256(_resolver_version() + identity.encode() + image.data[:_HEAD]).hexdigest()
    known = _load(directory / f"{quick}.hash", "content")
    if isinstance(known, str) and _HASH.fullmatch(known):
        return known
    _add_content(digest, image)
    _write(directory / f"{quick}.hash", {"content": digest.hexdigest()})
    return digest.hexdigest()


def _add_content(digest: hashlib._Hash, image: Image) -> None:
    if image.build_id:
        digest.update(image.data[:_HEAD])
    else:
        for segment in image.segments:
            digest.update(image.data[segment.offset : segment.offset + segment.size])


def _directory(*, create: bool = True) -> Path | None:
    """Return our own cache directory, created when needed; None when there is none that can be trusted."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if not base.is_absolute():
            return None
        directory = base / "sqltrace"
        if not directory.exists():
            if not create:
                return None
            nearest = next(p for p in directory.parents if p.exists())
            if nearest.stat().st_uid != os.geteuid():
                return None
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except (OSError, RuntimeError):
        return None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return directory if ours else None


def _read(entry: Path, path: str) -> Resolution | None:
    """Return a remembered resolution for `path`; None when there is none.  Raises NoSQLiteError when that is known."""
    known = _load(entry, "resolution")
    if known is _NOTHING:
        return None
    if known is None:
        raise NoSQLiteError(f"{path} holds no SQLite")
    try:
        return Resolution.from_json({**known, "path": path})
    except _DAMAGED:
        return None


def _load(entry: Path, what: str) -> Any:
    """Return one value of an entry of ours, _NOTHING where it cannot be read."""
    try:
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if os.fstat(fd).st_uid != os.geteuid():
                return _NOTHING
            return json.loads(file.read(_LARGEST_ENTRY))[what]
    except (OSError, *_DAMAGED):
        return _NOTHING


def _write(entry: Path, content: dict[str, Any]) -> None:
    """Put an entry in place at once, or not at all."""
    temporary = None
    try:
        fd, temporary = tempfile.mkstemp(prefix=".", dir=entry.parent)
        with os.fdopen(fd, "w") as file:
            json.dump(content, file)
        os.replace(temporary, entry)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
