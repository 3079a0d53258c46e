"""`sqltrace show`."""

from __future__ import annotations

import argparse
import os
import sys

from sqltrace.cli.base import Command
from sqltrace.cli.tracing import parse_count
from sqltrace.events.load import read_events, statement_from
from sqltrace.sinks.terminal import Terminal


class Show(Command):
    """Show the statements of a log as `run` shows them without -o.

    Ends with how many there are.
    """

    name = "show"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("log", metavar="LOG", help="a file that run or attach wrote (- for standard input)")
        parser.add_argument("--limit", type=parse_count, metavar="N", help="show only the first N")
        parser.add_argument("--internal", action="store_true", help="show SQLite's own statements, too")

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Read the log, show it."""
        sys.stdout.flush()
        sink = Terminal(os.fdopen(os.dup(sys.stdout.fileno()), "wb"), internal=arguments.internal)
        shown = total = internal = lost = 0
        for event in read_events(arguments.log):
            if event["event"] == "lost":
                lost += event.get("count", 0)
            if event["event"] != "statement":
                continue
            statement = statement_from(event)
            total += 1
            internal += statement.internal
            if (arguments.internal or not statement.internal) and (arguments.limit is None or shown < arguments.limit):
                sink.statements([statement])
                shown += 1
        sink.close()
        own = f" ({internal} of them SQLite's own)" if internal else ""
        print(f"{total} statements{own}, {lost} lost; {shown} shown")  # noqa: T201 - it is what was asked for
        return 0
