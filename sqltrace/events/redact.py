"""Encryption keys never reach a log: `PRAGMA key`, `PRAGMA rekey` and their kin, and `ATTACH ... KEY`.

SQLCipher, SEE and sqlite3mc take the key as SQL text.  Everything after the keyword is replaced by `?`.
"""

from __future__ import annotations

import re

_GAP = rb"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_KEY = re.compile(
    rb"(\bPRAGMA"
    + _GAP
    + rb"(?:[\w\"`\[\]']+"
    + _GAP
    + rb"\."
    + _GAP
    + rb")?[\"'`\[]?(?:hex|text)?(?:re)?key[\"'`\]]?"
    + _GAP
    + rb"[=(])[^;]*"
    + rb"|(\bATTACH\b(?:[^;']|'(?:[^']|'')*')*?\bKEY\b)(?:[^;']|'(?:[^']|'')*')*",
    re.IGNORECASE | re.DOTALL,
)


def redact_keys(sql: bytes) -> bytes:
    """Return the text with encryption keys replaced by `?`; a text without any comes back as it is."""
    lower = sql[:4096].lower()
    if b"key" not in lower or (b"pragma" not in lower and b"attach" not in lower):
        return sql
    return _KEY.sub(lambda m: (m[1] or m[2]) + b" ?", sql)
