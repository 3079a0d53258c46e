"""Commands under the bcc backend: what they did is in the log, and they did not notice."""

from __future__ import annotations

import os
import pwd
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Traced, read_log, sqltrace_command

pytestmark = pytest.mark.bcc
Trace = Callable[..., Traced]


def test_every_execution_of_the_sqlite3_shell_is_seen(trace: Trace, tmp_path: Path) -> None:
    t = trace("bcc", "sqlite3", "t.db", "CREATE TABLE t(a, b); INSERT INTO t VALUES(1, 2), (3, 4); SELECT * FROM t")
    assert t.returncode == 0
    assert t.stdout == "1|2\n3|4\n"
    user = [(s["sql"], s["rc_name"], s["rows"], s["changes"]) for s in t.statements if not s["internal"]]
    assert user == [
        ("CREATE TABLE t(a, b);", "DONE", 0, 0),
        ("INSERT INTO t VALUES(1, 2), (3, 4);", "DONE", 0, 2),
        ("SELECT * FROM t", "DONE", 2, 0),
    ]
    assert {s["db"] for s in t.statements} == {str(tmp_path / "t.db")}
    assert t.end["hits"] == t.end["emitted"] == len(t.statements)
    assert [e["seq"] for e in t.events] == list(range(len(t.events)))


def test_a_library_that_arrives_by_dlopen_is_seen_from_its_first_statement(trace: Trace) -> None:
    script = """
import sqlite3
c = sqlite3.connect("p.db")
c.execute("CREATE TABLE t(a)")
c.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(20)])
c.commit()
print(c.execute("SELECT sum(a) FROM t").fetchone()[0])
"""
    t = trace("bcc", "/usr/bin/python3", "-c", script)
    assert (t.returncode, t.stdout) == (0, "190\n")
    user = [s["sql"] for s in t.statements if not s["internal"]]
    assert user == [
        "CREATE TABLE t(a)",
        "BEGIN ",
        *["INSERT INTO t VALUES(?)"] * 20,
        "COMMIT",
        "SELECT sum(a) FROM t",
    ]


def test_fossil_new_creates_what_the_log_says(trace: Trace, tmp_path: Path) -> None:
    t = trace("bcc", "fossil", "new", "a.fossil", env={"HOME": str(tmp_path), "USER": "x", "PATH": "/usr/bin:/bin"})
    assert t.returncode == 0, t.stderr
    database = sqlite3.connect(tmp_path / "a.fossil")
    texts = [s["sql"] for s in t.statements if s["sql"]]
    for (sql,) in database.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"):
        assert any(sql in text.replace("CREATE TABLE repository.", "CREATE TABLE ") for text in texts), sql
    inserted = sum(
        s["changes"] for s in t.statements if s["sql"] and s["sql"].lstrip().upper().startswith("INSERT INTO BLOB")
    )
    assert inserted == database.execute("SELECT count(*) FROM blob").fetchone()[0]
    database.close()


def test_a_text_of_more_than_a_megabyte_arrives_whole(trace: Trace, tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import sqlite3\nc = sqlite3.connect(':memory:')\n"
        "for n in (1, 2046, 2047, 2048, 16384, 100_000, 1_500_000):\n"
        "    c.execute('SELECT ' + '1' + '/*' + 'x' * n + '*/')\n"
    )
    t = trace("bcc", "/usr/bin/python3", str(script))
    lengths = [s["sql_bytes"] for s in t.statements if not s["internal"]]
    assert lengths == [12 + n for n in (1, 2046, 2047, 2048, 16384, 100_000, 1_500_000)]
    assert t.statements[-1]["sql"] == "SELECT 1/*" + "x" * 1_500_000 + "*/"


@pytest.mark.parametrize("n", [4, 5, 64, 65, 1024, 1025, 32766])
def test_bound_variables_are_counted_exactly(trace: Trace, n: int) -> None:
    script = (
        f"import sqlite3\nc = sqlite3.connect(':memory:')\n"
        f"c.execute('SELECT 1 WHERE 1 IN (' + ','.join('?' * {n}) + ')', ['ab'] * {n - 3} + [7, 1.5, None])"
    )
    t = trace("bcc", "/usr/bin/python3", "-c", script)
    (s,) = [s for s in t.statements if not s["internal"]]
    assert (s["vars"], s["bound_bytes"]) == (n, 2 * (n - 3) + 16)


def test_exit_status_and_signals_pass_through(trace: Trace) -> None:
    assert trace("bcc", "sh", "-c", "exit 42").returncode == 42
    assert trace("bcc", "sh", "-c", "kill -TERM $$").returncode == -15
    assert trace("bcc", "sh", "-c", "kill -KILL $$").returncode == -9


def test_children_are_followed_through_shells(trace: Trace) -> None:
    t = trace("bcc", "sh", "-c", "sqlite3 a.db 'CREATE TABLE x(y)' && (echo 'SELECT 7;' | sqlite3 b.db) && true")
    assert t.returncode == 0
    assert t.stdout == "7\n"
    assert [s["sql"] for s in t.statements if not s["internal"]] == ["CREATE TABLE x(y)", "SELECT 7;"]
    actions = [e["action"] for e in t.named("process")]
    assert actions.count("exit") == actions.count("start") >= 3


def test_without_following_only_the_command_itself_is_seen(trace: Trace) -> None:
    t = trace("bcc", "sh", "-c", "sqlite3 a.db 'CREATE TABLE x(y)'; true", options=("--no-follow",))
    assert t.returncode == 0
    assert t.statements == []


