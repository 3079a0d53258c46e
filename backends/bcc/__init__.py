"""The bcc backend: uprobes through BPF.  Linux, root; any number of processes, static programs too."""

from __future__ import annotations

from collections.abc import Sequence

from sqltrace.backends.base import Availability, Options, Resolve, Trace, started
from sqltrace.backends.bcc.preflight import check
from sqltrace.backends.bcc.scope import Scope
from sqltrace.backends.bcc.trace import BccTrace
from sqltrace.backends.proc_maps import mapped_files, no_sqlite
from sqltrace.errors import BackendUnavailableError, ResolutionError


def _require_sqlite(pids: Sequence[int], resolve: Resolve) -> None:
    """Raise NoSQLiteError before anything is compiled, where there is nothing to observe."""
    for pid in pids:
        for mapped in mapped_files(pid):
            try:
                if resolve(mapped.path) is not None:
                    return
            except ResolutionError:
                return  # `join` says why it cannot be used
    raise no_sqlite(pids)


class BccBackend:
    """Implements sqltrace.backends.base.Backend."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "bcc"

    def available(self) -> Availability:
        """Say whether this kernel, this user and this Python allow it."""
        return check()

    def _trace(self, resolve: Resolve, options: Options, scope: Scope | None = None) -> BccTrace:
        availability = self.available()
        if not availability.ok:
            raise BackendUnavailableError(
                f"the bcc backend does not work here: {availability.reason}. Remedy: {availability.remedy}."
            )
        if options.block:
            raise BackendUnavailableError(
                "the bcc backend cannot let a program wait for us (--on-overflow block): its hooks run in the kernel. "
                "Remedy: --backend frida, or a larger --ring-size."
            )
        return BccTrace(resolve, options, scope or Scope())

    def run(self, argv: Sequence[str], resolve: Resolve, options: Options) -> Trace:
        """Start a command under observation."""
        return started(self._trace(resolve, options), lambda trace: trace.launch(argv))

    def watch(self, exe: str | None, resolve: Resolve, options: Options) -> Trace:
        """Observe every process of a file, or everything."""
        return started(
            self._trace(resolve, options, Scope(everyone=exe is None, exe=exe)), lambda trace: trace.search()
        )

    def attach(self, pids: Sequence[int], resolve: Resolve, options: Options) -> Trace:
        """Join running processes."""
        _require_sqlite(pids, resolve)
        return started(self._trace(resolve, options), lambda trace: trace.join(pids))
