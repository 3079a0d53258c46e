"""Holding a process while we look at its files is seen by nobody: no shell, not the process, not its user."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Traced, read_log, sqltrace_command

pytestmark = pytest.mark.bcc
Trace = Callable[..., Traced]

CHILDREN = """
import os, sys
stops = live = started = 0
while started < 60 or live:
    while live < 4 and started < 60:
        if os.fork() == 0:
            script = "import sqlite3; sqlite3.connect(':memory:').execute('SELECT %d')" % started
            os.execv("/usr/bin/python3", ["python3", "-Sc", script])
        live += 1
        started += 1
    _, status = os.waitpid(-1, os.WUNTRACED | os.WCONTINUED)
    if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
        stops += 1
    else:
        live -= 1
print(stops)
"""


def test_a_parent_never_sees_a_child_stopped_or_continued_and_each_first_statement_is_in_the_log(trace: Trace) -> None:
    t = trace("bcc", "/usr/bin/python3", "-c", CHILDREN)
    assert (t.returncode, t.stdout) == (0, "0\n")
    assert sorted(t.sql) == sorted(f"SELECT {n}" for n in range(60))


def test_a_handler_of_sigcont_does_not_run(trace: Trace) -> None:
    script = """
import signal
hits = []
signal.signal(signal.SIGCONT, lambda *_: hits.append(1))
import sqlite3, ctypes, decimal, bz2, lzma
sqlite3.connect(":memory:").execute("SELECT 1")
print(len(hits))
"""
    t = trace("bcc", "/usr/bin/python3", "-c", script)
    assert (t.returncode, t.stdout, t.sql) == (0, "0\n", ["SELECT 1"])


STOPPED_BY_ITS_USER = """
import os, random, signal, sys, time
source, sink = os.pipe()
pid = os.fork()
if pid == 0:
    import _ctypes
    while True:
        _ctypes.dlclose(_ctypes.dlopen("libbz2.so.1.0", 2))
        os.write(sink, b".")
os.set_blocking(source, False)
def progress():
    try:
        return len(os.read(source, 1 << 16))
    except BlockingIOError:
        return 0
end = time.monotonic() + 20
while not progress():
    assert time.monotonic() < end, "it does not run"
for _ in range(40):
    time.sleep(random.random() / 100)
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP, status
    progress()
    time.sleep(0.02)
    assert not progress(), "it runs, though it was stopped"
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, os.WCONTINUED)
    assert os.WIFCONTINUED(status), status
    end = time.monotonic() + 20
    while not progress():
        assert time.monotonic() < end, "it does not go on"
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("ok")
"""

KILLED_WHILE_HELD = """
import os, signal, time
for n in range(60):
    pid = os.fork()
    if pid == 0:
        os.execv("/usr/bin/python3", ["python3", "-Sc", "import sqlite3, ctypes, bz2, lzma"])
    time.sleep(n % 20 / 1000)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -9), status
print("ok")
"""


def test_a_process_that_its_user_stops_while_we_hold_it_stays_stopped(trace: Trace) -> None:
    t = trace("bcc", "/usr/bin/python3", "-c", STOPPED_BY_ITS_USER)
    assert (t.returncode, t.stdout) == (0, "ok\n"), t.stderr


def test_a_process_that_is_killed_while_we_hold_it_is_gone_for_its_parent_at_once(trace: Trace) -> None:
    t = trace("bcc", "/usr/bin/python3", "-c", KILLED_WHILE_HELD)
    assert (t.returncode, t.stdout) == (0, "ok\n"), t.stderr


DEBUGGED = """
import os, signal, sys
from sqltrace.backends.launch import ptrace
gate, opener = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(gate, 1)
    os.execvp("sqlite3", ["sqlite3", ":memory:", "SELECT 7"])
ptrace.request(ptrace.SEIZE, pid)
os.write(opener, b".")
signals = []
while True:
    _, status = os.waitpid(pid, ptrace.WALL)
    if not os.WIFSTOPPED(status):
        break
    if ptrace.event(status) == ptrace.EVENT_STOP and os.WSTOPSIG(status) == signal.SIGSTOP:
        ptrace.request(0x4208, pid)  # PTRACE_LISTEN: stay in the group stop
    else:
        signals.append(ptrace.signal_of(status))
        ptrace.request(ptrace.CONT, pid, 0, ptrace.signal_of(status))
