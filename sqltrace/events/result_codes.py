"""Names of SQLite's result codes, primary and extended, without the `SQLITE_` prefix.

From sqlite3.h of 3.53; a code that a later release adds is shown by its primary name and number.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
ROW: Final = 100
DONE: Final = 101

_PRIMARY = {
    0: "OK",
    1: "ERROR",
    2: "INTERNAL",
    3: "PERM",
    4: "ABORT",
    5: "BUSY",
    6: "LOCKED",
    7: "NOMEM",
    8: "READONLY",
    9: "INTERRUPT",
    10: "IOERR",
    11: "CORRUPT",
    12: "NOTFOUND",
    13: "FULL",
    14: "CANTOPEN",
    15: "PROTOCOL",
    16: "EMPTY",
    17: "SCHEMA",
    18: "TOOBIG",
    19: "CONSTRAINT",
    20: "MISMATCH",
    21: "MISUSE",
    22: "NOLFS",
    23: "AUTH",
    24: "FORMAT",
    25: "RANGE",
    26: "NOTADB",
    27: "NOTICE",
    28: "WARNING",
    100: "ROW",
    101: "DONE",
}

# Extended code = primary | n << 8, n counting from 1 in this order.
_EXTENDED = {
    0: ("LOAD_PERMANENTLY", "SYMLINK"),
    1: ("MISSING_COLLSEQ", "RETRY", "SNAPSHOT", "RESERVESIZE", "KEY", "UNABLE"),
    4: ("", "ROLLBACK"),
    5: ("RECOVERY", "SNAPSHOT", "TIMEOUT"),
    6: ("SHAREDCACHE", "VTAB"),
    8: ("RECOVERY", "CANTLOCK", "ROLLBACK", "DBMOVED", "CANTINIT", "DIRECTORY"),
    10: (
        "READ",
        "SHORT_READ",
        "WRITE",
        "FSYNC",
        "DIR_FSYNC",
        "TRUNCATE",
        "FSTAT",
        "UNLOCK",
        "RDLOCK",
        "DELETE",
        "BLOCKED",
        "NOMEM",
        "ACCESS",
        "CHECKRESERVEDLOCK",
        "LOCK",
        "CLOSE",
        "DIR_CLOSE",
        "SHMOPEN",
        "SHMSIZE",
        "SHMLOCK",
        "SHMMAP",
        "SEEK",
        "DELETE_NOENT",
        "MMAP",
        "GETTEMPPATH",
        "CONVPATH",
        "VNODE",
        "AUTH",
        "BEGIN_ATOMIC",
        "COMMIT_ATOMIC",
        "ROLLBACK_ATOMIC",
        "DATA",
        "CORRUPTFS",
        "IN_PAGE",
        "BADKEY",
        "CODEC",
    ),
    11: ("VTAB", "SEQUENCE", "INDEX"),
    14: ("NOTEMPDIR", "ISDIR", "FULLPATH", "CONVPATH", "DIRTYWAL", "SYMLINK"),
    19: (
        "CHECK",
        "COMMITHOOK",
        "FOREIGNKEY",
        "FUNCTION",
        "NOTNULL",
        "PRIMARYKEY",
        "TRIGGER",
        "UNIQUE",
        "VTAB",
        "ROWID",
        "PINNED",
        "DATATYPE",
    ),
    23: ("USER",),
    27: ("RECOVER_WAL", "RECOVER_ROLLBACK", "RBU"),
    28: ("AUTOINDEX",),
}

_NAMES: Final = _PRIMARY | {
    primary | (number + 1) << 8: f"{_PRIMARY[primary]}_{suffix}"
    for primary, suffixes in _EXTENDED.items()
    for number, suffix in enumerate(suffixes)
    if suffix
}


def rc_name(rc: int) -> str:
    """Return the name of a result code: `DONE`, `CONSTRAINT_UNIQUE`; `ERROR(12345)` for an unknown extended one."""
    name = _NAMES.get(rc)
    if name is not None:
        return name
    primary = _PRIMARY.get(rc & 0xFF) if rc >= 0 else None
    return f"{primary or 'UNKNOWN'}({rc})"
