"""What a sink is: somewhere that events go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sqltrace.events.model import Event, Statement


class Sink(Protocol):
    """Takes events in order.  Raises OutputError when they cannot be written."""

    def event(self, event: Event) -> None:
        """Take a low-rate event."""

    def statements(self, statements: Iterable[Statement]) -> None:
        """Take a batch of executions."""

    def flush(self) -> None:
        """Hand everything to the operating system."""

    def close(self) -> None:
        """Flush, and close what this sink opened."""
