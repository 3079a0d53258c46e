"""`sqltrace doctor`."""

from __future__ import annotations

import argparse
import platform
import sys

from sqltrace import __version__
from sqltrace.backends.choice import BACKENDS, load
from sqltrace.cli.base import Command


class Doctor(Command):
    """Say for each backend whether it works here; if not, why, and what to do.

    Exit status: 0 when at least one works, 125 when none does.
    """

    name = "doctor"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """There are no options."""

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:  # noqa: ARG004 - a command's signature
        """Ask each backend."""
        write = sys.stdout.write
        write(f"sqltrace {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}, ")
        write(f"{platform.machine()}\n")
        works = False
        for name in BACKENDS:
            availability = load(name).available()
            works = works or availability.ok
            if availability.ok:
                write(f"{name:<8}works\n")
                for note in availability.notes:
                    write(f"{'':<8}{note}\n")
            else:
                write(f"{name:<8}does not work: {availability.reason}\n")
                write(f"{'':<8}remedy: {availability.remedy}\n")
        return 0 if works else 125
