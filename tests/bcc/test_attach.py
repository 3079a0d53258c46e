"""Joining and leaving a running process; the tracer's death."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqltrace.backends.elf_file import dynamic_symbol
from tests.conftest import read_log, sqltrace_command

pytestmark = pytest.mark.bcc

WRITER = """
import sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, s TEXT)")
print("ready", flush=True)
for i in range(int(sys.argv[2])):
    c.execute("INSERT INTO t VALUES(?, ?)", (i, "x" * (i % 7)))
    time.sleep(0.002)
"""


@contextlib.contextmanager
def writer(folder: Path, rows: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", WRITER, str(folder / "w.db"), str(rows)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def code_of_step(pid: int) -> bytes:
    """The first bytes of sqlite3_step in the process's memory."""
    path = "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0"
    address = dynamic_symbol(path, "sqlite3_step")
    assert address
    base = next(
        int(line.split("-")[0], 16) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "sqlite3" in line
    )
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(base + address)
        return memory.read(32)


def test_it_joins_a_running_process_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with writer(tmp_path, 2000) as process:
        before = code_of_step(process.pid)
        done = subprocess.run(
            sqltrace_command("attach", "--backend", "bcc", "-p", str(process.pid), "--limit", "60", "-o", str(log)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert process.poll() is None
        assert code_of_step(process.pid) == before
        events = read_log(log)
        inserts = [e for e in events if e["event"] == "statement"]
        assert len(inserts) == 60
        rows = [e["bound_bytes"] - 8 for e in inserts]
        start = rows[0]
        assert rows == [(start + n) % 7 for n in range(len(rows))], "every execution in a row, with its own values"
        assert {(e["sql"], e["rc_name"], e["changes"]) for e in inserts} == {("INSERT INTO t VALUES(?, ?)", "DONE", 1)}
        assert events[-1]["hits"] == events[-1]["emitted"] + events[-1]["filtered"]


def test_ctrl_c_ends_the_session_and_not_the_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with writer(tmp_path, 3000) as process:
        tracer = subprocess.Popen(
            sqltrace_command("attach", "--backend", "bcc", "-p", str(process.pid), "-o", str(log)),
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: log.exists() and b'"statement"' in log.read_bytes())
        tracer.send_signal(signal.SIGINT)
        _, errors = tracer.communicate(timeout=30)
        assert tracer.returncode == 0, errors
        assert process.poll() is None
        assert read_log(log)[-1]["event"] == "session_end"


def wait_for(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def test_the_command_survives_kill_9_of_the_tracer(tmp_path: Path) -> None:
    log, db = tmp_path / "log", tmp_path / "w.db"
    tracer = subprocess.Popen(
        sqltrace_command(
            "run", "--backend", "bcc", "-o", str(log), "--", "/usr/bin/python3", "-c", WRITER, str(db), "800"
        ),
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: log.exists() and b'"statement"' in log.read_bytes())
    child = next(e["pid"] for e in read_log_so_far(log) if e["event"] == "process")
    tracer.kill()
    tracer.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{child}"))
    with contextlib.closing(sqlite3.connect(db)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (800,)


def read_log_so_far(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.parametrize("delay", [0.9, 1.0, 1.1, 1.2, 1.3])
def test_a_process_that_was_stopped_for_us_runs_on_when_we_are_killed(tmp_path: Path, delay: float) -> None:
    """Killed while libraries are being loaded: the guard continues whatever is stopped."""
    script = "import sqlite3, ctypes, json, decimal, zlib, bz2, lzma; open('done', 'w').close()"
    tracer = subprocess.Popen(
        sqltrace_command("run", "--backend", "bcc", "-o", "log", "--", "/usr/bin/python3", "-c", script), cwd=tmp_path
    )
    time.sleep(delay)
    tracer.kill()
    tracer.wait()
    if not (tmp_path / "done").exists():
        started = (tmp_path / "log").exists() and b'"exec"' in (tmp_path / "log").read_bytes()
        time.sleep(3)
        assert (tmp_path / "done").exists() or not started


def test_a_process_without_sqlite_is_one_sentence_and_125() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        done = subprocess.run(
            sqltrace_command("attach", "--backend", "bcc", "-p", str(sleeper.pid)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 125
        assert f"no SQLite in process {sleeper.pid} (sleep)" in done.stderr
        assert "Traceback" not in done.stderr
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_no_such_process_is_one_sentence_and_125() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sqltrace", "attach", "-p", "4194303"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (125, "sqltrace: there is no process 4194303.\n")


def test_two_tracers_at_once_both_see_everything_and_do_not_disturb_each_other(tmp_path: Path) -> None:
    def tracer(log: Path, pid: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            sqltrace_command("attach", "--backend", "bcc", "-p", str(pid), "-o", str(log)),
            stderr=subprocess.PIPE,
            text=True,
        )

    first, second = tmp_path / "first", tmp_path / "second"
    with writer(tmp_path, 6000) as process:
        one = tracer(first, process.pid)
        wait_for(lambda: first.exists() and first.read_bytes().count(b'"statement"') > 20)
        two = tracer(second, process.pid)
        wait_for(lambda: second.exists() and second.read_bytes().count(b'"statement"') > 20)
        one.send_signal(signal.SIGINT)
        _, errors = one.communicate(timeout=30)
        assert one.returncode == 0, errors
        seen = second.read_bytes().count(b'"statement"')
        wait_for(lambda: second.read_bytes().count(b'"statement"') > seen + 50)
        two.kill()
        two.communicate()
        wait_for(lambda: b"\xcc" not in code_of_step(process.pid)[:8])
        assert process.poll() is None
    rows = [e["bound_bytes"] - 8 for e in read_log(first) if e["event"] == "statement"]
    assert rows == [(rows[0] + n) % 7 for n in range(len(rows))]
    assert read_log(first)[-1]["hits"] == len(rows)
    rows = [e["bound_bytes"] - 8 for e in read_log_so_far(second) if e["event"] == "statement"]  # type: ignore[operator]
    assert rows == [(rows[0] + n) % 7 for n in range(len(rows))], "nothing is missing around the other's end"


def test_two_tracers_hold_the_same_processes_and_both_see_their_first_statements(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    script = "for n in 1 2 3 4 5; do sqlite3 :memory: \"SELECT $n\"; /usr/bin/python3 -Sc 'import sqlite3'; done"
    command = sqltrace_command("run", "--backend", "bcc", "-o", str(inner), "--", "sh", "-c", script)
    done = subprocess.run(
        sqltrace_command("run", "--backend", "bcc", "-o", str(outer), "--", *command),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "1\n2\n3\n4\n5\n"), done.stderr
    for log in (inner, outer):
        texts = [e["sql"] for e in read_log(log) if e["event"] == "statement" and e["comm"] == "sqlite3"]
        assert texts == [f"SELECT {n}" for n in range(1, 6)], log.name
