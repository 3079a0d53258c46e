"""`--offset` and `--layout`: what the user knows about a binary and the resolver does not."""

from __future__ import annotations

import argparse

from sqltrace.resolve.overrides import Overrides, parse_overrides


def add_override_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--offset",
        action="append",
        default=[],
        metavar="FUNCTION=ADDRESS",
        help="where a function is, as in sqlite3_step=0x1a2b0 (virtual address of the file); may be repeated",
    )
    parser.add_argument(
        "--layout",
        metavar="FILE",
        help='where struct members lie: JSON like {"Vdbe.zSql": 248}, or what `inspect --json` printed for a twin',
    )


def overrides_from(arguments: argparse.Namespace) -> Overrides | None:
    """Return what the options say, None when they were not given.  Raises UsageError."""
    if not arguments.offset and arguments.layout is None:
        return None
    return parse_overrides(arguments.offset, arguments.layout)
