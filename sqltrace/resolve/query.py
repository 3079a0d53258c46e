"""The resolver as backends ask it: a path in, a Resolution or nothing out."""

from __future__ import annotations

from sqltrace.errors import NoSQLiteError, NotAnImageError
from sqltrace.resolution import Resolution
from sqltrace.resolve import resolve_cached


def sqlite_in(path: str) -> Resolution | None:
    """Return what is known of SQLite in the file, None where it holds none.

    Raises ResolutionError where SQLite is there but cannot be used.
    """
    try:
        return resolve_cached(path)
    except (NoSQLiteError, NotAnImageError):
        return None
