"""What every backend offers to a session.

A backend turns `Resolution`s into probes and gives back the records that its hooks write.
It knows no ELF: whenever a file is met (the command, a library that is loaded later) it asks `resolve`.
It knows no event: `drain` returns the records of sqltrace.events.wire and the notices below, in the order seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sqltrace.events.model import Process
from sqltrace.events.wire import Record
from sqltrace.resolution import Resolution


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend works here; if not, the reason and the remedy, each a clause without a full stop.

    `notes` say what works less well than it could.
    """

    ok: bool
    reason: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()


Resolve = Callable[[str], Resolution | None]
"""Resolution of the file at a path (possibly /proc/PID/root/... or /proc/PID/map_files/...), None where it holds
no SQLite.  Raises ResolutionError where SQLite is there but cannot be used.  Safe to call from any thread."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a backend shall work, whatever is observed."""

    ring_bytes: int = 16 << 20
    """Memory between the hooks and us; a power of two."""
    block: bool = False
    """A program whose ring is full waits for us, instead of losing records."""
    follow: bool = True
    """Children of the observed processes are observed too."""
    min_duration_ns: int = 0
    """Executions that took less are not wanted.  Like the next two a hint: a backend that can leaves them out, and
    counts them as filtered; the session looks at what comes anyway."""
    errors_only: bool = False
    """Only executions that failed are wanted."""
    muting: bool = False
    """`Trace.mute` will be called."""
    statements: int = 1 << 16
    """Prepared statements that are known at a time."""
    threads: int = 1 << 14
    """Threads that are observed at a time."""
    user: str | None = None
    """Who the command of `run` shall be; None: who we are."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Probes were placed in a file; ``path` is the file as the process names it, if it was met in one.

    `sites` tells for each function where in it the probe is, in words of the backend: `+4 push`.
    """

    pid: int | None
    path: str
    resolution: Resolution
    attach_ms: float
    sites: Mapping[str, str] = field(default_factory=dict)
    processes: int | None = None
    """How many processes had it mapped when the whole machine was searched; else None."""
    late: bool = False
    """A process had it mapped and was running before the probes were there; what it executed until then is not seen."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file of a process holds SQLite that cannot be probed, or a process cannot be followed: why."""

    pid: int | None
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """A process is observed from now on (the command, an attached process, a child)."""

    pid: int
    parent: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that was observed is gone.  `status` is a wait status, None when not known."""

    pid: int
    status: int | None


Item = Record | Process | Probed | Refused | Started | Ended
"""A `Process` is what /proc said of one while it was held: it may be gone by the time anybody looks again."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the hooks saw and what got lost, for `hits == emitted + filtered + lost`.

    hits: executions whose beginning a hook saw, or that were under way when it came.
    lost: (record type name, reason) -> number of records.
    filtered: executions that the hooks left out.
    evicted: table -> entries that had to make room; known after detach.
    """

    hits: int
    lost: Mapping[tuple[str, str], int]
    filtered: int = 0
    evicted: Mapping[str, int] = field(default_factory=dict)


class Trace(Protocol):
    """Something under observation.  Not thread-safe: one thread drains."""

    @property
    def child(self) -> int | None:
        """Pid of the command that `run` started; None after `attach`."""

    @property
    def alive(self) -> bool:
        """Whether any observed process still runs."""

    @property
    def status(self) -> int | None:
        """Wait status of the command once it has ended."""

    def wait(self) -> int | None:
        """Wait for the command to end, whether observed or not any more; return its wait status."""

    def drain(self, timeout: float) -> Sequence[Item]:
        """Return what came in, waiting up to `timeout` seconds for the first; bounded work per call."""

    def counts(self) -> Counts:
        """Return the totals so far."""

    def mute(self, text_id: int) -> None:
        """Take note that no execution of this statement is wanted; may be ignored."""

    def detach(self) -> Sequence[Item]:
        """Remove every probe, leave the processes as they were, return what was still in the ring.

        Executions still running then come as statements with END_DETACH.  Calling it twice does nothing more.
        """


TraceT = TypeVar("TraceT", bound=Trace)


def started(trace: TraceT, begin: Callable[[TraceT], object]) -> TraceT:
    """Begin an observation and return it; what was placed until then is removed when that fails."""
    try:
        begin(trace)
    except BaseException:
        trace.detach()
        raise
    return trace


class Backend(Protocol):
    """One way to observe a program."""

    @property
    def name(self) -> str:
        """`bcc`, `frida` or `native`."""

    def available(self) -> Availability:
        """Look, without side effects that outlive the call, whether this backend works here and for this user."""

    def run(self, argv: Sequence[str], resolve: Resolve, options: Options) -> Trace:
        """Start a command with everything in place before its first statement.

        The command has our terminal, stdio, working directory and environment and is our child.
        Raises CommandNotFoundError, CommandNotExecutableError, TargetError, BackendError.
        """

    def attach(self, pids: Sequence[int], resolve: Resolve, options: Options) -> Trace:
        """Join running processes.

        Raises NoSQLiteError when none of them has SQLite mapped, TargetError when one cannot be observed.
        """

    def watch(self, exe: str | None, resolve: Resolve, options: Options) -> Trace:
        """Observe every process of an executable file, now and later; None: everything with SQLite on the machine.

        Raises TargetError when there is no such file, BackendError when this backend cannot.
        """
