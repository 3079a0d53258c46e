"""sqltrace's command line: one module per subcommand, one place where errors become one sentence and an exit status."""

from __future__ import annotations

import argparse
import inspect as inspect_module
import os
import sys
from collections.abc import Sequence

from sqltrace import __version__
from sqltrace.cli import attach, catalogue, doctor, inspect, run, show
from sqltrace.cli.base import Command
from sqltrace.errors import SqltraceError

COMMANDS: tuple[type[Command], ...] = (
    run.Run,
    attach.Attach,
    show.Show,
    inspect.Inspect,
    doctor.Doctor,
    catalogue.Catalogue,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command's help is its class's docstring."""
    parser = argparse.ArgumentParser(
        prog="sqltrace",
        description="Shows what any running program does to its SQLite databases, without changing the program.",
        epilog="Example: sqltrace run -- fossil new a",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sqltrace {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        text = inspect_module.cleandoc(command.__doc__ or "")
        sub = subparsers.add_parser(
            command.name,
            help=text[:1].lower() + text[1:].split("\n", 1)[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.configure(sub)
        sub.set_defaults(execute=command.execute)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.  Usage errors exit with 2."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.execute(arguments))
    except SqltraceError as error:
        text = str(error).rstrip(".")
        print(f"sqltrace: {text}.", file=sys.stderr)  # noqa: T201 - the one place where errors are printed
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
