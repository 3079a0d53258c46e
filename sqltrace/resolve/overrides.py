"""What the user says about a binary: `--offset sqlite3_step=0x1234` and `--layout FILE`.

For builds that no rung can resolve.  A layout file is JSON, either what `sqltrace inspect --json` prints (of a
twin with symbols, say) or plainly {"Vdbe.zSql": 248}.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqltrace.errors import UsageError
from sqltrace.resolution import Evidence, Field

_FUNCTION: Final = re.compile(r"(sqlite3\w+)=(?:0[xX]0*([0-9a-fA-F]{1,15})|0*(\d{1,18}))", re.ASCII)
_FIELD: Final = re.compile(r"\w+\.\w+|sizeof\(\w+\)|MEM_Zero", re.ASCII)
_LARGEST_OFFSET: Final = 0xFFFE
_ALIGNED: Final = (2, 4, 8)
_SIZES: Final = (0, 1, 2, 4, 8, *range(12, 1025, 4))
"""Bytes of a number or a pointer, and of a struct or an array within a struct; 0 where it does not matter."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Functions and fields that win over everything that is found."""

    functions: Mapping[str, int] = field(default_factory=dict)
    layout: Mapping[str, Field] = field(default_factory=dict)


def parse_overrides(offsets: Iterable[str], layout: str | os.PathLike[str] | None = None) -> Overrides:
    """Read the values of --offset and the file of --layout; raises UsageError."""
    functions = {}
    for text in offsets:
        match = _FUNCTION.fullmatch(text)
        if match is None:
            raise UsageError(f"--offset wants sqlite3_NAME=ADDRESS, as in sqlite3_step=0x1a2b0, not {text!r}")
        functions[match[1]] = int(match[2], 16) if match[2] else int(match[3])
    return Overrides(functions, {} if layout is None else _read_layout(layout))


def _read_layout(path: str | os.PathLike[str]) -> dict[str, Field]:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{os.fspath(path)} is not JSON: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("layout"), dict):
        content = content["layout"]
    if not isinstance(content, dict):
        raise UsageError(f'{os.fspath(path)} should look like {{"Vdbe.zSql": 248}}')
    return {name: _field(os.fspath(path), name, value) for name, value in content.items()}


def _field(path: str, name: str, value: Any) -> Field:
    if not _FIELD.fullmatch(name):
        raise UsageError(f"{path}: {name!r} is not a member like Vdbe.zSql")
    offset, size = (value.get("offset"), value.get("size", 0)) if isinstance(value, dict) else (value, 0)
    if type(offset) is not int or not 0 <= offset <= _LARGEST_OFFSET or size not in _SIZES:
        raise UsageError(f"{path}: {name} cannot lie at {offset!r} with {size!r} bytes")
    if size in _ALIGNED and offset % size and not name.startswith("sizeof"):
        raise UsageError(f"{path}: {name} cannot lie at {offset}, because a compiler aligns its {size} bytes")
    return Field(offset, size, (Evidence.OVERRIDE,))
