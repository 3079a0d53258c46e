"""The Frida backend: hooks inside the process, for users without root.  Dynamic glibc programs on x86-64 Linux."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Sequence

from sqltrace.backends.base import Availability, Options, Resolve, Trace, started
from sqltrace.backends.frida.client import check
from sqltrace.backends.frida.trace import FridaTrace
from sqltrace.errors import BackendError, BackendUnavailableError


class FridaBackend:
    """Implements sqltrace.backends.base.Backend."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "frida"

    def available(self) -> Availability:
        """Say whether Frida can be imported and a process of ours be entered."""
        if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
            where = f"{platform.system()} on {platform.machine()}"
            return Availability(False, f"it is written for Linux on x86_64, and this is {where}", "use another machine")
        if importlib.util.find_spec("frida") is None:
            return Availability(False, "Python cannot import frida", "pip install frida")
        problem = check()
        if problem is not None:
            return Availability(False, problem, "allow ptrace (seccomp, Yama), or use --backend bcc as root")
        return Availability(True)

    def _trace(self, resolve: Resolve, options: Options) -> FridaTrace:
        if importlib.util.find_spec("frida") is None:
            raise BackendUnavailableError("the frida backend needs the frida package. Remedy: pip install frida.")
        return FridaTrace(resolve, options)

    def run(self, argv: Sequence[str], resolve: Resolve, options: Options) -> Trace:
        """Start a command under observation."""
        return started(self._trace(resolve, options), lambda trace: trace.launch(argv))

    def attach(self, pids: Sequence[int], resolve: Resolve, options: Options) -> Trace:
        """Join running processes."""
        return started(self._trace(resolve, options), lambda trace: trace.join(pids))

    def watch(self, exe: str | None, resolve: Resolve, options: Options) -> Trace:  # noqa: ARG002 - the contract's
        """Refuse: Frida enters processes one by one, and cannot know of new ones in time."""
        raise BackendError(
            "the frida backend observes processes that it is given. Name them with -p, or use bcc as root."
        )