def test_a_statement_running_at_exit_is_reported(trace: Trace) -> None:
    script = (
        "import sqlite3, os\nc = sqlite3.connect(':memory:')\n"
        "r = c.execute('SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3')\nnext(r)\nos._exit(3)"
    )
    t = trace("bcc", "/usr/bin/python3", "-c", script)
    assert t.returncode == 3
    (s,) = [s for s in t.statements if not s["internal"]]
    assert (s["end"], s["rc_name"], s["incomplete"], s["changes"]) == ("exit", "ROW", True, None)
    assert t.end["hits"] == t.end["emitted"]


def test_the_terminal_form_goes_to_stderr_and_the_output_stays_the_commands(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sqltrace", "run", "--backend", "bcc", "--", "sqlite3", ":memory:", "SELECT 5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "5\n"
    assert "SELECT 5\n  sqlite3 pid=" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_terminal_is_told_of_the_compilation_and_nothing_else_is(tmp_path: Path) -> None:
    command = f"{sys.executable} -m sqltrace run --backend bcc -- sqlite3 :memory: 'SELECT 5'"
    done = subprocess.run(["script", "-qec", command, "/dev/null"], capture_output=True, check=True)
    before, after = done.stdout.split(b"compiling the probes...")
    assert before == b"sqltrace: "
    assert after.startswith(b"\r\x1b[K")
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    assert b"compiling" not in done.stdout + done.stderr


def test_what_a_filter_leaves_out_is_counted(trace: Trace) -> None:
    sql = "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); INSERT INTO t VALUES(1)"
    t = trace("bcc", "sqlite3", "f.db", sql, options=("--sql", "^insert", "--db", "*.db"))
    assert [s["rc_name"] for s in t.statements] == ["DONE", "DONE", "CONSTRAINT_UNIQUE"]
    assert t.end["hits"] == t.end["emitted"] + t.end["filtered"]
    assert t.end["filtered"] > 0


def test_the_limit_ends_the_observation_and_not_the_command(trace: Trace) -> None:
    t = trace("bcc", "sqlite3", "l.db", "SELECT 1; SELECT 2; SELECT 3; SELECT 4", options=("--limit", "2"))
    assert t.stdout == "1\n2\n3\n4\n"
    assert len(t.statements) == 2
    assert t.end["hits"] == t.end["emitted"] + t.end["filtered"]


def test_a_flood_that_overflows_the_ring_is_accounted_for(trace: Trace) -> None:
    script = (
        "import sqlite3\nc = sqlite3.connect(':memory:')\nc.execute('CREATE TABLE t(a INTEGER PRIMARY KEY)')\n"
        "c.executemany('INSERT OR REPLACE INTO t VALUES(?)', [(n % 9,) for n in range(300_000)])"
    )
    t = trace("bcc", "/usr/bin/python3", "-c", script, options=("--ring-size", "64k"))
    assert t.returncode == 0
    lost = {(e["type"], e["reason"]): e["count"] for e in t.end["lost"]}
    assert lost["statement", "ring_full"] > 0, "a ring of 64 KiB holds 480 of them"
    assert t.end["hits"] >= 300_000
    assert t.end["hits"] == t.end["emitted"] + t.end["filtered"] + lost["statement", "ring_full"]
    assert t.end["emitted"] == len(t.statements)
    assert sum(e["count"] for e in t.named("lost") if e["type"] == "statement") == lost["statement", "ring_full"]
    assert [e["seq"] for e in t.events] == list(range(len(t.events)))


def test_the_command_can_be_another_user_and_the_log_belongs_to_who_called_sudo(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import os, sqlite3; print(*os.getresuid(), *os.getresgid(), os.getgroups(), os.environ['USER']);"
        "sqlite3.connect(':memory:').execute('SELECT 1')"
    )
    nobody = pwd.getpwnam("nobody")
    done = subprocess.run(
        sqltrace_command(
            "run", "--backend", "bcc", "-u", "nobody", "-o", str(log), "--", "/usr/bin/python3", "-c", script
        ),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SUDO_UID": "12345", "SUDO_GID": "23456"},
        cwd="/",
    )
    uid, gid = nobody.pw_uid, nobody.pw_gid
    groups = os.getgrouplist("nobody", gid)
    assert (done.returncode, done.stdout) == (0, f"{uid} {uid} {uid} {gid} {gid} {gid} {groups} nobody\n"), done.stderr
    events = read_log(log)
    assert [(e["sql"], e["uid"]) for e in events if e["event"] == "statement"] == [("SELECT 1", uid)]
    info = log.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (12345, 23456, 0o600)


def test_a_user_that_the_command_cannot_be_is_one_sentence() -> None:
    def refusal(*prefix: str, user: str) -> str:
        command = [*prefix, *sqltrace_command("run", "-q", "-u", user, "--backend", "bcc", "--", "true")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (125, 126)
        return done.stderr

    assert refusal(user="no-such-user") == "sqltrace: cannot run the command as no-such-user: there is no such user.\n"
    frida = subprocess.run(
        sqltrace_command("run", "--backend", "frida", "-u", "nobody", "--", "true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert frida.returncode == 125
    assert "Run sqltrace as that user, or use bcc" in frida.stderr
    assert "Operation not permitted" in refusal("setpriv", "--bounding-set", "-setuid", user="nobody")
