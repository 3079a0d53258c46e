"""From the hooks' monotonic nanoseconds to UTC with nanoseconds."""

from __future__ import annotations

import time
from typing import Final

_SECOND: Final = 1_000_000_000


class Clock:
    """Converts CLOCK_MONOTONIC to wall time, by the difference at the session's start."""

    def __init__(self) -> None:
        # The smallest of several differences: the two clocks are read one after the other.
        self._offset = min(time.time_ns() - time.monotonic_ns() for _ in range(5))

    def wall(self, monotonic_ns: int) -> int:
        """Return nanoseconds since 1970, UTC."""
        return monotonic_ns + self._offset

    def now(self) -> int:
        """Return the wall time on the same scale."""
        return time.monotonic_ns() + self._offset


class Timestamps:
    """Formats wall times; the seconds' part is made once per second."""

    def __init__(self) -> None:
        self._start = self._end = 0
        self._text = ""

    def format(self, wall_ns: int) -> str:
        """Return `2026-11-21T01:22:58.123456789Z`."""
        if not self._start <= wall_ns < self._end:
            second = wall_ns // _SECOND
            self._start, self._end = second * _SECOND, (second + 1) * _SECOND
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{wall_ns - self._start:09d}Z"
