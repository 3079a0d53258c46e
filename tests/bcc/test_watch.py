"""attach --exe and attach --all: what is there, and what comes later."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import read_log, sqltrace_command

pytestmark = pytest.mark.bcc

SERVER = """
import sqlite3, sys
c = sqlite3.connect(":memory:")
print("ready", flush=True)
for line in sys.stdin:
    c.execute(line.strip()).fetchall()
    print("done", flush=True)
"""


class Server:
    """A process that executes what it is told."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-Sc", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._expect("ready\n")

    def _expect(self, line: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == line

    def execute(self, sql: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(sql + "\n")
        self.process.stdin.flush()
        self._expect("done\n")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


class Watching:
    """`sqltrace attach` in the background, with its log."""

    def __init__(self, log: Path, *options: str) -> None:
        self.log = log
        self.process = subprocess.Popen(
            sqltrace_command("attach", *options, "-o", str(log)), stderr=subprocess.PIPE, text=True
        )
        self.errors = ""

    def events(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def until(self, **wanted: object) -> None:
        """Wait for an event with these values."""
        end = time.monotonic() + 60
        while not any(all(e.get(k) == v for k, v in wanted.items()) for e in self.events()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, wanted
            time.sleep(0.05)

    def stop(self) -> list[dict[str, Any]]:
        self.process.send_signal(signal.SIGINT)
        _, self.errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, self.errors
        return read_log(self.log)


@contextlib.contextmanager
def watching(log: Path, *options: str) -> Iterator[Watching]:
    watching = Watching(log, *options)
    try:
        yield watching
    finally:
        if watching.process.poll() is None:
            watching.process.kill()
            watching.process.communicate()


def statements(events: list[dict[str, Any]], pid: int) -> list[str]:
    return [e["sql"] for e in events if e["event"] == "statement" and e["pid"] == pid]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A program that nobody else executes."""
    return str(shutil.copy("/usr/bin/python3", tmp_path / "python"))


def test_all_processes_of_a_file_are_observed_those_that_come_later_from_their_first_statement(
    tmp_path: Path, python: str
) -> None:
    with Server(python) as old, Server("/usr/bin/python3") as other, watching(tmp_path / "log", "--exe", python) as w:
        w.until(event="process", action="start", pid=old.process.pid)
        old.execute("SELECT 1")
        other.execute("SELECT 'other'")
        with Server(python) as new:
            new.execute("SELECT 2")
        shutil.copy("/usr/bin/python3", tmp_path / "new")
        os.replace(tmp_path / "new", python)
        time.sleep(0.5)  # a replaced file is noticed within a tenth of a second
        with Server(python) as renewed:
            renewed.execute("SELECT 3")
        shell = subprocess.run([python, "-Sc", "import os; os.system('sqlite3 :memory: \"SELECT 4\"')"], check=True)
        assert shell.returncode == 0
        events = w.stop()
    assert statements(events, old.process.pid) == ["SELECT 1"]
    assert statements(events, new.process.pid) == ["SELECT 2"]
    assert statements(events, renewed.process.pid) == ["SELECT 3"]
    assert sorted(e["sql"] for e in events if e["event"] == "statement") == [f"SELECT {n}" for n in range(1, 5)]


def test_without_following_only_processes_of_the_file_are_observed_but_all_of_them(tmp_path: Path, python: str) -> None:
    script = """
import os, sqlite3
if os.fork() == 0:
    sqlite3.connect(":memory:").execute("SELECT 'forked'")
    os._exit(0)
os.wait()
os.system("sqlite3 :memory: \\"SELECT 'another program'\\"")
"""
    with Server(python) as old, watching(tmp_path / "log", "--exe", python, "--no-follow") as w:
        w.until(event="process", action="start", pid=old.process.pid)
        subprocess.run([python, "-Sc", script], check=True)
        events = w.stop()
    assert [e["sql"] for e in events if e["event"] == "statement"] == ["SELECT 'forked'"]


def test_everything_on_the_machine_is_observed(tmp_path: Path) -> None:
    fossil = str(shutil.copy("/usr/bin/fossil", tmp_path / "another-fossil"))
    ours = ("--all", "--sql", "watched|fts5")  # somebody else may be busy here
    environment = {"HOME": str(tmp_path), "USER": "x", "PATH": "/usr/bin:/bin"}
    with Server("/usr/bin/python3") as old, watching(tmp_path / "log", *ours) as w:
        w.until(event="probe", late=True)  # the library, in `old`
        old.execute("SELECT 1 watched")
        with Server("/usr/bin/python3") as new:
            new.execute("SELECT 2 watched")
        one = subprocess.Popen([fossil, "new", "a.fossil"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        one.communicate()
        w.until(event="probe", path=fossil)
        two = subprocess.Popen([fossil, "new", "b.fossil"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        two.communicate()
        events = w.stop()
    assert statements(events, old.process.pid) == ["SELECT 1 watched"]
    assert statements(events, new.process.pid) == ["SELECT 2 watched"]
    (met,) = [e for e in events if e["event"] == "probe" and e["path"] == fossil]
    assert met["late"]
    assert "SELECT fts5(?1)" in statements(events, two.pid)[:2]
    assert "SQLite 3.40" in w.errors
    assert " process" in w.errors
    starts = [e["pid"] for e in events if e["event"] == "process" and e["action"] == "start"]
    assert {old.process.pid, new.process.pid, two.pid} <= set(starts)
    assert len(starts) == len(set(starts))


def test_what_cannot_be_watched_is_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/python3\n")

    def refusal(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(sqltrace_command("attach", *arguments), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.splitlines()[-1]

    assert refusal("--exe", str(script))[0] == 125
    assert "it is a script, and its processes are those of /usr/bin/python3" in refusal("--exe", str(script))[1]
    assert "No such file" in refusal("--exe", str(tmp_path / "none"))[1]
    assert "Name them with -p" in refusal("--all", "--backend", "frida")[1]
