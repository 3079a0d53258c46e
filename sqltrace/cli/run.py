"""`sqltrace run`."""

from __future__ import annotations

import argparse

from sqltrace.backends.choice import choose
from sqltrace.cli import tracing
from sqltrace.cli.base import Command
from sqltrace.errors import BackendError, UsageError
from sqltrace.session import signals


class Run(Command):
    """Run a command and show every statement that it executes in SQLite.

    The command keeps the terminal, its input and its output; sqltrace's exit status is the command's own,
    or 125 when sqltrace fails, 126 when the command cannot be executed, 127 when it is not found.
    """

    name = "run"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        tracing.add_options(parser)
        parser.add_argument("-u", "--user", metavar="USER", help="run the command as this user")
        parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the command")

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Start the command, follow it to its end, end like it."""
        if arguments.argv[:1] == ["--"]:
            arguments.argv = arguments.argv[1:]
        if not arguments.argv:
            raise UsageError("there is no command to run. Example: sqltrace run -- fossil new a")
        backend = choose(arguments.backend, command=arguments.argv, say=tracing.say if not arguments.quiet else None)
        resolve = tracing.resolver(arguments)
        with tracing.opened(arguments, backend) as session:
            with tracing.getting_ready(arguments, backend):
                trace = backend.run(arguments.argv, resolve, tracing.backend_options(arguments))
            with signals(session, lambda: trace.child if trace.status is None else None):
                totals = session.follow(trace)
                status = trace.wait()
        tracing.summary(arguments, totals)
        if status is None:
            raise BackendError("the command's exit status got lost.")
        tracing.exit_like(status)
