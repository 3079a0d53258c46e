"""What every test can rely on: backends by marker, tracing a command, nothing left behind."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqltrace.backends.choice import BACKENDS, load

REQUIRED = tuple(filter(None, os.environ.get("SQLTRACE_REQUIRE_BACKENDS", "").split(",")))
"""Backends whose tests must not be skipped: on CI's machines all of them work."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in BACKENDS:
        if item.get_closest_marker(name):
            availability = load(name).available()
            if not availability.ok and name in REQUIRED:
                pytest.fail(f"the {name} backend must work here: {availability.reason}")
            if not availability.ok:
                pytest.skip(f"{name}: {availability.reason}")


MARK = f"SQLTRACE_TESTS={uuid.uuid4().hex}"
"""In the environment of everything that the tests start."""


def _traces_of_us() -> set[str]:
    found = set(glob.glob("/dev/shm/*sqltrace*")) | set(glob.glob(f"{tempfile.gettempdir()}/frida-*"))
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            ours = MARK.encode() in Path(folder, "environ").read_bytes().split(b"\0")
            command = Path(folder, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if ours and command:
            found.add(f"{folder}: {command}")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    before = _traces_of_us()
    yield
    end = time.monotonic() + 5
    while (left := _traces_of_us() - before) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, f"the tests left behind: {sorted(left)}"


@dataclass
class Traced:
    """A finished run of the tracer: its own exit status, what the command printed, the log."""

    returncode: int
    stdout: str
    stderr: str
    events: list[dict[str, Any]]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == name]

    @property
    def statements(self) -> list[dict[str, Any]]:
        return self.named("statement")

    @property
    def sql(self) -> list[str | None]:
        return [s["sql"] for s in self.statements]

    @property
    def end(self) -> dict[str, Any]:
        return self.named("session_end")[0]


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def sqltrace_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sqltrace", *arguments]


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., Traced]:
    """Run a command under the tracer in a fresh folder and read the log."""

    def run(backend: str, *command: str, options: tuple[str, ...] = (), **kwargs: Any) -> Traced:
        log = tmp_path / "trace.jsonl"
        log.unlink(missing_ok=True)
        kwargs.setdefault("cwd", tmp_path)
        kwargs.setdefault("timeout", 120)
        done = subprocess.run(
            sqltrace_command("run", "--backend", backend, *options, "-o", str(log), "--", *command),
            capture_output=True,
            text=True,
            check=False,
            **kwargs,
        )
        return Traced(done.returncode, done.stdout, done.stderr, read_log(log) if log.exists() else [])

    return run
