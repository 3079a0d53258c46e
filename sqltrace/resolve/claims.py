"""Claims about one file, each with its evidence, and the rule that all of them must agree.

A wrong address or offset is worse than none: two rungs of the ladder that say different things about one
function or field end the resolution with both sides named.

Beside each claim stands its detail: what exactly was seen where, in words, for those who want to check it
(`sqltrace inspect -v`).  Backends do not need it, so that it is no part of a `Resolution`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from sqltrace.errors import AmbiguousResolutionError
from sqltrace.resolution import Evidence, Field, Function
from sqltrace.resolve.symbolic import Linear


@dataclass(frozen=True, slots=True)
class FieldClaim:
    """A member lies at `offset`; `size` is None where this evidence does not tell the width.

    `place` is the address of the access that told it, where code did.
    """

    name: str
    offset: int
    size: int | None
    detail: str = field(default="", compare=False)
    place: Linear | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Detail:
    """What one piece of evidence saw."""

    evidence: Evidence
    text: str


class Claims:
    """Collects what the rungs say; `add_*` raises AmbiguousResolutionError on the first contradiction.

    A contradiction about one of the `optional` functions only removes that function.
    """

    def __init__(self, path: str, *, optional: Collection[str] = ()) -> None:
        self._path = path
        self._optional = optional
        self._disputes: dict[str, str] = {}
        self._functions: dict[str, dict[Evidence, int]] = {}
        self._fields: dict[str, dict[Evidence, FieldClaim]] = {}
        self._details: dict[str, dict[Detail, None]] = {}

    def add_function(self, name: str, address: int, evidence: Evidence, detail: str = "") -> None:
        """Note that `evidence` has the function `name` at `address`."""
        self._note(name, evidence, detail)
        known = self._functions.setdefault(name, {})
        if any(other != address for other in known.values()) and Evidence.OVERRIDE not in known:
            sides = ", ".join(f"{e} says {a:#x}" for e, a in [*known.items(), (evidence, address)])
            if name not in self._optional:
                raise AmbiguousResolutionError(f"{self._path}: the evidence for {name} disagrees: {sides}")
            self._disputes[name] = f"the evidence disagrees: {sides}"
        known.setdefault(evidence, address)

    def add_field(self, claim: FieldClaim, evidence: Evidence) -> None:
        """Note that `evidence` has a field at an offset."""
        self._note(claim.name, evidence, claim.detail)
        known = self._fields.setdefault(claim.name, {})
        if Evidence.OVERRIDE not in known:
            for other in known.values():
                if other.offset != claim.offset or (other.size and claim.size and other.size != claim.size):
                    sides = ", ".join(_side(e, c) for e, c in [*known.items(), (evidence, claim)])
                    raise AmbiguousResolutionError(f"{self._path}: the evidence for {claim.name} disagrees: {sides}")
        known.setdefault(evidence, claim)

    def _note(self, name: str, evidence: Evidence, detail: str) -> None:
        if detail:
            self._details.setdefault(name, {})[Detail(evidence, detail)] = None

    def details(self) -> Mapping[str, tuple[Detail, ...]]:
        """Return what was seen of each function and field, strongest evidence first."""
        return {
            name: tuple(sorted(details, key=lambda d: _STRENGTH.index(d.evidence)))
            for name, details in self._details.items()
        }

    def field(self, name: str) -> FieldClaim | None:
        """Return a field, with a size where any evidence has one."""
        known = self._fields.get(name)
        if not known:
            return None
        first = next(iter(known.values()))
        return FieldClaim(name, first.offset, next((c.size for c in known.values() if c.size), None))

    def disputes(self) -> Iterator[tuple[str, str]]:
        """Yield each optional function that was contradicted, and both sides."""
        yield from self._disputes.items()

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Yield each function with its evidence, strongest first."""
        for name, known in self._functions.items():
            if name in self._disputes:
                continue
            strongest = _ordered(known)
            yield name, Function(known[strongest[0]], strongest)

    def fields(self) -> Iterator[tuple[str, Field]]:
        """Yield each field with its evidence, strongest first; a width that nothing tells is 0."""
        for name, known in self._fields.items():
            claim = self.field(name)
            if claim is not None:
                yield name, Field(claim.offset, claim.size or 0, _ordered(known))


_STRENGTH = tuple(Evidence)


def _ordered(known: dict[Evidence, int] | dict[Evidence, FieldClaim]) -> tuple[Evidence, ...]:
    if Evidence.OVERRIDE in known:
        return (Evidence.OVERRIDE,)
    return tuple(sorted(known, key=_STRENGTH.index))


def _side(evidence: Evidence, claim: FieldClaim) -> str:
    width = f" ({claim.size} bytes)" if claim.size else ""
    return f"{evidence} says {claim.offset}{width}"
