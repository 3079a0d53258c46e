"""`sqltrace attach`."""

from __future__ import annotations

import argparse
import os
import re

from sqltrace.backends.choice import choose
from sqltrace.cli import tracing
from sqltrace.cli.base import Command
from sqltrace.errors import TargetError
from sqltrace.session import signals


def parse_pids(text: str) -> list[int]:
    """Return the pids of `812`, `812,813` or `"812 813"` (so that `-p "$(pgrep codex)"` works)."""
    words = re.split(r"[\s,]+", text.strip())
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id, nor a list of them")
    return [int(word) for word in words]


class Attach(Command):
    """Show what running processes execute in SQLite, until Ctrl-C.

    The processes go on as before when sqltrace leaves them.
    """

    name = "attach"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        tracing.add_options(parser)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "-p",
            "--pid",
            action="append",
            type=parse_pids,
            metavar="PID",
            help="a process id; may be repeated and may be a list",
        )
        what.add_argument("--exe", metavar="PATH", help="every process of this program, now and later (bcc)")
        what.add_argument(
            "--all", action="store_true", help="everything with SQLite on this machine, now and later (bcc)"
        )

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Join the processes, follow them until they end or the user has seen enough."""
        pids = list(dict.fromkeys(pid for group in arguments.pid or () for pid in group))
        for pid in pids:
            if not os.path.exists(f"/proc/{pid}"):
                raise TargetError(f"there is no process {pid}.")
            if pid == os.getpid():
                raise TargetError(f"cannot attach to pid {pid}: that is sqltrace itself.")
        name = arguments.backend
        if not pids and name == "auto":
            name = "bcc"  # the only one that learns of new processes
        backend = choose(name, say=tracing.say if not arguments.quiet else None)
        resolve, options = tracing.resolver(arguments), tracing.backend_options(arguments)
        with tracing.opened(arguments, backend) as session, signals(session, lambda: None):
            with tracing.getting_ready(arguments, backend):
                if pids:
                    trace = backend.attach(pids, resolve, options)
                else:
                    trace = backend.watch(arguments.exe, resolve, options)
            totals = session.follow(trace)
        tracing.summary(arguments, totals)
        return 0 if totals.output_error is None else totals.output_error.exit_code
