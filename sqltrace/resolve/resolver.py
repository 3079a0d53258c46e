"""The ladder: asks each rung, adds up what they claim, and says what is missing.

Rungs, strongest first: symbol tables, the API table, strings and call graph, accessors, the catalogue.  A file
is asked first whether it holds a source id at all, which every SQLite does since 3.6.18 (sqlite3ReportError
prints it): that rejects other libraries in milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from sqltrace.errors import AmbiguousResolutionError, NoSQLiteError, ResolutionError
from sqltrace.resolution import STAND_INS, Evidence, FeatureOff, Function, Resolution
from sqltrace.resolve.accessors import accessor_claims
from sqltrace.resolve.api_table import ApiTable, find_api_table
from sqltrace.resolve.catalogue import catalogue_claims
from sqltrace.resolve.claims import Claims, Detail, FieldClaim
from sqltrace.resolve.code import CHUNK, executor_of
from sqltrace.resolve.features import features_off
from sqltrace.resolve.formats import read_image, read_images
from sqltrace.resolve.image import Image, Segment
from sqltrace.resolve.options import compile_options
from sqltrace.resolve.overrides import Overrides
from sqltrace.resolve.releases import release_of, version_text
from sqltrace.resolve.starts import objection
from sqltrace.resolve.strings import string_evidence
from sqltrace.resolve.symbolic import Executor
from sqltrace.resolve.symbols import NamedFunction, named_functions
from sqltrace.resolve.translations import translation

_SOURCE_ID: Final = re.compile(rb"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [0-9a-f]{36}(?:[0-9a-f]{24})?[0-9a-z]{4}\b")
_SOURCE_ID_BEGINS: Final = b"20"
_HYPHEN, _FIRST_HYPHEN, _SECOND_HYPHEN = ord("-"), 4, 7
_VERSION: Final = re.compile(rb"(?<=\0)3\.(\d{1,2})\.(\d{1,2})(?=\0)")

PREPARE_FAMILY: Final = tuple(f"sqlite3_prepare{wide}{v}" for wide in ("", "16") for v in ("", "_v2", "_v3"))
REQUIRED_FUNCTIONS: Final = ("sqlite3_step", "sqlite3_reset", "sqlite3_finalize")
HOOKED: Final = (*REQUIRED_FUNCTIONS, *PREPARE_FAMILY)
PUBLIC_FUNCTIONS: Final = (
    *("sqlite3_close", "sqlite3_close_v2", "sqlite3_exec"),
    *(f"sqlite3_bind_{value}" for value in ("blob", "blob64", "double", "int", "int64", "null", "pointer", "text")),
    *(f"sqlite3_bind_{value}" for value in ("text16", "text64", "value", "zeroblob", "zeroblob64")),
)
INTERNAL_FUNCTIONS: Final = (
    *("sqlite3VdbeExec", "sqlite3VdbeHalt", "sqlite3VdbeReset"),
    *("sqlite3BtreeInsert", "sqlite3BtreeDelete"),
)
LOCK_AND_PREPARE: Final = "sqlite3LockAndPrepare"
"""Only looked for where sqlite3_prepare_v2 is inlined in its callers; connection and text are its first arguments."""
OPTIONAL_FUNCTIONS: Final = (*PUBLIC_FUNCTIONS, *INTERNAL_FUNCTIONS, LOCK_AND_PREPARE)
"""Where the evidence for one of these disagrees, it is left out and nothing else suffers."""
FUNCTIONS: Final = (*HOOKED, *PUBLIC_FUNCTIONS, *INTERNAL_FUNCTIONS)
_ORDER: Final = {name: i for i, name in enumerate(FUNCTIONS)}
_COUNTERS_BY_OP: Final = 3008000
REQUIRED_FIELDS: Final = ("Vdbe.db", "Vdbe.zSql")
_WIDTH_MATTERS: Final = ("Vdbe.nVar", "Vdbe.nChange", "sqlite3.nChange", "sqlite3.nTotalChange")
"""Fields that hooks read 2, 4 or 8 bytes wide: without the width they are of no use."""
_SURPRISES: Final = (ArithmeticError, LookupError, ValueError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class Explained:
    """A resolution, and for each function and field in it what each piece of evidence saw."""

    resolution: Resolution
    details: Mapping[str, tuple[Detail, ...]]


def resolve(path: str | os.PathLike[str], *, overrides: Overrides | None = None) -> Resolution:
    """Find SQLite's functions and struct members in a binary.

    Raises NotAnImageError (no binary that can be read), NoSQLiteError, ResolutionError (something without which
    nothing works was not found) and AmbiguousResolutionError (evidence disagrees).
    """
    return explain(path, overrides=overrides).resolution


def explain(path: str | os.PathLike[str], *, overrides: Overrides | None = None) -> Explained:
    """Like `resolve`, with the details of all evidence."""
    return explain_image(read_image(path), overrides=overrides)


def explain_all(path: str | os.PathLike[str], *, overrides: Overrides | None = None) -> list[Explained]:
    """Like `explain`, for each architecture of a universal binary that holds SQLite."""
    found, failures = [], []
    for image in read_images(path):
        try:
            found.append(explain_image(image, overrides=overrides))
        except (NoSQLiteError, ResolutionError) as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return found


def resolve_image(image: Image, *, overrides: Overrides | None = None) -> Resolution:
    """Like `resolve`, for a file that is open already."""
    return explain_image(image, overrides=overrides).resolution


def explain_image(image: Image, *, overrides: Overrides | None = None) -> Explained:
    """Like `resolve_image`, with the details of all evidence."""
    try:
        return _Ladder(image, overrides or Overrides()).climb()
    except _SURPRISES as error:
        # Fuzzing finds none of these any more; whoever feeds us the next one still gets a sentence.
        raise ResolutionError(f"{image.path} seems to be damaged: {type(error).__name__}: {error}") from error


def source_ids(image: Image) -> set[str]:
    """Return the texts that look like SQLite's source id, from code only where there are none among the data.

    Every file that a process maps is asked.
    """
    code = [s for s in image.segments if s.executable]
    return _source_ids(image, [s for s in image.segments if not s.executable]) or _source_ids(image, code)


def _source_ids(image: Image, segments: Iterable[Segment]) -> set[str]:
    """Look for the date's two hyphens: numpy is six times as fast as the regular expression is at its beginning."""
    found = set()
    for segment in segments:
        content = image.array[segment.offset : segment.offset + segment.size]
        last = len(content) - _SECOND_HYPHEN
        for start in range(0, last, CHUNK):
            stop = min(start + CHUNK, last)
            hyphens = content[start + _FIRST_HYPHEN : stop + _FIRST_HYPHEN] == _HYPHEN
            hyphens &= content[start + _SECOND_HYPHEN : stop + _SECOND_HYPHEN] == _HYPHEN
            at = np.flatnonzero(hyphens) + start
            at = at[(content[at] == _SOURCE_ID_BEGINS[0]) & (content[at + 1] == _SOURCE_ID_BEGINS[1])]
            for offset in (at + segment.offset).tolist():
                match = _SOURCE_ID.match(image.data, offset, segment.offset + segment.size)
                if match is not None:
                    found.add(match.group().decode())
    return found


