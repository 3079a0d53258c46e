"""The comparer finds what is wrong: events made up from an oracle's lines, then spoilt in one place each."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.parity.compare import (
    Line,
    check_oracle,
    check_stream,
    compare,
    compare_backends,
    report,
    with_thread_numbers,
)


def line(tid: int, sql: str | None, **fields: Any) -> Line:
    """Return one execution as the oracle writes it."""
    return {
        "record": "execution",
        "case": "made up",
        "source": "program",
        "thread": tid - 100,
        "tid": tid,
        "conn": tid,
        "stmt": None,
        "db": "/x/a.db",
        "sql": sql,
        "sql_bytes": len(sql or ""),
        "vars": 1,
        "bound_bytes": 8,
        "rows": 2,
        "changes": 0,
        "rc": 101,
        "end": "done",
        "fullscan_steps": 1,
        "sorts": 0,
        "autoindexes": 0,
        "vm_steps": 10,
        "reprepares": 0,
        "filter_hits": 0,
        "filter_misses": 0,
        "autocommit": True,
        "internal": False,
        "late": False,
        "profiles": 1,
    } | fields


ORACLE = [
    line(100, "CREATE TABLE t(a)", stmt=1, rows=0),
    line(100, "SELECT a FROM t", stmt=2),
    line(100, "SELECT a FROM t", stmt=2, rows=1, rc=100, end="reset"),
    line(100, "REPLACE INTO fts_data", internal=True, rows=0, bound_bytes=None, changes=1, profiles=2),
    line(100, "SELECT data FROM fts_data", internal=True, rc=100, end="stopped"),
    line(100, "INSERT INTO t VALUES(?)", stmt=3, rows=0, rc=2067, end="error"),
    line(100, "SELECT 'abort'", rc=100, end="unseen", late=True, vm_steps=None, changes=None, autocommit=None),
    line(100, "SELECT 'after'", stmt=4, autocommit=False),
    line(101, "SELECT 1", stmt=5),
    line(101, "SELECT 'left'", stmt=6, rc=100, end="exit", late=True),
]

NAMES = {100: "ROW", 101: "DONE", 2067: "CONSTRAINT_UNIQUE"}


def event(wanted: Line) -> Line:
    """Return the statement event that a perfect tracer writes for this execution."""
    known = {"bound_bytes": 16, "vm_steps": 5, "changes": 0, "autocommit": True}
    fields = {name: known.get(name) if value is None else value for name, value in wanted.items()}
    return fields | {
        "event": "statement",
        "end": {"stopped": "finalize"}.get(wanted["end"], wanted["end"]),
        "rc_name": NAMES[wanted["rc"]],
        "in_bytes": fields["sql_bytes"] + fields["bound_bytes"],
        "sql_truncated": False,
        "incomplete": wanted["end"] == "unseen",
        "conn": wanted["conn"] + 0x5000,
        "stmt": (wanted["stmt"] or 0) + 0x7000,
        "duration_us": 3.5,
        "step_us": 2.5,
    }


def events(lines: list[Line] = ORACLE) -> list[Line]:
    return [event(wanted) for wanted in lines]


def stream(inner: list[Line]) -> list[Line]:
    whole = [
        {"event": "session_start"},
        *copy.deepcopy(inner),
        {"event": "session_end", "hits": len(inner), "emitted": len(inner), "filtered": 0, "lost": []},
    ]
    return [{**item, "seq": i, "session": "s"} for i, item in enumerate(whole)]


def test_a_perfect_trace_has_no_differences() -> None:
    assert compare(ORACLE, events()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 3),
        ("rc", 1),
        ("rc_name", "ERROR"),
        ("changes", 1),
        ("vars", 2),
        ("bound_bytes", 9),
        ("in_bytes", 1),
        ("sql_bytes", 1),
        ("fullscan_steps", 0),
        ("sorts", 1),
        ("autoindexes", 1),
        ("vm_steps", 11),
        ("reprepares", 1),
        ("filter_hits", 1),
        ("filter_misses", 1),
        ("autocommit", False),
        ("end", "finalize"),
        ("incomplete", True),
        ("db", "/x/b.db"),
        ("step_us", 4.5),
        ("sql_truncated", True),
    ],
)
def test_a_wrong_field_is_found_and_named(field: str, value: Any) -> None:
    spoilt = events()
    spoilt[1][field] = value
    found = compare(ORACLE, spoilt)
    assert field in {d.field for d in found}
    assert all("SELECT a FROM t" in d.where for d in found)


def test_every_event_that_is_missing_is_found() -> None:
    for i, wanted in enumerate(ORACLE):
        spoilt = events()
        del spoilt[i]
        found = compare(ORACLE, spoilt)
        assert [d.field for d in found] == [None], wanted
        assert str(wanted["sql"]) in str(found[0])
        assert "missing" in str(found[0])


def test_an_event_too_many_is_found() -> None:
    for i in range(len(ORACLE)):
        spoilt = events()
        spoilt.insert(i, copy.deepcopy(spoilt[i]))
        found = compare(ORACLE, spoilt)
        assert [(d.field, d.oracle) for d in found] == [(None, None)]
        assert "in the trace only" in str(found[0])


def test_one_missing_event_does_not_hide_a_wrong_one_behind_it() -> None:
    spoilt = events()
    spoilt[7]["rows"] = 99
    del spoilt[0]
    assert [d.field for d in compare(ORACLE, spoilt)] == [None, "rows"]


def test_executions_of_one_statement_in_the_wrong_order_are_found() -> None:
    spoilt = events()
    spoilt[1], spoilt[2] = spoilt[2], spoilt[1]
    assert {d.field for d in compare(ORACLE, spoilt)} >= {"rows", "rc", "end"}


def test_order_between_threads_is_free() -> None:
    mixed = events()
    mixed = mixed[8:] + mixed[:8]
    assert compare(ORACLE, mixed) == []


def test_an_event_of_the_wrong_thread_is_found() -> None:
    spoilt = events()
    spoilt[8]["tid"] = 100
    assert [d.field for d in compare(ORACLE, spoilt)] == [None, None]


def test_an_unknown_thread_is_found() -> None:
    assert compare(ORACLE, [*events(), event(line(555, "SELECT 1"))]) != []


def test_an_end_out_of_sight_may_come_late_or_at_once() -> None:
    late = events()
    late.append(late.pop(6))
    assert compare(ORACLE, late) == []
    at_once = events()
    at_once[6] |= {"end": "finalize", "incomplete": False}
    assert compare(ORACLE, at_once) == []
    never = events()
    del never[6]
    assert compare(ORACLE, never) != []


def test_ends_out_of_sight_come_in_any_order() -> None:
    oracle = [line(100, "SELECT 'abort'", rows=n, rc=100, end="unseen", late=True) for n in (1, 2, 3)]
    seen = events(oracle)
    assert compare(oracle, [seen[2], seen[0], seen[1]]) == []
    assert [d.field for d in compare(oracle, [seen[2] | {"rows": 4}, seen[0], seen[1]])] == ["rows"]


def test_a_program_statement_taken_for_an_internal_one_is_found() -> None:
    for i in (1, 4):
        spoilt = events()
        spoilt[i]["internal"] = not spoilt[i]["internal"]
        assert compare(ORACLE, spoilt) != []


def test_what_vacuum_runs_is_not_expected_of_the_oracle() -> None:
    oracle = [line(100, "SELECT 1"), line(100, "VACUUM"), line(100, "SELECT 2")]
    inner = event(line(100, "BEGIN", internal=True))
    seen = events(oracle)
    assert compare(oracle, [seen[0], inner, *seen[1:]]) == []
    assert compare(oracle, [*seen[:2], inner, seen[2]]) != []


def test_a_schema_load_may_come_anywhere_but_a_blob_handle_must_come() -> None:
    load = event(line(100, None, internal=True, vars=0, bound_bytes=0, rows=7))
    assert compare(ORACLE, [load, *events()]) == []
    blob = line(100, None, internal=True, vars=None, bound_bytes=None, rows=1, rc=100, end="finalize")
    assert compare([*ORACLE, blob], [load, *events()]) != []
    handle = load | {"rows": 1, "rc": 100, "rc_name": "ROW", "end": "finalize"}
    assert compare([*ORACLE, blob], [handle, load, *events()]) == []


def test_one_statement_under_two_names_is_found() -> None:
    spoilt = events()
    spoilt[2]["stmt"] = 0x9999
    assert [d.field for d in compare(ORACLE, spoilt)] == ["stmt"]
    spoilt = events()
    spoilt[7]["conn"] = 0x9999
    assert {d.field for d in compare(ORACLE, spoilt)} == {"conn"}


def test_a_cut_text_is_right_only_when_it_is_long_and_begins_alike() -> None:
    sql = "SELECT '" + "x" * 1_200_000 + "'"
    oracle = [line(100, sql)]
    cut = event(oracle[0]) | {"sql": sql[: 1 << 20], "sql_truncated": True}
    assert compare(oracle, [cut]) == []
    assert [d.field for d in compare(oracle, [cut | {"sql": sql[: 1 << 20] + "z"}])] == ["sql_truncated"]
    assert [d.field for d in compare(oracle, [cut | {"sql_truncated": False}])] == ["sql"]


def test_backends_are_compared_in_every_field_but_names_and_times() -> None:
    one = with_thread_numbers(ORACLE, events())
    moved = [wanted | {"tid": wanted["tid"] + 7000} for wanted in ORACLE]
    other = with_thread_numbers(moved, [e | {"conn": 1, "stmt": 2, "duration_us": 9.0} for e in events(moved)])
    assert compare_backends(one, other) == []
    other[3]["bound_bytes"] += 1  # where the oracle knows nothing, the backends must still agree
    assert [d.field for d in compare_backends(one, other)] == ["bound_bytes"]
    assert compare_backends(one, other[1:]) != []


def test_the_books_of_a_stream_are_checked() -> None:
    good = stream(events())
    assert check_stream(good) == []
    assert check_stream(good[:-1]) != []
    assert check_stream([*good[:3], *good[4:]]) != []
    for field, value in [("hits", 11), ("emitted", 9), ("filtered", 1)]:
        assert check_stream([*good[:-1], good[-1] | {field: value}]) != [], field
    lost = [{"type": "statement", "reason": "ring full", "count": 5}]
    assert check_stream([*good[:-1], good[-1] | {"lost": lost}]) != []
    assert check_stream([*good[:-1], good[-1] | {"lost": lost, "hits": len(ORACLE) + 5}]) == []


def test_an_oracle_that_missed_an_execution_is_found() -> None:
    lines = [line(100, "SELECT 1"), line(100, "SELECT 1"), line(100, "SELECT 2")]
    tail = [
        {"record": "profile", "sql": "SELECT 1", "count": 2},
        {"record": "profile", "sql": "SELECT 2", "count": 1},
        {"record": "end", "executions": 3, "trace": True},
    ]
    assert check_oracle(lines + tail) == []
    tail[-1]["executions"] = 2
    assert check_oracle([*lines[1:], *tail]) == ["SELECT 1: 2 PROFILE callbacks, 1 recorded"]
    assert check_oracle(lines[1:]) != []


def test_a_report_counts_before_it_lists() -> None:
    spoilt = events()
    for each in spoilt:
        each["rows"] += 1
    text = report(compare(ORACLE, spoilt), limit=3)
    assert text.startswith("10 differences: 10 rows")
    assert text.endswith("... and 7 more")
