"""The fast path writes exactly what structlog's JSON renderer would have written."""

from __future__ import annotations

import dataclasses
import io
import json

import msgspec
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sqltrace.events.clock import Timestamps
from sqltrace.events.model import Event, Prepared, Process, Statement, fragment
from sqltrace.sinks.jsonl import JsonLines, render_json

processes = st.builds(
    Process,
    pid=st.integers(1, 2**22),
    ns_pid=st.integers(1, 2**22),
    uid=st.none() | st.integers(0, 2**32 - 1),
    gid=st.none() | st.integers(0, 2**32 - 1),
    comm=st.text(max_size=16),
    exe=st.none() | st.text(max_size=40),
    cmdline=st.lists(st.text(max_size=10), max_size=4).map(tuple),
    cgroup=st.none() | st.text(max_size=20),
    cgroup_id=st.none() | st.integers(0, 2**63),
    service=st.text(max_size=10),
)
prepareds = st.builds(
    Prepared,
    db=st.none() | st.binary(max_size=30) | st.text(max_size=30).map(str.encode),
    conn=st.integers(0, 2**64 - 1),
    stmt=st.integers(0, 2**64 - 1),
    sql=st.none() | st.binary(max_size=50) | st.text(max_size=50).map(str.encode),
    sql_bytes=st.integers(0, 2**40),
    truncated=st.booleans(),
    lost=st.booleans(),
)
u32 = st.integers(0, 2**32 - 1)
statements = st.builds(
    Statement,
    process=processes,
    prepared=prepareds,
    tid=u32,
    end_ns=st.integers(0, 2**62),
    duration_ns=st.integers(0, 2**50),
    step_ns=st.integers(0, 2**50),
    flags=st.integers(0, 6).flatmap(lambda end: st.integers(0, 15).map(lambda f: end | f << 4)),
    vars=u32,
    bound_bytes=st.integers(0, 2**40),
    rc=st.sampled_from([0, 1, 5, 19, 100, 101, 2067, 64001, -5]),
    rows=st.integers(0, 2**63),
    changes=st.integers(-(2**63), 2**63 - 1),
    fullscan_steps=u32,
    sorts=u32,
    autoindexes=u32,
    vm_steps=u32,
    reprepares=u32,
    filter_hits=u32,
    filter_misses=u32,
)


def with_json(s: Statement) -> Statement:
    return msgspec.structs.replace(
        s,
        process=dataclasses.replace(s.process, json=fragment(s.process.fields())),
        prepared=dataclasses.replace(s.prepared, json=fragment(s.prepared.fields())),
    )


class Stream(io.BytesIO):
    def close(self) -> None:
        self.text = self.getvalue().decode()


@given(st.lists(statements, max_size=3))
def test_statement_lines_are_what_structlog_would_have_written(batch: list[Statement]) -> None:
    stream = Stream()
    sink = JsonLines(stream, "0123abcd")
    sink.statements(map(with_json, batch))
    sink.close()
    renderer = structlog.processors.JSONRenderer(serializer=render_json)
    expected = [
        renderer(
            None,
            "msg",
            {
                "event": "statement",
                "timestamp": Timestamps().format(s.end_ns),
                "seq": seq,
                "session": "0123abcd",
                **s.fields(),
            },
        )
        for seq, s in enumerate(batch)
    ]
    assert stream.text.split("\n")[:-1] == expected


def test_seq_has_no_gap_over_all_kinds_of_events() -> None:
    stream = Stream()
    sink = JsonLines(stream, "s")
    s = with_json(
        Statement(
            Process(1, 1, 0, 0, "c", None, (), None, None, "c"),
            Prepared(b"db", 1, 2, b"SELECT 1", 8, False, False),
            *([0] * 17),
        )
    )
    sink.event(Event("session_start", 1, {"schema": 1}))
    sink.statements([s, s])
    sink.event(Event("lost", 2, {"type": "text", "reason": "ring_full", "count": 3}))
    sink.statements([s])
    sink.close()
    lines = [json.loads(line) for line in stream.text.splitlines()]
    assert [e["seq"] for e in lines] == [0, 1, 2, 3, 4]
    assert [e["event"] for e in lines] == ["session_start", "statement", "statement", "lost", "statement"]
    assert list(lines[0])[:4] == ["event", "timestamp", "seq", "session"]


def test_every_field_of_the_schema_is_there() -> None:
    fields = Statement(
        Process(1, 1, 0, 0, "c", None, (), None, None, "c"),
        Prepared(b"db", 1, 2, b"SELECT 1", 8, False, False),
        *([0] * 17),
    ).fields()
    wanted = """
    pid tid ns_pid uid gid comm exe cmdline cgroup cgroup_id service db conn stmt sql sql_bytes sql_truncated
    vars bound_bytes in_bytes rc rc_name rows changes duration_us step_us end fullscan_steps sorts autoindexes vm_steps
    reprepares filter_hits filter_misses autocommit internal incomplete
    """
    assert set(fields) == set(wanted.split())
