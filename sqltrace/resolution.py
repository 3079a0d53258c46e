"""Where SQLite's functions are in one binary, and how its structs lie: plain data, with the evidence for each fact.

A `Resolution` is what the resolver finds once per binary and all that a backend needs to place probes.
Functions carry SQLite's own names (`sqlite3_step`), fields are `Struct.member` (`Vdbe.zSql`), sizes `sizeof(Mem)`.
Addresses are virtual addresses of the file; offsets are bytes from the start of the struct.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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

    address: int
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One struct member (or a struct's size): byte offset, width in bytes (0 where it does not matter), evidence."""

    offset: int
    size: int
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
    functions: Mapping[str, Function]
    layout: Mapping[str, Field]
    features_off: tuple[FeatureOff, ...] = field(default=())

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
        """Read what `to_json` returned; raises KeyError, TypeError or ValueError when it is something else."""

        def evidence(names: list[str]) -> tuple[Evidence, ...]:
            return tuple(Evidence(n) for n in names)

        return cls(
            path=data["path"],
            format=data["format"],
            arch=data["arch"],
            build_id=data["build_id"],
            sqlite_version=data["sqlite_version"],
            source_id=data["source_id"],
            functions={n: Function(f["address"], evidence(f["evidence"])) for n, f in data["functions"].items()},
            layout={n: Field(f["offset"], f["size"], evidence(f["evidence"])) for n, f in data["layout"].items()},
            features_off=tuple(FeatureOff(f["feature"], f["reason"]) for f in data["features_off"]),
        )