print(os.waitstatus_to_exitcode(status), int(signal.SIGSTOP in signals))
"""


def test_a_process_that_has_a_debugger_is_stopped_by_a_signal_instead(trace: Trace) -> None:
    t = trace("bcc", sys.executable, "-c", DEBUGGED)
    assert (t.returncode, t.stdout) == (0, "7\n0 1\n"), t.stderr
    assert t.sql == ["SELECT 7"]


class Shell:
    """An interactive bash under sqltrace in a terminal of its own."""

    PROMPT = b"<ready>"

    def __init__(self, folder: Path, log: Path) -> None:
        self.screen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ |= {"PS1": self.PROMPT.decode(), "TERM": "dumb", "HISTFILE": "/dev/null"}
            command = sqltrace_command("run", "--backend", "bcc", "-q", "-o", str(log), "--", "bash", "--norc", "-i")
            os.execv(command[0], command)  # noqa: S606 - the program under test
        self.until(self.PROMPT)

    def until(self, wanted: bytes, seconds: float = 30) -> str:
        """Read up to the wanted text; return what came before it."""
        end = time.monotonic() + seconds
        while wanted not in self.screen:
            assert select.select([self.terminal], [], [], max(end - time.monotonic(), 0))[0], self.screen
            self.screen += os.read(self.terminal, 4096)
        before, _, self.screen = self.screen.partition(wanted)
        return before.decode()

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def do(self, line: str) -> str:
        """Enter a line; return what the terminal shows up to the next prompt."""
        self.type(line + "\n")
        return self.until(self.PROMPT)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, tmp_path / "log")
    try:
        yield shell
    finally:
        if shell.pid:
            os.close(shell.terminal)  # a hangup: the shell and its jobs end
            os.waitpid(shell.pid, 0)


def test_an_interactive_shell_reports_no_job_that_its_user_did_not_stop(shell: Shell, tmp_path: Path) -> None:
    python = "/usr/bin/python3 -Sc \"import sqlite3; sqlite3.connect(':memory:').execute('SELECT {}')\""
    shown = shell.do("set -m; sqlite3 :memory: 'SELECT 100+1'")
    assert "101" in shown
    shown += shell.do("echo 'SELECT 100+2;' | sqlite3 :memory: | cat | tr 0 x")
    assert "1x2" in shown
    for n in range(3, 8):
        shown += shell.do(python.format(n) + " &")
    shown += shell.do("wait; jobs")
    shown += shell.do("(" + python.format(8) + " | " + python.format(9) + ") & " + python.format(10))
    shown += shell.do("wait; jobs; echo the-end")
    assert "Stopped" not in shown, shown
    assert re.search("Done .*python3", shown), shown  # bash does not name each

    # What the user stops is stopped, and can be continued.
    shell.type("sqlite3 z.db\n")
    shell.until(b"sqlite> ")
    shell.type("\x1a")
    shown = shell.until(Shell.PROMPT)
    assert len(re.findall("Stopped .*sqlite3 z.db", shown)) == 1, shown
    assert re.search("Stopped .*sqlite3 z.db", shell.do("jobs"))
    shell.type("fg\n")
    shell.type("SELECT 100+20;\n.quit\n")
    assert "120" in shell.until(Shell.PROMPT)
    assert "Stopped" not in shell.do("jobs")
    shell.type("exit 5\n")
    _, status = os.waitpid(shell.pid, 0)
    shell.pid = 0
    os.close(shell.terminal)
    assert os.waitstatus_to_exitcode(status) == 5
    seen = {e["sql"] for e in read_log(tmp_path / "log") if e["event"] == "statement"}
    assert seen >= {f"SELECT {n}" for n in range(3, 11)} | {"SELECT 100+1", "SELECT 100+2;", "SELECT 100+20;"}


def test_without_real_time_priority_first_statements_are_still_seen(tmp_path: Path) -> None:
    """CAP_SYS_NICE is missing: no holder, so a signal stops the process."""
    log = tmp_path / "log"
    command = sqltrace_command(
        "run", "--backend", "bcc", "-o", str(log), "--", "sh", "-c", "sqlite3 a.db 'SELECT 3'; :"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_nice", *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert [e["sql"] for e in read_log(log) if e["event"] == "statement"] == ["SELECT 3"]
