"""Which backend observes: the one asked for, or the first that works here and can enter this target."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Final

from sqltrace.backends.base import Backend
from sqltrace.backends.launch.command import find_command
from sqltrace.errors import BackendUnavailableError

BACKENDS: Final = {
    "bcc": ("sqltrace.backends.bcc", "BccBackend"),
    "frida": ("sqltrace.backends.frida", "FridaBackend"),
}
"""In the order in which `auto` tries them."""


def load(name: str) -> Backend:
    """Import a backend; its heavy parts come when it is used."""
    module, class_name = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), class_name)()
    return backend


def choose(
    name: str,
    *,
    command: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Backend:
    """Return the backend to use.  Raises BackendUnavailableError, and the command errors when there is no command."""
    if command is not None:
        find_command(command[0])
    if name != "auto":
        backend = load(name)
        availability = backend.available()
        if not availability.ok:
            raise BackendUnavailableError(
                f"the {name} backend does not work here: {availability.reason}. Remedy: {availability.remedy}."
            )
        return backend
    reasons: list[str] = []
    for candidate in BACKENDS:
        backend = load(candidate)
        availability = backend.available()
        if availability.ok:
            if say is not None:
                why = f" ({'; '.join(reasons)})" if reasons else ""
                say(f"using the {candidate} backend{why}")
            return backend
        reasons.append(f"{candidate}: {availability.reason}")
    raise BackendUnavailableError(f"no backend works here ({'; '.join(reasons)}). sqltrace doctor says what to do.")
