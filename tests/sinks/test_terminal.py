from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from sqltrace.events.model import Prepared, Process, Statement
from sqltrace.sinks.terminal import Terminal, duration, printable, wants_colour


class Stream(io.BytesIO):
    def fileno(self) -> int:
        return 1


def statement(sql: bytes | None = b"INSERT INTO user(login) VALUES('x')", comm: str = "fossil") -> Statement:
    return Statement(
        process=Process(
            56296, 56296, 501, 1000, comm, "/usr/bin/fossil", ("fossil", "new", "a"), "/", 0x1746, "fossil"
        ),
        prepared=Prepared(b"/home/x/a", 1, 2, sql, len(sql or b""), False, False),
        tid=1,
        end_ns=0,
        duration_ns=701_900,
        step_ns=0,
        flags=0,
        vars=0,
        bound_bytes=0,
        rc=101,
        rows=0,
        changes=1,
        fullscan_steps=0,
        sorts=0,
        autoindexes=0,
        vm_steps=1,
        reprepares=0,
        filter_hits=0,
        filter_misses=0,
    )


def test_the_four_lines_are_those_that_users_know() -> None:
    assert Terminal(Stream(), colour=False).render(statement()) == (
        "INSERT INTO user(login) VALUES('x')\n"
        "  fossil pid=56296 db=/home/x/a rows=0 rc=101(DONE) t=701.9us\n"
        "  in: sql=35B bound=0B total=35B (vars=0 scanned=0)\n"
        '  app: service=fossil exe=/usr/bin/fossil uid=501 gid=1000 ns_pid=56296 cgroup=0x1746 cmd="fossil new a"\n'
    )


@given(st.binary(max_size=60), st.text(max_size=10))
def test_nothing_from_the_target_controls_the_terminal(sql: bytes, comm: str) -> None:
    text = Terminal(Stream(), colour=False).render(statement(sql, comm))
    assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]


def test_escapes_are_readable() -> None:
    assert printable("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"


def test_sqlites_own_statements_are_hidden_unless_asked_for() -> None:
    hidden, shown = Stream(), Stream()
    Terminal(hidden, colour=False).statements([statement(None)])
    Terminal(shown, colour=False, internal=True).statements([statement(None)])
    assert hidden.getvalue() == b""
    assert b"(SQLite's own)" in shown.getvalue()


def test_colour_follows_no_color_then_force_color_then_the_terminal() -> None:
    assert not wants_colour(1, {"NO_COLOR": "1", "FORCE_COLOR": "1"})
    assert wants_colour(1, {"FORCE_COLOR": "1"})
    assert not wants_colour(99999, {})


def test_durations_have_the_unit_that_fits() -> None:
    assert [duration(n) for n in (900, 701_900, 12_300_000, 2_000_000_000)] == ["0.9us", "701.9us", "12.30ms", "2.00s"]
