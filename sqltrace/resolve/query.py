"""The resolver as backends ask it: a path in, a Resolution or nothing out."""

from __future__ import annotations

from sqltrace.errors import NoSQLiteError, NotAnImageError
from sqltrace.resolution import Resolution
from sqltrace.resolve import resolve_cached
from sqltrace.resolve.overrides import Overrides


def sqlite_in(path: str, overrides: Overrides | None = None, *, use_cache: bool = True) -> Resolution | None:
    """Return what is known of SQLite in the file, None where it holds none.

    `overrides` win over what is found, but do not make a SQLite of a file without one: a process maps many.
    Raises ResolutionError where SQLite is there but cannot be used.
    """
    try:
        return resolve_cached(path, overrides=overrides, only_sqlite=True, use_cache=use_cache)
    except (NoSQLiteError, NotAnImageError):
        return None
