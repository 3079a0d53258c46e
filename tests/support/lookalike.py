"""A library of 20 kB that resolves as SQLite does, and its near misses: lookalike.c, compiled in a blink.

What a rung wants of SQLite is all there, so that leaving out or bending one thing shows what this one is good for.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from pathlib import Path
from typing import Final

from sqltrace.resolve.api_slots import SLOTS, slot_count
from tests.support.sqlite_builds import BUILD, Twin

RELEASE: Final = 3050004
_SOURCE: Final = Path(__file__).with_suffix(".c")
_WRITTEN_OUT: Final = frozenset(
    (
        *("step", "reset", "finalize", "prepare", "prepare_v2", "prepare_v3", "close", "close_v2", "stmt_status"),
        *("sql", "db_handle", "bind_parameter_count", "libversion", "libversion_number", "sourceid", "log"),
    )
)
"""Functions that lookalike.c has; all other members of the table lead to a function that does nothing."""
FLAGS: Final = ("-O2", "-fno-ipa-icf", "-fno-tree-tail-merge", "-fvisibility=hidden", "-fPIC", "-nostdlib", "-shared")


def lookalike(*defines: str, flags: tuple[str, ...] = FLAGS) -> Twin:
    """Compile lookalike.c with these macros (`SKEW_NO_TABLE`, `ZSQL=240`)."""
    members = SLOTS[: slot_count(RELEASE)]
    header = _macro("SLOTS", members) + _macro("FILLERS", [name for name in members if name not in _WRITTEN_OUT])
    options = [*flags, *(f"-D{define}" for define in defines)]
    key = hashlib.sha256("\0".join([*options, header, _SOURCE.read_text()]).encode()).hexdigest()[:16]
    directory = BUILD / "lookalike" / key
    twin = Twin(directory / "lookalike.so", directory / "lookalike.stripped.so")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not twin.stripped.exists():
            (directory / "slots.h").write_text(header)
            command = ["gcc", "-w", *options, "-include", directory / "slots.h", _SOURCE, "-o", twin.unstripped]
            subprocess.run(command, check=True)
            partial = directory / "partial"
            subprocess.run(["strip", twin.unstripped, "-o", partial], check=True)
            partial.rename(twin.stripped)
    return twin


def _macro(name: str, members: list[str] | tuple[str, ...]) -> str:
    return f"#define {name}(_) " + " ".join(f"_({member})" for member in members) + "\n"
