"""A `Resolution` as text, for `sqltrace inspect`: aligned columns, one line for each function and field.

With details, a line for each piece of evidence follows: enough to look it up in a disassembler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqltrace.resolution import Resolution
from sqltrace.resolve.claims import Detail


def describe(resolution: Resolution, details: Mapping[str, Sequence[Detail]] | None = None) -> str:
    """Return what is known about a file, several lines without a newline at the end."""
    details = details or {}
    facts = [
        ("file", _visible(resolution.path)),
        ("format", f"{resolution.format} {resolution.arch}"),
        ("build-id", resolution.build_id or "none"),
        ("SQLite", resolution.sqlite_version or "unknown release"),
        ("source id", _visible(resolution.source_id or "unknown")),
    ]
    functions = [
        (name, f"{f.address:#x}", ", ".join(f.evidence))
        for name, f in sorted(resolution.functions.items(), key=lambda item: item[1].address)
    ]
    fields = [
        (name, f"{f.offset:#x}" if name == "MEM_Zero" else str(f.offset), str(f.size or ""), ", ".join(f.evidence))
        for name, f in sorted(resolution.layout.items())
    ]
    parts = [
        _columns(facts),
        _with_details(_columns([("FUNCTION", "ADDRESS", "EVIDENCE"), *functions], right=(1,)), functions, details),
        _with_details(_columns([("FIELD", "OFFSET", "BYTES", "EVIDENCE"), *fields], right=(1, 2)), fields, details),
    ]
    if resolution.features_off:
        parts.append(_columns([("OFF", "REASON"), *((f.feature, _visible(f.reason)) for f in resolution.features_off)]))
    return "\n\n".join(parts)


def describe_briefly(resolution: Resolution) -> str:
    """Return one line: release, format, path, and what is off."""
    off = ", ".join(f.feature for f in resolution.features_off)
    line = f"{resolution.sqlite_version or '?':<8} {resolution.format} {resolution.arch:<7} {_visible(resolution.path)}"
    return f"{line}  (without {off})" if off else line


def _with_details(table: str, rows: Sequence[Sequence[str]], details: Mapping[str, Sequence[Detail]]) -> str:
    """Return the table with what was seen below each row; its first line is the heading."""
    heading, *lines = table.split("\n")
    shown = [heading]
    for line, row in zip(lines, rows, strict=True):
        shown += [line, *(f"    {d.evidence}: {_visible(d.text)}" for d in details.get(row[0], ()))]
    return "\n".join(shown)


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _visible(text: str) -> str:
    """Return the text without control characters: a path is another user's, the terminal is ours."""
    return "".join(c if c.isprintable() else "�" for c in text)
