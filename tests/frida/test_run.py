"""`sqltrace run --backend frida` on real programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Traced, read_log, sqltrace_command
from tests.support.frida_targets import PYTHON, busy, busy_static, environment

pytestmark = pytest.mark.frida

Trace = Callable[..., Traced]


@pytest.fixture
def run(trace: Trace) -> Trace:
    """Run a command under the Frida backend, and hold it to its books."""

    def run(*command: str, **kwargs: Any) -> Traced:
        traced = trace("frida", *command, env=environment(USER="tester"), **kwargs)  # fossil wants to know
        if traced.events and traced.named("session_end"):
            lost = sum(entry["count"] for entry in traced.end["lost"] if entry["type"] == "statement")
            assert traced.end["hits"] == traced.end["emitted"] + traced.end["filtered"] + lost
            assert traced.end["emitted"] == len(traced.statements)
        return traced

    return run


def own(traced: Traced) -> list[dict[str, Any]]:
    return [s for s in traced.statements if not s["internal"]]


def python(code: str) -> tuple[str, ...]:
    return (PYTHON, "-c", "import sqlite3, os, sys, signal\n" + code)


def test_every_statement_of_the_sqlite3_program_is_seen(run: Trace) -> None:
    traced = run("sqlite3", "t.db", "create table t(a); insert into t values(1),(2); select * from t;")
    assert traced.returncode == 0
    assert traced.stdout == "1\n2\n"
    assert [(s["sql"], s["rows"], s["changes"], s["rc"]) for s in own(traced)] == [
        ("create table t(a);", 0, 0, 101),
        ("insert into t values(1),(2);", 0, 2, 101),
        (" select * from t;".strip(), 2, 0, 101),
    ]
    assert {os.path.basename(s["db"]) for s in own(traced)} == {"t.db"}


def test_a_library_that_arrives_by_dlopen_is_hooked_before_its_first_statement(run: Trace) -> None:
    traced = run(
        *python("c = sqlite3.connect(':memory:')\nfor i in range(500): c.execute('select ?', (i,)).fetchall()")
    )
    assert traced.returncode == 0
    assert sum(s["sql"] == "select ?" for s in traced.statements) == 500
    assert [os.path.basename(p["path"]) for p in traced.named("probe")] == ["libsqlite3.so.0"]


@pytest.mark.skipif(shutil.which("fossil") is None, reason="fossil is not installed")
def test_fossil_is_seen_though_it_is_stripped_and_static_in_sqlite(run: Trace) -> None:
    traced = run("fossil", "new", "a")
    assert traced.returncode == 0
    assert "project-id" in traced.stdout
    assert any(str(s["sql"]).startswith("CREATE TABLE blob") for s in traced.statements)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(3)", 3),
        ("os._exit(5)", 5),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_the_exit_status_is_the_commands_own_and_nothing_is_lost_at_the_end(run: Trace, end: str, status: int) -> None:
    traced = run(
        *python(
            "c = sqlite3.connect(':memory:')\nfor i in range(1000): c.execute('select ?', (i,)).fetchall()\n"
            f"r = c.execute('select 1 union all select 2 union all select 3'); next(r)\n{end}"
        )
    )
    assert traced.returncode == status
    assert sum(s["sql"] == "select ?" for s in traced.statements) == 1000
    assert traced.end["lost"] == []
    last = [s for s in traced.statements if str(s["sql"]).startswith("select 1 union")]
    assert [(s["rows"], s["rc"]) for s in last] == [(2, 100)]  # Python steps once ahead
    assert last[0]["end"] == ("reset" if status == 3 else "exit")
    exits = [p for p in traced.named("process") if p["action"] == "exit"]
    assert len(exits) == 1


def test_nothing_is_lost_when_the_program_becomes_another(run: Trace) -> None:
    traced = run(
        *python(
            "c = sqlite3.connect(':memory:')\nfor i in range(1000): c.execute('select ?', (i,)).fetchall()\n"
            "os.execv('/bin/sh', ('sh', '-c', 'exit 4'))"
        )
    )
    assert traced.returncode == 4
    assert sum(s["sql"] == "select ?" for s in traced.statements) == 1000
    assert traced.end["lost"] == []


def test_a_program_waits_for_us_where_nothing_may_be_lost(run: Trace) -> None:
    small = ("--ring-size", "64k")
    dropping = run(str(busy()), "2", "10000", options=small)
    assert sum(entry["count"] for entry in dropping.end["lost"]) > 1000
    blocking = run(str(busy()), "2", "10000", options=(*small, "--on-overflow", "block"))
    assert blocking.returncode == 7
    assert blocking.end["lost"] == []
    assert sum(s["sql"] == "SELECT ?1+1" for s in blocking.statements) == 20000


def test_a_program_that_waits_for_us_goes_on_when_we_are_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ("run", "--backend", "frida", "--ring-size", "64k", "--on-overflow", "block", "-o", str(log), "--")
    with subprocess.Popen(
        sqltrace_command(*command, str(busy()), "2", "300000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "ready\n"
        time.sleep(0.3)
        tracer.kill()
        assert tracer.stdout.read() == "fine 600000\n"


def test_threads_are_told_apart_and_counted_exactly(run: Trace) -> None:
    traced = run(str(busy()), "4", "5000")
    assert traced.returncode == 7
    assert "fine 20000" in traced.stdout
    statements = [s for s in traced.statements if s["sql"] == "SELECT ?1+1"]
    assert len(statements) == 20000
    assert all(s["bound_bytes"] == 8 and s["vars"] == 1 and s["rows"] == 1 for s in statements)
    assert len({s["tid"] for s in statements}) == 4
    assert all(s["tid"] != s["pid"] for s in statements)


def test_forked_children_are_followed(run: Trace) -> None:
    traced = run(
        *python(
            "c = sqlite3.connect(':memory:'); c.execute('select 0').fetchall()\n"
            "for n in range(4):\n"
            "    if os.fork() == 0:\n"
            "        c = sqlite3.connect(':memory:')\n"
            "        for i in range(100): c.execute('select ?', (i,)).fetchall()\n"
            "        os._exit(0)\n"
            "for n in range(4): os.wait()\n"
        )
    )
    assert traced.returncode == 0
    assert sum(s["sql"] == "select ?" for s in traced.statements) == 400
    assert len({s["pid"] for s in traced.statements if s["sql"] == "select ?"}) == 4
    actions = [p["action"] for p in traced.named("process")]
    assert actions.count("start") == actions.count("exit") == 5


def test_a_text_of_a_megabyte_arrives_whole(run: Trace) -> None:
    traced = run(*python("sqlite3.connect(':memory:').execute('select ' + repr('x' * 1_200_000)).fetchall()"))
    (statement,) = own(traced)
    assert statement["sql_bytes"] == 1_200_009
    assert statement["sql"] == "select '" + "x" * 1_200_000 + "'"


def test_as_many_variables_as_sqlite_takes_are_summed(run: Trace) -> None:
    traced = run(
        *python(
            "n = 32766\n"
            "sqlite3.connect(':memory:').execute('select ' + '+'.join(['length(?)'] * 0 + ['?'] * 900), [1] * 900)\n"
            "sqlite3.connect(':memory:').execute('select 1 where 1 in (' + ','.join('?' * n) + ')', ['ab'] * n)\n"
        )
    )
    assert [(s["vars"], s["bound_bytes"]) for s in own(traced)] == [(900, 7200), (32766, 65532)]


def test_statements_at_the_same_address_keep_their_own_text(run: Trace) -> None:
    script = "".join(f"select {i};\n" for i in range(2000))
    traced = run("sqlite3", ":memory:", script)  # sqlite3_exec destroys statements where no hook looks
    assert [str(s["sql"]).strip() for s in own(traced)] == [f"select {i};" for i in range(2000)]


def test_a_static_program_is_refused_before_it_runs(run: Trace, tmp_path: Path) -> None:
    traced = run(str(busy_static()), "1", "1")
    assert traced.returncode == 125
    assert traced.stdout == ""
    assert "it is statically linked, and Frida would kill it. Use --backend bcc (as root)." in traced.stderr
    assert "Traceback" not in traced.stderr


@pytest.mark.parametrize(("name", "status"), [("no-such-command-here", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_has_the_shells_status(run: Trace, name: str, status: int) -> None:
    traced = run(name)
    assert traced.returncode == status
    assert name in traced.stderr
    assert "Traceback" not in traced.stderr


def test_a_script_runs_with_its_interpreter_and_our_stdin(run: Trace, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        f"#!{PYTHON}\nimport sqlite3, sys\n"
        "print(sqlite3.connect(':memory:').execute('select ?', (sys.stdin.read(),)).fetchone()[0], sys.argv[1])\n"
    )
    script.chmod(0o755)
    traced = run(str(script), "word", input="hello")
    assert traced.stdout == "hello word\n"
    assert [s["bound_bytes"] for s in own(traced)] == [5]


def test_the_command_gets_no_descriptor_and_no_ignored_signal_of_ours(run: Trace) -> None:
    show = ("sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status; ls /proc/self/fd")
    plain = subprocess.run(show, capture_output=True, text=True, check=True)
    assert run(*show).stdout == plain.stdout


def test_a_program_that_loads_one_library_after_another_does_not_hang(run: Trace) -> None:
    storm = Path(__file__).parents[1] / "support" / "dlopen_storm.py"
    for _ in range(5):  # the agent once looked up a function while it held a lock that dlopen waited for
        assert run(PYTHON, str(storm), timeout=30).returncode == 0


def test_our_death_does_not_touch_the_command(tmp_path: Path) -> None:
    code = (
        "import sqlite3, sys, time\nc = sqlite3.connect(':memory:'); n = 0; print('ready', flush=True)\n"
        "end = time.time() + 4\n"
        "while time.time() < end: n += c.execute('select 1').fetchone()[0]\n"
        "c.execute('create table t(a)'); c.executemany('insert into t values(?)', [(i,) for i in range(1000)])\n"
        "print(c.execute('select sum(a) from t').fetchone()[0], flush=True)\n"
    )
    log = tmp_path / "log"
    with subprocess.Popen(
        sqltrace_command("run", "--backend", "frida", "-o", str(log), "--", PYTHON, "-c", code),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "ready\n"
        time.sleep(0.5)
        tracer.kill()
        assert tracer.stdout.read() == "499500\n"
    assert any(e["event"] == "statement" for e in read_log_until_cut(log))


def read_log_until_cut(path: Path) -> list[dict[str, Any]]:
    """The tracer was killed: its last line may be a part of one."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    path.write_bytes(whole + b"\n")
    return read_log(path)
