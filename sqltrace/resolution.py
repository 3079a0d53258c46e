"""Where SQLite's functions are in one binary, and how its structs lie: plain data, with the evidence for each fact.

A `Resolution` is what the resolver finds once per binary and all that a backend needs to place probes.
Functions carry SQLite's own names (`sqlite3_step`), fields are `Struct.member` (`Vdbe.zSql`), sizes `sizeof(Mem)`.
Addresses are virtual addresses of the file; offsets are bytes from the start of the struct.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeAlias

import msgspec

Address: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Offset: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
FunctionName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^sqlite3[0-9A-Za-z_]+\Z")]
FieldName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_.()]+\Z")]
"""What `from_json` takes for one: what it reads may have been damaged on disk."""

STAND_INS: Final[Mapping[str, str]] = {"sqlite3_reset": "sqlite3VdbeReset"}
"""Functions that link-time optimisation may leave nowhere but inlined in their callers, and what to hook instead:
sqlite3_reset(p) and sqlite3_finalize(p) alone call sqlite3VdbeReset(p), and return what it returns."""


class Evidence(enum.StrEnum):
    """How a fact was found, strongest first."""

    OVERRIDE = "override"
    """The user said so."""
    SYMBOL = "symbol"
    """A symbol table names it."""
    API_TABLE = "api-table"
    """`sqlite3_api_routines`, the table that SQLite hands to loadable extensions, points to it."""
    STRINGS = "strings"
    """A message of SQLite's, the code that refers to it, and the calls around that code."""
    ACCESSOR = "accessor"
    """A public function that does nothing but read the field was executed symbolically."""
    CATALOGUE = "catalogue"
    """The release's source has it there."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its virtual address in the file, and why we believe it."""

    address: Address
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One struct member (or a struct's size): byte offset, width in bytes (0 where it does not matter), evidence."""

    offset: Offset
    size: Offset
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class FeatureOff:
    """Something that will not be reported for this binary, and the missing fact that is the reason."""

    feature: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """All that is known about SQLite in one file."""

    path: str
    format: str
    arch: str
    build_id: str | None
    sqlite_version: str | None
    source_id: str | None
    functions: Mapping[FunctionName, Function]
    layout: Mapping[FieldName, Field]
    features_off: tuple[FeatureOff, ...] = field(default=())

    def hookable(self, name: str) -> Function:
        """Return the function of this name, else its stand-in.  Raises KeyError where there is neither."""
        stand_in = STAND_INS.get(name, name)
        return self.functions[stand_in if name not in self.functions and stand_in in self.functions else name]

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `sqltrace inspect --json` prints; `from_json` reads it back."""
        return {
            "path": self.path,
            "format": self.format,
            "arch": self.arch,
            "build_id": self.build_id,
            "sqlite_version": self.sqlite_version,
            "source_id": self.source_id,
            "functions": {
                name: {"address": f.address, "evidence": list(f.evidence)} for name, f in self.functions.items()
            },
            "layout": {
                name: {"offset": f.offset, "size": f.size, "evidence": list(f.evidence)}
                for name, f in self.layout.items()
            },
            "features_off": [{"feature": f.feature, "reason": f.reason} for f in self.features_off],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Resolution:
        """Read what `to_json` returned; raises ValueError when it is something else."""
        return msgspec.convert(data, cls)
