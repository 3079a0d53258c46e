"""Finds SQLite's functions and struct members in a binary, stripped and static ones included."""

from __future__ import annotations

from sqltrace.resolve.cache import clear_cache, resolve_cached
from sqltrace.resolve.describe import describe
from sqltrace.resolve.overrides import Overrides, parse_overrides
from sqltrace.resolve.resolver import Explained, explain, explain_all, resolve

__all__ = [
    "Explained",
    "Overrides",
    "clear_cache",
    "describe",
    "explain",
    "explain_all",
    "parse_overrides",
    "resolve",
    "resolve_cached",
]
