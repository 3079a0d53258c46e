"""The agent's source, as Frida wants it: one JavaScript text, and one C text without #include "...".

CModule knows only GLib's, Gum's and its own headers, so ours are put where they are included, as cpp would.
"""

from __future__ import annotations

import re
from importlib import resources

_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_PACKAGES = ("sqltrace.agent_js", "sqltrace.bpf")


def agent_script() -> str:
    """Return agent.js."""
    return _read("agent.js")


def hooks_source() -> str:
    """Return hooks.c with our headers in place."""
    return _INCLUDE.sub(lambda match: _read(match[1]), _read("hooks.c"))


def _read(name: str) -> str:
    for package in _PACKAGES:
        file = resources.files(package).joinpath(name)
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError(name)
