"""The books of the bcc backend: what is left out, lost or forgotten in the kernel is counted, none is mixed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from sqltrace.backends.base import Options
from sqltrace.backends.bcc import BccBackend
from sqltrace.events.model import Event, Statement
from sqltrace.filters import Conditions
from sqltrace.resolve.query import sqlite_in
from sqltrace.session import Limits, Session, Totals
from tests.conftest import Traced

pytestmark = [pytest.mark.bcc, pytest.mark.filterwarnings("ignore:not a bytes object")]
Trace = Callable[..., Traced]

ERRORS = """
import sqlite3
c = sqlite3.connect("a.db", isolation_level=None)
c.execute("CREATE TABLE t(a UNIQUE)")
d = sqlite3.connect("b.db", isolation_level=None)
d.execute("CREATE TABLE u(a)")
for n in range(300):
    try:
        c.execute("INSERT INTO t VALUES(?)", (n % 100,))
    except sqlite3.IntegrityError:
        pass
    d.execute("SELECT ?", (n,)).fetchall()
    d.execute("INSERT INTO u VALUES(?)", (n,))
"""


class Collector:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Statement] = []
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def statements(self, statements: Iterable[Statement]) -> None:
        self.seen += statements

    def flush(self) -> None: ...
    def close(self) -> None: ...


def observe(script: str, options: Options, conditions: Conditions | None = None) -> tuple[Totals, list[Statement]]:
    """Run a script of Python with options that the command line does not offer."""
    sink = Collector()
    session = Session("bcc", sink, limits=Limits(), conditions=conditions or Conditions(), options={})
    trace = BccBackend().run(["/usr/bin/python3", "-c", script], sqlite_in, options)
    totals = session.follow(trace)
    trace.wait()
    return totals, sink.seen


def balanced(totals: Totals) -> bool:
    lost = sum(n for (kind, _), n in totals.lost.items() if kind == "statement")
    return totals.hits == totals.statements + totals.filtered + lost


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(errors_only=True),
        Conditions(db=("a.db",)),
        Conditions(sql="^select"),
        Conditions(sql="insert", db=("a.db",), errors_only=True),
    ],
    ids=["errors", "database", "text", "all"],
)
def test_the_kernel_leaves_out_what_user_space_would(
    conditions: Conditions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for number, options in enumerate(
        (Options(), Options(errors_only=conditions.errors_only, muting=conditions.about_text))
    ):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        totals, seen = observe(ERRORS, options, conditions)
        assert balanced(totals)
        results.append(
            (totals.hits, totals.filtered, [(s.prepared.sql, s.rc, s.rows, s.changes, s.bound_bytes) for s in seen])
        )
    assert results[0] == results[1]
    assert len(results[0][2]) >= 200, "there is something to keep"
    assert results[0][1] >= 300, "and something to leave out"


def test_what_the_kernel_leaves_out_is_not_written_to_the_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = (
        "import sqlite3\nc = sqlite3.connect(':memory:')\n"
        "for n in range(100_000):\n    c.execute('SELECT ?', (n,)).fetchall()\n"
    )
    conditions = Conditions(min_duration=10.0)
    options = Options(ring_bytes=64 << 10, min_duration_ns=conditions.min_duration_ns)
    totals, seen = observe(script, options, conditions)
    assert (totals.lost, seen) == ({}, []), "a ring of 64 KiB holds 480 records"
    assert totals.hits == totals.filtered >= 100_000


def test_the_kernel_decides_durations_as_user_space_does(trace: Trace) -> None:
    script = (
        "import sqlite3, time\nc = sqlite3.connect(':memory:')\nc.create_function('nap', 1, time.sleep)\n"
        "for n in range(40):\n    c.execute('SELECT nap(?)', (n % 2 * 0.02,)).fetchall()\n"
    )
    t = trace("bcc", "/usr/bin/python3", "-c", script, options=("--min-duration", "15ms"))
    assert len(t.statements) >= 20
    assert all(s["duration_us"] >= 15_000 for s in t.statements)
    assert t.end["hits"] == t.end["emitted"] + t.end["filtered"] >= 40


MANY = """
import sqlite3
c = sqlite3.connect(":memory:", cached_statements=2000)
rows = []
for again in range(2):
    for n in range(1200):
        c.execute(f"SELECT {n}").fetchall()
"""


def test_a_statement_table_that_is_too_small_is_said_and_mixes_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    totals, seen = observe(MANY, Options(statements=256))
    assert totals.evicted["statements"] > 1000
    user = [s for s in seen if not s.internal]
    assert [s.prepared.sql for s in user] == [f"SELECT {n}".encode() for n in range(1200)] * 2
    assert balanced(totals)
    assert totals.lost_count == 0


def test_a_running_statement_that_had_to_make_room_is_lost_or_incomplete_and_never_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = (
        "import sqlite3\nc = sqlite3.connect(':memory:')\nopen_ones = []\n"
        "for n in range(1500):\n"
        "    open_ones.append(c.execute(f'SELECT {n} UNION ALL SELECT 1 UNION ALL SELECT 2'))\n"
        "    next(open_ones[-1])\n"
        "for cursor in open_ones:\n    cursor.fetchall()\n"
    )
    totals, seen = observe(script, Options(statements=256))
    assert totals.lost["statement", "evicted"] > 1000
    assert balanced(totals)
    for s in seen:
        if not s.internal and not s.incomplete:
            assert s.rows == 3


def test_more_threads_than_are_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = (
        "import sqlite3, threading\nbarrier = threading.Barrier(8)\n"
        "def work(n):\n"
        "    c = sqlite3.connect(':memory:')\n    c.execute(f'SELECT {n}').fetchall()\n    barrier.wait()\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\n"
    )
    totals, seen = observe(script, Options(threads=4))
    assert totals.lost["step", "too_many_threads"] > 0
    assert balanced(totals)
    assert 0 < len([s for s in seen if not s.internal]) < 8
