"""From SQLite's source to type information: the preprocessor, gcc and pahole, in half a second a release.

Compiling all of sqlite3.c with -g takes half a minute, nearly all of it for the functions, which no layout needs.
So the functions' bodies are cut out after preprocessing, and what is left, the declarations, is compiled.
gcc describes a type only where something uses it: a pointer to each struct of the catalogue is declared at the end.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqltrace.btf.generate.canonical import CONSTANT_PREFIX, CONSTANTS, KEPT, canonical
from sqltrace.btf.reader import Btf
from sqltrace.errors import SqltraceError

DEFINED: Final = (
    *("MEM_Null", "MEM_Str", "MEM_Int", "MEM_Real", "MEM_Blob", "MEM_IntReal", "MEM_Undefined", "MEM_Invalid"),
    *("MEM_TypeMask", "MEM_Term", "MEM_Zero", "MEM_Subtype", "MEM_Dyn", "MEM_Static", "MEM_Ephem", "MEM_RowSet"),
    *("VDBE_MAGIC_INIT", "VDBE_MAGIC_RUN", "VDBE_MAGIC_HALT", "VDBE_MAGIC_RESET", "VDBE_MAGIC_DEAD"),
    *("VDBE_INIT_STATE", "VDBE_READY_STATE", "VDBE_RUN_STATE", "VDBE_HALT_STATE"),
    *("CURTYPE_BTREE", "CURTYPE_SORTER", "CURTYPE_VTAB", "CURTYPE_PSEUDO"),
    *("PAGER_OPEN", "PAGER_READER", "PAGER_WRITER_LOCKED", "PAGER_WRITER_CACHEMOD", "PAGER_WRITER_DBMOD"),
    *("PAGER_WRITER_FINISHED", "PAGER_ERROR", "PAGER_STAT_HIT", "PAGER_STAT_MISS", "PAGER_STAT_WRITE"),
    *("PAGER_STAT_SPILL", "PAGER_JOURNALMODE_DELETE", "PAGER_JOURNALMODE_PERSIST", "PAGER_JOURNALMODE_OFF"),
    *("PAGER_JOURNALMODE_TRUNCATE", "PAGER_JOURNALMODE_MEMORY", "PAGER_JOURNALMODE_WAL"),
    *("PAGER_SYNCHRONOUS_OFF", "PAGER_SYNCHRONOUS_NORMAL", "PAGER_SYNCHRONOUS_FULL", "PAGER_SYNCHRONOUS_EXTRA"),
    *("TF_WithoutRowid", "BTCF_WriteFlag"),
)
"""Constants of SQLite's source that say what the members' values mean, and that releases renumbered or may."""

_LEXEME: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|[{}]')


class CompileError(SqltraceError):
    """The compiler, the preprocessor or pahole refused."""


def types(source: str, flags: Sequence[str] = ()) -> Btf:
    """Compile a vanilla sqlite3.c with these flags; return the types that the catalogue keeps."""
    constants = "".join(f"#ifdef {n}\n{CONSTANT_PREFIX}{n} = {n},\n#endif\n" for n in DEFINED)
    anchors = "".join(f"{'' if n == 'Mem' else 'struct '}{n} *anchor_{n};\n" for n in KEPT)
    appended = f"\nenum {CONSTANTS} {{\n{constants}}} anchor_constants;\n{anchors}"
    preprocessed = _run(["gcc", "-E", "-P", "-w", *flags, "-x", "c", "-"], (source + appended).encode("latin-1"))
    declared = declarations(preprocessed.decode("latin-1")).encode("latin-1")
    with tempfile.TemporaryDirectory() as folder:
        compiled, described = Path(folder, "sqlite3.o"), Path(folder, "sqlite3.btf")
        _run(["gcc", "-c", "-g", "-O0", "-w", "-x", "c", "-", "-o", str(compiled)], declared)
        _run(["pahole", f"--btf_encode_detached={described}", str(compiled)])
        return canonical(Btf.parse(described.read_bytes()))


def declarations(preprocessed: str) -> str:
    """Return C without its functions' bodies: a brace at the outermost level behind a `)` opens one."""
    kept: list[str] = []
    depth, start, body = 0, 0, -1
    for match in _LEXEME.finditer(preprocessed):
        if match.group() == "{":
            if not depth and preprocessed[start : match.start()].rstrip().endswith(")"):
                body = match.start()
            depth += 1
        elif match.group() == "}":
            depth -= 1
            if not depth and body >= 0:
                kept += [preprocessed[start:body], ";\n"]
                start, body = match.end(), -1
    return "".join(kept) + preprocessed[start:]


def _run(command: list[str], text: bytes = b"") -> bytes:
    try:
        done = subprocess.run(command, input=text, check=False, capture_output=True)
    except FileNotFoundError as error:
        raise CompileError(f"{command[0]} is not installed. `make catalogue` installs it.") from error
    if done.returncode:
        raise CompileError(f"{command[0]} failed: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout
