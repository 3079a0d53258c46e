"""Processes in other mount, pid and user namespaces, in other roots, and of files that have no name any more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Traced, read_log, sqltrace_command

pytestmark = pytest.mark.bcc
Trace = Callable[..., Traced]

NEW_NAMESPACES = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


def user_sql(t: Traced) -> list[str | None]:
    return [s["sql"] for s in t.statements if not s["internal"]]


def test_a_container_is_followed_and_its_processes_have_both_pids(trace: Trace) -> None:
    python = "import sqlite3; sqlite3.connect(':memory:').execute('SELECT 2')"
    script = f"echo $$; sqlite3 :memory: 'SELECT 1'; /usr/bin/python3 -Sc \"{python}\""
    t = trace("bcc", *NEW_NAMESPACES, "sh", "-c", script)
    assert (t.returncode, t.stdout) == (0, "1\n1\n"), t.stderr
    assert user_sql(t) == ["SELECT 1", "SELECT 2"]
    assert [s["ns_pid"] for s in t.statements] == [2, 3]
    assert all(s["pid"] > 3 for s in t.statements)


def test_a_program_on_a_mount_that_only_the_container_sees_is_probed(trace: Trace, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    script = (
        "mount -t tmpfs none mount && cp /usr/bin/fossil mount/hidden && ls mount && "
        "mount/hidden new a.fossil >/dev/null"
    )
    environment = {"HOME": str(tmp_path), "USER": "x", "PATH": "/usr/bin:/bin"}
    t = trace("bcc", *NEW_NAMESPACES, "sh", "-c", script, env=environment | {"PATH": os.environ["PATH"]})
    assert (t.returncode, t.stdout) == (0, "hidden\n"), t.stderr
    assert not list((tmp_path / "mount").iterdir())
    assert t.sql[0] == "SELECT fts5(?1)"
    (probe,) = t.named("probe")
    assert probe["path"] == f"{tmp_path}/mount/hidden"


def test_a_program_in_another_root_with_a_loader_and_libraries_of_its_own_is_seen_from_its_first_statement(
    trace: Trace, tmp_path: Path
) -> None:
    listed = subprocess.run(["ldd", "/usr/bin/sqlite3"], capture_output=True, text=True, check=True).stdout
    needed = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    root = tmp_path / "root"
    for path in ("/usr/bin/sqlite3", *needed):
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])
    t = trace("bcc", "chroot", str(root), "/usr/bin/sqlite3", ":memory:", "SELECT 3")
    assert (t.returncode, t.stdout) == (0, "3\n"), t.stderr
    assert t.sql == ["SELECT 3"]


def test_a_program_that_deletes_itself_is_probed(trace: Trace, tmp_path: Path) -> None:
    shutil.copy("/usr/bin/fossil", tmp_path / "gone")
    script = "exec 3<gone; rm gone; exec /proc/self/fd/3 new a.fossil >/dev/null"
    environment = {"HOME": str(tmp_path), "USER": "x", "PATH": os.environ["PATH"]}
    t = trace("bcc", "sh", "-c", script, env=environment)
    assert t.returncode == 0, t.stderr
    assert t.sql[0] == "SELECT fts5(?1)"


def test_attach_enters_a_container_whose_libraries_are_hidden_from_us(tmp_path: Path) -> None:
    library = os.path.realpath("/usr/lib/x86_64-linux-gnu/libsqlite3.so.0")
    (tmp_path / "mount").mkdir()
    loop = (
        "import sqlite3, time; c = sqlite3.connect(':memory:'); print('ready', flush=True)\n"
        "while True: c.execute('SELECT 4'); time.sleep(.01)"
    )
    script = (
        f"mount -t tmpfs none mount && cp {library} mount/libsqlite3.so.0 && "
        'LD_LIBRARY_PATH=$PWD/mount exec /usr/bin/python3 -Sc "$LOOP"'
    )
    target = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"LOOP": loop},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert target.stdout
        assert target.stdout.readline() == "ready\n"
        log = tmp_path / "log"
        command = sqltrace_command("attach", "--backend", "bcc", "-p", str(target.pid), "--limit", "5", "-o", str(log))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        events = read_log(log)
        assert [e["sql"] for e in events if e["event"] == "statement"] == ["SELECT 4"] * 5
        assert target.poll() is None
    finally:
        target.send_signal(signal.SIGKILL)
        target.communicate()


def test_a_tracer_inside_a_container_says_that_it_belongs_outside() -> None:
    command = sqltrace_command("run", "--backend", "bcc", "--", "true")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 125
    assert "pid namespace" in done.stderr
    assert "--pid=host" in done.stderr
    assert len(done.stderr.splitlines()) == 1
