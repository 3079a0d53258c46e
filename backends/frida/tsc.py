"""Whether the time-stamp counter can stand in for the clock: only where the kernel itself keeps time by it.

The kernel checks at boot, and goes on checking, that the counter has one rate, goes on in sleep states and agrees
between processors (Documentation/timers/timekeeping.rst, arch/x86/kernel/tsc.c); it names another source when not.
"""

from __future__ import annotations

from pathlib import Path

_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_PROCESSORS = Path("/proc/cpuinfo")
_NEEDED = {"constant_tsc", "nonstop_tsc"}


def counter_is_trusted(source: Path = _SOURCE, processors: Path = _PROCESSORS) -> bool:
    """Return whether hooks may reckon the time from it."""
    try:
        if source.read_text(encoding="ascii").strip() != "tsc":
            return False
        with processors.open(encoding="utf-8", errors="replace") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return set(flags.split()) >= _NEEDED