class _Ladder:
    """One resolution."""

    def __init__(self, image: Image, overrides: Overrides) -> None:
        self._image = image
        self._overrides = overrides
        self._claims = Claims(image.path, optional=OPTIONAL_FUNCTIONS)

    @cached_property
    def _executor(self) -> Executor:
        # Only for files with SQLite: setting up a disassembler takes as long as dismissing a megabyte.
        return executor_of(self._image)

    def climb(self) -> Explained:
        image, claims = self._image, self._claims
        ids = source_ids(image)
        if not image.code or (not ids and not self._overrides.functions):
            raise NoSQLiteError(f"{image.path} holds no SQLite")
        for name, address in self._overrides.functions.items():
            claims.add_function(name, address, Evidence.OVERRIDE)
        for name, given in self._overrides.layout.items():
            claims.add_field(FieldClaim(name, given.offset, given.size or None), Evidence.OVERRIDE)

        named = named_functions(image)
        table = find_api_table(image, self._executor)
        functions = self._named_functions(named, table)
        source_id = self._source_id(table, ids)
        release = self._release(table, functions, source_id)
        strings = string_evidence(image, self._executor)
        if not functions and not strings.anchors and not self._overrides.functions:
            self._refuse_translation()
            raise NoSQLiteError(f"{image.path} names a SQLite release but holds no SQLite")
        for name, address in strings.functions.items():
            if name == LOCK_AND_PREPARE and "sqlite3_prepare_v2" in functions:
                continue
            claims.add_function(name, address, Evidence.STRINGS, strings.details.get(name, ""))
        accessors = accessor_claims(self._executor, functions, release or 0)
        for claim in _usable(release, (*strings.fields, *accessors)):
            claims.add_field(claim, Evidence.ACCESSOR)
        if release is not None:
            modified = source_id is None or not re.fullmatch("[0-9a-f]*", source_id[20:])
            known = {n: c for n in _field_names(claims) if (c := claims.field(n)) is not None}
            said = catalogue_claims(release, compile_options(image), known, modified=modified)
            for claim in _usable(release, said):
                claims.add_field(claim, Evidence.CATALOGUE)
        resolution = self._result(release, source_id)
        details = {n: d for n, d in claims.details().items() if n in resolution.functions or n in resolution.layout}
        return Explained(resolution, details)

    def _named_functions(self, named: Mapping[str, NamedFunction], table: ApiTable | None) -> dict[str, int]:
        """Claim what the first two rungs found; return every function they know."""
        functions: dict[str, int] = {}
        for name, found in named.items():
            functions[name] = found.address
            if name in FUNCTIONS:
                self._claims.add_function(name, found.address, Evidence.SYMBOL, f"{found.symbol} in {found.table}")
        if table is not None:
            for name, address in table.functions.items():
                functions.setdefault(name, address)
                if name in FUNCTIONS:
                    self._claims.add_function(name, address, Evidence.API_TABLE, table.detail(name))
        return functions

    def _source_id(self, table: ApiTable | None, ids: set[str]) -> str | None:
        if table is not None and table.source_id is not None:
            return table.source_id
        return next(iter(ids)) if len(ids) == 1 else None

    def _release(self, table: ApiTable | None, functions: Mapping[str, int], source_id: str | None) -> int | None:
        """Return the release as in 3050004: from the table, sqlite3_libversion_number, the source id or its text."""
        if table is not None:
            return table.release
        if "sqlite3_libversion_number" in functions:
            returns = set(self._executor.run(functions["sqlite3_libversion_number"]).returns)
            if len(returns) == 1 and (value := returns.pop()).is_constant:
                return value.constant
        release = release_of(source_id) if source_id is not None else None
        if release is None:
            texts = {m.groups() for m in self._image.search(_VERSION)}
            if len(texts) == 1:
                minor, patch = texts.pop()
                return 3000000 + 1000 * int(minor) + int(patch)
        return release

    def _result(self, release: int | None, source_id: str | None) -> Resolution:
        image = self._image
        functions = dict(sorted(self._claims.functions(), key=lambda item: _ORDER.get(item[0], len(_ORDER))))
        layout = {n: f for n, f in self._claims.fields() if f.size or n not in _WIDTH_MATTERS}
        missing = [n for n in REQUIRED_FUNCTIONS if not {n, STAND_INS.get(n)} & functions.keys()]
        needed = {STAND_INS[n] for n in STAND_INS if n not in functions}
        missing += [n for n in REQUIRED_FIELDS if n not in layout]
        if missing:
            self._refuse_translation()
            raise ResolutionError(
                f"{image.path} holds SQLite{' ' + version_text(release) if release else ''}, "
                f"but {' and '.join(missing)} could not be found; --offset and --layout can say where they are"
            )
        disputes = dict(self._claims.disputes())
        for name, function in list(functions.items()):
            try:
                self._check_start(name, function)
            except ResolutionError as error:
                if name not in OPTIONAL_FUNCTIONS or name in needed or Evidence.OVERRIDE in function.evidence:
                    raise
                disputes[name] = str(error)
                del functions[name]
        return Resolution(
            path=image.path,
            format=image.format,
            arch=image.arch,
            build_id=image.build_id,
            sqlite_version=version_text(release) if release else None,
            source_id=source_id,
            functions=functions,
            layout=dict(sorted(layout.items())),
            features_off=(
                *features_off(functions, layout, (*PREPARE_FAMILY, LOCK_AND_PREPARE)),
                *(FeatureOff(name, reason) for name, reason in disputes.items()),
            ),
        )

    def _refuse_translation(self) -> None:
        """Raise ResolutionError where this is no C at all."""
        port = translation(self._image)
        if port is not None:
            raise ResolutionError(
                f"{self._image.path} holds SQLite translated to Go ({port}), not C: it has none of the functions that "
                "can be traced"
            )

    def _check_start(self, name: str, function: Function) -> None:
        """Raise ResolutionError unless a function can start here."""
        address, image = function.address, self._image
        if Evidence.OVERRIDE in function.evidence:
            reason = objection(image, self._executor, address)
            if reason is not None:
                raise ResolutionError(f"{image.path}: {name} at {address:#x} {reason}; correct --offset")
            return
        if not image.is_code(address):
            raise ResolutionError(f"{image.path}: {name} at {address:#x} would not lie in executable code")
        if image.contradicts_start(address):
            raise AmbiguousResolutionError(
                f"{image.path}: {name} should start at {address:#x}, but unwind data has that in mid-function"
            )


def _usable(release: int | None, claims: Iterable[FieldClaim]) -> Iterator[FieldClaim]:
    """Yield the claims about members that mean what hooks take them for.

    Before 3.8.0 sqlite3_stmt_status(op) read aCounter[op-1], and there were other counters.
    """
    for claim in claims:
        if claim.name != "Vdbe.aCounter" or release is None or release >= _COUNTERS_BY_OP:
            yield claim


def _field_names(claims: Claims) -> list[str]:
    return [name for name, _ in claims.fields()]
