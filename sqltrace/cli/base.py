"""What a subcommand is."""

from __future__ import annotations

import argparse
from typing import ClassVar, Protocol


class Command(Protocol):
    """A subcommand; the docstring of the class is its help."""

    name: ClassVar[str]

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Do it; return the exit status.  Raises SqltraceError."""
