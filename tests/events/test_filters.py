from __future__ import annotations

import pytest

from sqltrace.errors import UsageError
from sqltrace.events.model import Prepared, Process, Statement
from sqltrace.filters import Conditions, Filter

ME = Process(1, 1, 0, 0, "c", None, (), None, None, "c")


def statement(
    sql: bytes | None = b"SELECT 1", db: bytes | None = b"/home/a/x.db", ns: int = 0, rc: int = 101
) -> Statement:
    return Statement(ME, Prepared(db, 1, 2, sql, 0, False, False), 1, 0, ns, 0, 0, 0, 0, rc, *([0] * 9))


def kept(conditions: Conditions, *statements: Statement) -> list[bool]:
    f = Filter(conditions)
    result = [bool(list(f.keep([s]))) for s in statements]
    assert f.dropped == result.count(False)
    return result


def test_a_pattern_without_a_slash_is_about_the_name() -> None:
    databases = [b"/home/a/x.db", b"/home/x.db/other", b":memory:", None, b"x.db"]
    assert kept(Conditions(db=("*.db",)), *(statement(db=d) for d in databases)) == [True, False, False, False, True]


def test_a_pattern_with_a_slash_is_about_the_path() -> None:
    assert kept(Conditions(db=("/home/*",)), statement(), statement(db=b"/tmp/x.db")) == [True, False]


def test_several_patterns_are_alternatives() -> None:
    assert kept(Conditions(db=(":memory:", "x*")), statement(), statement(db=b":memory:")) == [True, True]


def test_the_text_is_matched_in_any_case() -> None:
    texts = [b"insert into T values(1)", b"SELECT 1", None]
    assert kept(Conditions(sql="^INSERT"), *(statement(t) for t in texts)) == [True, False, False]


def test_durations_and_errors() -> None:
    assert kept(Conditions(min_duration=0.01), statement(ns=10_000_000), statement(ns=9_999_999)) == [True, False]
    assert kept(Conditions(errors_only=True), *(statement(rc=c) for c in (101, 100, 0, 5, 2067))) == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_all_conditions_must_hold() -> None:
    conditions = Conditions(sql="select", errors_only=True)
    assert kept(conditions, statement(rc=5), statement(b"INSERT", rc=5), statement()) == [True, False, False]


def test_a_bad_expression_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        Filter(Conditions(sql="("))
