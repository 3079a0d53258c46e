"""SQLite cross-compiled by zig (PyPI's ziglang): for arm64, for musl, and as Mach-O.

Zig's clang and linkers need no sysroot.  What is built lands under build/zig, once: a target takes half a minute.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.sqlite_builds import BUILD, DEFAULT_VERSION, Twin, amalgamation

_DRIVER = Path(__file__).with_name("driver.c")


def zig_twin(target: str, flags: Sequence[str] = ("-O2",), version: str = DEFAULT_VERSION) -> Twin:
    """Return driver.c with SQLite inside for a target such as aarch64-linux-gnu, with and without symbols.

    Skips the test where zig is not installed.
    """
    pytest.importorskip("ziglang", reason="needs PyPI's ziglang")
    key = hashlib.sha256("\0".join([target, version, *flags, _DRIVER.read_text()]).encode()).hexdigest()[:16]
    directory = BUILD / "zig" / f"{target}-{key}"
    twin = Twin(directory / "driver", directory / "driver.stripped")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not twin.stripped.exists():
            source = amalgamation(version)
            objects = []
            for file in (source / "sqlite3.c", _DRIVER):
                objects.append(directory / f"{file.stem}.o")
                _zig(target, "-w", *flags, f"-I{source}", "-c", file, "-o", objects[-1])
            _zig(target, *flags, *objects, "-o", twin.unstripped)
            partial = directory / "partial"
            _zig(target, *flags, *objects, "-s", "-o", partial)
            partial.rename(twin.stripped)
            for file in objects:
                file.unlink()
    return twin


def _zig(target: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *map(str, arguments)]
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig" / "cache")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
