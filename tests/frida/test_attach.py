"""`sqltrace attach --backend frida` on running programs."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqltrace.backends.base import Counts, Item, Options, Probed, Refused
from sqltrace.backends.frida import FridaBackend, resident
from sqltrace.backends.frida.hooks import Finder
from sqltrace.backends.frida.process import Observed
from sqltrace.errors import NoSQLiteError, TargetError
from sqltrace.events.wire import STATEMENT, End
from sqltrace.resolve.query import sqlite_in
from tests.conftest import read_log, sqltrace_command
from tests.support.frida_targets import PYTHON, busy, busy_static, environment

pytestmark = pytest.mark.frida

NOBODY = 65534


@contextmanager
def running(*command: str | Path, user: int | None = None, first: str = "ready\n") -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        user=user,
        group=user,
        cwd="/",
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == first
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    out, _ = process.communicate("\n", timeout=60)
    return out, process.returncode


def statements(items: Sequence[Item]) -> np.ndarray[Any, Any]:
    batches = [item for item in items if isinstance(item, np.ndarray)]
    return np.concatenate(batches) if batches else np.zeros(0, STATEMENT)


def observe(pids: Sequence[int], seconds: float) -> tuple[list[Item], Counts]:
    trace = FridaBackend().attach(pids, sqlite_in, Options())
    items: list[Item] = []
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            items += trace.drain(0.05)
    finally:
        items += trace.detach()
    assert trace.detach() == []
    # Another test run's bcc tracer may be on the loader, which is said.
    assert not [i for i in items if isinstance(i, Refused) and "another tracer watches" not in i.reason]
    return items, trace.counts()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def code_of(pid: int, items: Sequence[Item]) -> bytes:
    """The first bytes of the functions that were probed, as they are in memory now."""
    (probed,) = [item for item in items if isinstance(item, Probed)]
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(probed.path))
    found = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for name in ("sqlite3_step", "sqlite3_reset", "sqlite3_finalize"):
            memory.seek(base + probed.resolution.functions[name].address)
            found += memory.read(32) or b""
    return found


def test_a_busy_process_is_joined_and_left_as_it_was() -> None:
    with running(busy(), "4") as process:
        items, counts = observe([process.pid], 0.5)
        rows = statements(items)
        assert len(rows) > 1000
        assert counts.hits == len(rows) + sum(counts.lost.values())
        assert set(rows["pid"].tolist()) == {process.pid}
        assert len(set(rows["tid"].tolist())) == 4
        (probed,) = [item for item in items if isinstance(item, Probed)]
        file = Path(probed.path).read_bytes()
        wanted = b""
        for name in ("sqlite3_step", "sqlite3_reset", "sqlite3_finalize"):
            address = probed.resolution.functions[name].address  # of this library also the file offset
            wanted += file[address : address + 32]
        assert code_of(process.pid, items) == wanted
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "TracerPid:\t0" in status
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


def test_rounds_on_four_busy_threads_do_no_harm() -> None:
    rounds, seconds = (200, 600.0) if os.environ.get("SQLTRACE_ALL_BUILDS") else (40, 20.0)
    with running(busy(), "4") as process:
        items, _ = observe([process.pid], 0.02)
        as_it_was, inhabitants = code_of(process.pid, items), len(os.listdir(f"/proc/{process.pid}/task"))
        end = time.monotonic() + seconds
        for done in range(1, rounds):
            items, counts = observe([process.pid], 0.02)
            assert counts.hits == len(statements(items)) + sum(counts.lost.values())
            assert counts.hits > 0
            assert process.poll() is None
            assert code_of(process.pid, items) == as_it_was
            assert len(os.listdir(f"/proc/{process.pid}/task")) <= inhabitants  # nothing was brought in again
            if time.monotonic() > end:
                assert done > 3
                break
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


def test_a_library_that_is_loaded_after_we_left_asks_nobody() -> None:
    code = (
        "import ctypes\nlib = ctypes.CDLL('libsqlite3.so.0')\nprint('ready', flush=True)\ninput()\n"
        "import sqlite3, bz2, lzma, decimal\nprint(sqlite3.connect(':memory:').execute('select 1').fetchall())"
    )
    with running(PYTHON, "-c", code) as process:
        observe([process.pid], 0.05)
        assert finish(process) == ("[(1,)]\n", 0)


def test_what_is_left_of_a_visit_serves_the_next_also_in_a_forked_child() -> None:
    code = (
        "import sqlite3, os, sys, time\nc = sqlite3.connect(':memory:')\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\npid = os.fork()\nif pid == 0:\n"
        "    print(os.getpid(), flush=True)\n    end = time.time() + 20\n"
        "    while time.time() < end: c.execute('select 5').fetchall()\n"
        "    os._exit(0)\n"
        "sys.stdin.readline(); os.kill(pid, 9); os.wait()"
    )
    with running(PYTHON, "-c", code) as process:
        assert process.stdin
        assert process.stdout
        observe([process.pid], 0.05)
        process.stdin.write("\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        threads = len(os.listdir(f"/proc/{child}/task"))
        items, _ = observe([child], 0.3)
        assert len(statements(items)) > 10
        assert set(statements(items)["pid"].tolist()) == {child}
        assert len(os.listdir(f"/proc/{child}/task")) == threads == 1
        assert finish(process) == ("", 0)


@pytest.mark.parametrize(
    "note", [b"", b"SQTNOTE1\xff\xff\xff\xff{", b"SQTNOTE1\x02\x00\x00\x00[]", b"SQTNOTE1\x02\x00\x00\x00{}"]
)
def test_a_note_that_makes_no_sense_is_not_believed(note: bytes) -> None:
    fd = os.memfd_create("sqltrace")
    os.ftruncate(fd, 1 << 16)
    with mmap.mmap(fd, 1 << 16) as memory:
        os.close(fd)
        memory[:8] = b"SQTRING1"
        memory[512 : 512 + len(note)] = note
        assert resident.find(os.getpid()) is None


def test_what_is_running_when_we_leave_is_told_as_detached() -> None:
    code = (
        "import sqlite3\nc = sqlite3.connect(':memory:')\nprint('ready', flush=True)\ninput()\n"
        "r = c.execute('select 1 union all select 2 union all select 3'); next(r)\nprint('half', flush=True)\ninput()\n"
        "print(list(r))"
    )
    with running(PYTHON, "-c", code) as process:
        assert process.stdin
        assert process.stdout
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "half\n"
        items = [*trace.drain(0), *trace.detach()]
        rows = statements(items)
        assert [int(f) & 15 for f in rows["flags"].tolist()] == [End.DETACH]
        assert rows["rows"].tolist() == [2]
        assert finish(process) == ("[(2,), (3,)]\n", 0)


def test_forked_children_get_their_code_back() -> None:
    code = (
        "import sqlite3, os, sys\nc = sqlite3.connect(':memory:')\nprint('ready', flush=True)\ninput()\n"
        "pid = os.fork()\nc = sqlite3.connect(':memory:')\nc.execute('select 5').fetchall()\n"
        "if pid == 0:\n"
        "    print(os.getpid(), flush=True)\n    sys.stdin.readline()\n"
        "    c.execute('select 6').fetchall(); print('child', flush=True); os._exit(0)\n"
        "os.waitpid(pid, 0); c.execute('select 7').fetchall(); print('parent', flush=True)"
    )
    with running(PYTHON, "-c", code) as process:
        assert process.stdin
        assert process.stdout
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        process.stdin.write("\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        items: list[Item] = []
        end = time.monotonic() + 5
        while child not in set(statements(items)["pid"].tolist()) and time.monotonic() < end:
            items += trace.drain(0.1)
        patched = code_of(child, items)
        items += trace.detach()
        assert not any(isinstance(item, Refused) for item in items), [i for i in items if isinstance(i, Refused)]
        assert code_of(child, items) != patched
        assert code_of(child, items) == code_of(process.pid, items)
        assert finish(process) == ("child\nparent\n", 0)


def test_a_stopped_process_is_refused_because_frida_would_let_it_run() -> None:
    with running(busy(), "2") as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        with pytest.raises(TargetError, match=rf"Continue it first \(kill -CONT {process.pid}\)"):
            FridaBackend().attach([process.pid], sqlite_in, Options())
        assert state_of(process.pid) == "T"
        process.send_signal(signal.SIGCONT)
        assert finish(process)[1] == 7


def test_a_process_that_was_stopped_meanwhile_stays_stopped_and_gets_its_code_back() -> None:
    with running(busy(), "2") as process:
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        items = list(trace.drain(0.1))
        patched = code_of(process.pid, items)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        items += trace.detach()
        assert state_of(process.pid) == "T"
        assert code_of(process.pid, items) != patched
        process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.04])
def test_a_process_that_is_stopped_in_the_moment_we_leave_is_left_all_the_same(delay: float) -> None:
    with running(busy(), "4") as process:
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        items = list(trace.drain(0.1))
        patched = code_of(process.pid, items)
        timer = threading.Timer(delay, process.send_signal, [signal.SIGSTOP])
        timer.start()
        begun = time.monotonic()
        items += trace.detach()
        assert time.monotonic() - begun < 20  # Frida's answer was waited for once, for 40 s
        timer.join()
        time.sleep(0.05)
        assert state_of(process.pid) == "T"
        assert code_of(process.pid, items) != patched
        process.send_signal(signal.SIGCONT)
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


def test_the_worker_leaves_in_good_order_when_the_tracer_is_killed(tmp_path: Path) -> None:
    with running(busy(), "4") as process:
        log = tmp_path / "log"
        with subprocess.Popen(
            sqltrace_command("attach", "--backend", "frida", "-p", str(process.pid), "-o", str(log)),
            stderr=subprocess.DEVNULL,
        ) as tracer:
            end = time.monotonic() + 20
            while b'"statement"' not in (log.read_bytes() if log.exists() else b"") and time.monotonic() < end:
                time.sleep(0.1)
            tracer.kill()
        time.sleep(1)
        items, _ = observe([process.pid], 0.1)  # would find a patch where the code should be
        assert len(statements(items))
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


def as_nobody(*command: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, **kwargs
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@needs_root
def test_an_ordinary_user_joins_an_own_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    with running(busy(), "2", user=NOBODY) as process:
        command = sqltrace_command(
            "attach", "--backend", "frida", "-p", str(process.pid), "--duration", "0.5s", "-o", "-"
        )
        done = as_nobody(*command, cwd="/", env=environment(HOME="/", XDG_CACHE_HOME="/nonexistent"), timeout=60)
        assert done.returncode == 0, done.stderr
        log.write_text(done.stdout)
        events = read_log(log)
        assert sum(e["event"] == "statement" for e in events) > 100
        out, code = finish(process)
        assert out.startswith("fine ")
        assert code == 7


@needs_root
def test_an_ordinary_user_runs_a_command() -> None:
    command = sqltrace_command("run", "--backend", "frida", "-o", "-", "--", "sqlite3", ":memory:", "select 1;")
    done = as_nobody(*command, cwd="/", env=environment(HOME="/", XDG_CACHE_HOME="/nonexistent"), timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"sql":"select 1;"' in done.stdout


@needs_root
def test_somebody_elses_process_is_refused_with_the_remedy() -> None:
    with running(busy(), "1") as process:
        command = sqltrace_command("attach", "--backend", "frida", "-p", str(process.pid))
        done = as_nobody(*command, cwd="/", env=environment(HOME="/"), timeout=60)
        assert done.returncode == 125
        assert (
            f"cannot attach to pid {process.pid}: it belongs to user root. Run as that user, or with sudo."
            in done.stderr
        )
        assert "Traceback" not in done.stderr


def test_a_static_process_is_refused_and_lives() -> None:
    with running(busy_static(), "1") as process:
        with pytest.raises(TargetError, match=r"statically linked, and Frida would kill it\. Use --backend bcc"):
            FridaBackend().attach([process.pid], sqlite_in, Options())
        assert finish(process)[1] == 7


def test_a_process_without_sqlite_is_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            time.sleep(0.1)
            with pytest.raises(NoSQLiteError, match=rf"no SQLite in process {process.pid} \(sleep\)"):
                FridaBackend().attach([process.pid], sqlite_in, Options())
        finally:
            process.kill()


def test_a_process_that_is_traced_already_is_refused() -> None:
    with (
        running(busy(), "1") as process,
        subprocess.Popen(
            ["strace", "-qq", "-e", "trace=none", "-p", str(process.pid)], stderr=subprocess.DEVNULL
        ) as strace,
    ):
        try:
            end = time.monotonic() + 5
            while "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text() and time.monotonic() < end:
                time.sleep(0.05)
            with pytest.raises(TargetError, match=r"\(strace\) traces it already"):
                FridaBackend().attach([process.pid], sqlite_in, Options())
        finally:
            strace.terminate()


def test_a_process_that_sqltrace_observes_already_is_refused() -> None:
    with running(busy(), "2") as process:
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        with pytest.raises(TargetError, match="another sqltrace observes it already"):
            FridaBackend().attach([process.pid], sqlite_in, Options())
        assert len(statements([*trace.drain(0.2), *trace.detach()])) > 10
        assert finish(process)[1] == 7


def test_a_pid_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(TargetError, match=r"there is no process 4194303\."):
        FridaBackend().attach([4194303], sqlite_in, Options())


def test_a_library_that_came_unnoticed_is_hooked_late_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time\nprint('ready', flush=True)\ninput()\n"
        "import sqlite3\nc = sqlite3.connect(':memory:')\nend = time.time() + 4\n"
        "while time.time() < end: c.execute('select 1').fetchall()"
    )
    monkeypatch.setattr(Finder, "anything_in", lambda *_: True)  # it has none yet
    with running(PYTHON, "-c", code) as process:
        assert process.stdin
        trace = FridaBackend().attach([process.pid], sqlite_in, Options())
        # As if another tracer's breakpoint were on the loader: the agent's questions get no answer that helps.
        monkeypatch.setattr(Observed, "loaded", lambda *_: None)
        process.stdin.write("\n")
        process.stdin.flush()
        items: list[Item] = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            items += trace.drain(0.1)
        items += trace.detach()
        assert [r.reason for r in items if isinstance(r, Refused)] == [
            f"{next(p.path for p in items if isinstance(p, Probed))} was loaded unnoticed: "
            "what it did until now was not seen."
        ]
        assert len(statements(items)) > 100
        assert finish(process)[1] == 0
