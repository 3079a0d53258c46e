"""`sqltrace inspect`."""

from __future__ import annotations

import argparse
import sys

import msgspec

from sqltrace.cli.base import Command
from sqltrace.resolve import resolve
from sqltrace.resolve.describe import describe


class Inspect(Command):
    """Say whether a file holds SQLite, which release, and where everything is.

    Shows each function and each struct field with the evidence for it, and what will not be reported and why.
    """

    name = "inspect"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("file", metavar="FILE", help="a program or a library")
        parser.add_argument("--json", action="store_true", help="one JSON object instead of text")

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Resolve the file anew, without the cache, and show all that was found."""
        resolution = resolve(arguments.file)
        if arguments.json:
            text = msgspec.json.format(msgspec.json.encode(resolution.to_json())).decode()
        else:
            text = describe(resolution)
        sys.stdout.write(text.rstrip("\n") + "\n")
        return 0
