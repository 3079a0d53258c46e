"""SQLite's source, release by release, out of the packages that carry it.

sqlite.org offers only the newest releases' sources to download by a known name, but bindings bundle the
amalgamation (sqlite3.c): sources.csv says which version of which package on npm or PyPI holds which release, and
where in its archive; or of which Debian suite the source package is (apt.py).  `!` in such a path separates an
archive from the path inside it; the first folder of the outer path, which every package names differently, is left
out.

A few of them are not the vanilla source; `vanilla` undoes what their owners did.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqltrace.btf.generate import apt
from sqltrace.errors import SqltraceError

SOURCES: Final = Path(__file__).with_name("sources.csv")
_JOINED: Final = {"npm": "@", "pypi": "==", "apt": "="}


_CODEC: Final = re.compile(r"^#define SQLITE_HAS_CODEC\b.*|^#include <stropts\.h>", re.MULTILINE)
_SQLCIPHER: Final = re.compile(
    r"^/\*+ Begin file crypto\.c \*.*?(?=^/\*+ Begin file global\.c \*)", re.MULTILINE | re.DOTALL
)
_NEEDED: Final = re.compile(
    r"^/\*+ Begin file btreeInt\.h \*.*?^/\*+ End of btreeInt\.h \*[^\n]*\n"
    r"|^#include <(?:sys/\w+|unistd|fcntl|errno|time)\.h>\n",
    re.MULTILINE | re.DOTALL,
)


class FetchError(SqltraceError):
    """A package could not be fetched, or does not hold what sources.csv says."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one release's sqlite3.c is: a row of sources.csv."""

    version: str
    registry: str
    package: str
    package_version: str
    path: str

    @property
    def package_name(self) -> str:
        """The package with its version, as the registry's own client takes it."""
        return f"{self.package}{_JOINED[self.registry]}{self.package_version}"


@dataclass(frozen=True, slots=True)
class Amalgamation:
    """One release's sqlite3.c as its package has it, and the checksum of that."""

    source: Source
    text: str
    sha256: str


def sources() -> tuple[Source, ...]:
    """Return all that is known, oldest release first."""
    with SOURCES.open(newline="") as stream:
        return tuple(Source(**row) for row in csv.DictReader(stream))


def fetch(source: Source, cache: Path) -> Amalgamation:
    """Return one release's source, from `cache` or else from its registry.  Raises FetchError."""
    kept = cache / source.version / "sqlite3.c"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_bytes(_download(source))
        partial.rename(kept)
    content = kept.read_bytes()
    text = content.decode("latin-1")
    if f'"{source.version}"' not in text:
        raise FetchError(f"{source.package_name} does not hold SQLite {source.version}: correct {SOURCES.name}")
    return Amalgamation(source, text, hashlib.sha256(content).hexdigest())


def vanilla(text: str) -> str:
    """Return the source with what vendors added undone, as far as it moves members or hinders the compiler.

    SQLCipher and sqleet switch SQLITE_HAS_CODEC on, which adds members to Pager and BtShared; without it nothing
    of theirs is compiled.  But SQLCipher's crypto.c stands first and includes SQLite's btreeInt.h and the system's
    headers, which are not included again: these stay.  sqleet asks for a header that glibc no longer has.  Expo
    prefixes every name.
    """
    text = _CODEC.sub("", text).replace("exsqlite3", "sqlite3")
    crypto = _SQLCIPHER.search(text)
    if crypto is not None:
        needed = "".join(m.group() for m in _NEEDED.finditer(crypto.group()))
        text = text[: crypto.start()] + needed + text[crypto.end() :]
    return text


def _download(source: Source) -> bytes:
    if source.registry == "apt":
        return apt.amalgamation(source.package, source.package_version, source.path)
    with tempfile.TemporaryDirectory() as folder:
        if source.registry == "npm":
            command = ["npm", "pack", "--silent", source.package_name]
        else:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command = [*pip, "--no-deps", "--no-binary", ":all:", "--no-build-isolation", source.package_name]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        files = list(Path(folder).iterdir())
        if done.returncode or len(files) != 1:
            raise FetchError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        outer, *inner = source.path.split("!")
        content = _member(files[0].read_bytes(), outer, strip_first=True)
        for path in inner:
            content = _member(content, path, strip_first=False)
        return content


def _member(archive: bytes, path: str, *, strip_first: bool) -> bytes:
    for name, content in _files(archive):
        if (name.partition("/")[2] if strip_first else name.removeprefix("./")) == path:
            return content
    raise FetchError(f"no {path} in the archive: correct {SOURCES.name}")


def _files(archive: bytes) -> Iterator[tuple[str, bytes]]:
    if archive.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            for name in zipped.namelist():
                if not name.endswith("/"):
                    yield name, zipped.read(name)
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()
