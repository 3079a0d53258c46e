"""What `run` and `attach` share: options, choice of the backend, sinks, the closing summary."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sqltrace.backends.base import Backend, Options, Resolve
from sqltrace.backends.choice import BACKENDS
from sqltrace.cli.overrides import add_override_options, overrides_from
from sqltrace.filters import Conditions
from sqltrace.resolve.query import sqlite_in
from sqltrace.session import Limits, Session, Totals, new_session_id
from sqltrace.sinks.base import Sink
from sqltrace.sinks.jsonl import JsonLines
from sqltrace.sinks.output import open_output
from sqltrace.sinks.terminal import Terminal

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)([kKmMgG]?)[bB]?")
_SMALLEST_RING, _LARGEST_RING = 64 << 10, 1 << 30
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_duration(text: str) -> float:
    """Return seconds from `30s`, `10ms`, `1.5m`, `2h` or a plain number of seconds."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30s, 500ms or 2m")
    return float(match[1]) * _UNITS[match[2]]


def parse_size(text: str) -> int:
    """Return bytes from `4096`, `64k` or `16M`."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64k or 16M")
    return int(match[1]) * _FACTORS[match[2].lower()]


def parse_ring_size(text: str) -> int:
    """Return a size rounded up to a power of two, between 64 KiB and 1 GiB."""
    size = parse_size(text)
    if not _SMALLEST_RING <= size <= _LARGEST_RING:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 64k and 1g")
    return 1 << (size - 1).bit_length()


def parse_count(text: str) -> int:
    """Return a number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the shared options."""
    parser.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="how to observe: bcc (root), frida (no root), auto takes the first that works here (default)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the events to FILE (- for standard output)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument(
        "--format",
        choices=("jsonl", "pretty"),
        help="JSON lines (default with -o) or four lines a statement (default without)",
    )
    parser.add_argument("--duration", type=parse_duration, metavar="TIME", help="stop observing after TIME (30s, 2m)")
    parser.add_argument("--limit", type=parse_count, metavar="N", help="stop observing after N statements")
    parser.add_argument(
        "--db", action="append", default=[], metavar="GLOB", help="only databases whose path, or name, matches"
    )
    parser.add_argument("--sql", metavar="REGEX", help="only statements whose text matches, in any case of letters")
    parser.add_argument("--min-duration", type=parse_duration, metavar="TIME", help="only what took as long (10ms)")
    parser.add_argument("--errors-only", action="store_true", help="only what failed")
    parser.add_argument("--sql-limit", type=parse_size, metavar="BYTES", help="keep at most so much of each text")
    add_override_options(parser)
    parser.add_argument(
        "--no-cache", action="store_true", help="resolve every file anew, and remember nothing of it between runs"
    )
    parser.add_argument("--internal", action="store_true", help="show SQLite's own statements in the terminal form")
    parser.add_argument(
        "--ring-size",
        type=parse_ring_size,
        default=16 << 20,
        metavar="BYTES",
        help="memory between the hooks and sqltrace (16m): more of it rides out longer bursts",
    )
    parser.add_argument(
        "--on-overflow",
        choices=("drop", "block"),
        default="drop",
        help="when sqltrace cannot keep up: lose records, and count them (default), or let the program wait (frida)",
    )
    parser.add_argument("--no-follow", action="store_true", help="do not observe child processes")
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices, no summary")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is found and probed")


def backend_options(arguments: argparse.Namespace) -> Options:
    """Return the options that concern the backend."""
    wanted = conditions(arguments)
    return Options(
        ring_bytes=arguments.ring_size,
        block=arguments.on_overflow == "block",
        follow=not arguments.no_follow,
        min_duration_ns=wanted.min_duration_ns,
        errors_only=wanted.errors_only,
        muting=wanted.about_text,
        user=getattr(arguments, "user", None),
    )


def conditions(arguments: argparse.Namespace) -> Conditions:
    """Return what the user wants to see."""
    return Conditions(tuple(arguments.db), arguments.sql, arguments.min_duration, arguments.errors_only)


def resolver(arguments: argparse.Namespace) -> Resolve:
    """Return the resolver as a backend asks it, with what the user knows better."""
    overrides = overrides_from(arguments)
    return lambda path: sqlite_in(path, overrides, use_cache=not arguments.no_cache)


def make_sink(arguments: argparse.Namespace, session_id: str) -> Sink:
    """Open the sink that the options ask for.  Raises OutputError."""
    kind = arguments.format or ("jsonl" if arguments.output else "pretty")
    stream = open_output(arguments.output, force=arguments.force) if arguments.output else None
    if kind == "pretty":
        return Terminal(stream, internal=arguments.internal)
    return JsonLines(stream or os.fdopen(os.dup(sys.stderr.fileno()), "wb", buffering=0), session_id)


@contextmanager
def opened(arguments: argparse.Namespace, backend: Backend) -> Iterator[Session]:
    """Open the output, start a session on it; closes the output at the end.  Raises OutputError, UsageError."""
    session_id = new_session_id()
    sink = make_sink(arguments, session_id)
    try:
        session = make_session(arguments, backend.name, sink, session_id)
        session.start()
        yield session
    finally:
        sink.close()


def make_session(arguments: argparse.Namespace, backend: str, sink: Sink, session_id: str) -> Session:
    """Return a session with the limits of the options."""
    recorded: dict[str, Any] = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("execute", "quiet", "verbose") and value not in (None, False, [])
    }
    return Session(
        backend,
        sink,
        limits=Limits(arguments.duration, arguments.limit, arguments.sql_limit),
        conditions=conditions(arguments),
        options=recorded | {"session": session_id},
        notice=say
        if arguments.verbose or (getattr(arguments, "all", False) and not arguments.quiet)
        else lambda _: None,
    )


@contextmanager
def getting_ready(arguments: argparse.Namespace, backend: Backend) -> Iterator[None]:
    """On a terminal, say that the BPF programs are being compiled while that lasts; nothing of it stays."""
    shown = backend.name == "bcc" and not arguments.quiet and sys.stderr.isatty()
    if shown:
        sys.stderr.write("sqltrace: compiling the probes...")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def say(text: str) -> None:
    """Tell the user something, beside the data."""
    print(f"sqltrace: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the one place for notices


def summary(arguments: argparse.Namespace, totals: Totals) -> None:
    """Say how it went: what was seen, what was lost, where the log is; what did not work, even when quiet."""
    if totals.output_error is not None:
        say(str(totals.output_error))
    if totals.lost_count:
        parts = ", ".join(f"{n} {kind} records ({reason})" for (kind, reason), n in sorted(totals.lost.items()))
        say(f"lost: {parts}.")
    for table, n in totals.evicted.items():
        say(f"{n} {table} had to make room for others: their texts were sent again, none was mixed up.")
    if arguments.quiet:
        return
    if not totals.probed:
        reasons = list(dict.fromkeys(totals.refused))
        for reason in reasons:
            say(reason)
        if not reasons:
            say("no SQLite was found in the command or in anything that it loaded.")
    own = f" ({totals.internal} of them SQLite's own)" if totals.internal else ""
    where = f", in {arguments.output}" if arguments.output not in (None, "-") else ""
    plural = "" if totals.statements == 1 else "s"
    say(f"{totals.statements} statement{plural}{own}, {totals.lost_count} lost{where}")


def exit_like(status: int) -> NoReturn:
    """End as the command did: its exit status, or its signal (so that our parent sees the same)."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        import resource  # noqa: PLC0415 - needed only on this path

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command left its core already
        sys.stdout.flush()
        sys.stderr.flush()
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    raise SystemExit(os.waitstatus_to_exitcode(status) & 0xFF)
