from __future__ import annotations

import pytest

from sqltrace.events.redact import redact_keys


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA key = 'secret'",
        "pragma key='secret';",
        'PRAGMA main.key = "secret"',
        "PRAGMA /* hm */ rekey('secret')",
        "PRAGMA hexkey='736563726574secret'",
        "PRAGMA -- c\n key = secret",
        "ATTACH DATABASE 'file.db' AS enc KEY 'secret'",
        "attach 'a;b' as x key \"secret\"; select 1",
    ],
)
def test_encryption_keys_are_replaced(sql: str) -> None:
    out = redact_keys(sql.encode()).decode()
    assert "secret" not in out
    assert "?" in out


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT key FROM t",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        "PRAGMA foreign_keys = ON",
        "PRAGMA foreign_key_list(t)",
        "ATTACH 'x.db' AS y",
        "INSERT INTO keys VALUES('pragma')",
    ],
)
def test_other_statements_are_left_alone(sql: str) -> None:
    assert redact_keys(sql.encode()) == sql.encode()


def test_statements_around_the_key_stay() -> None:
    assert redact_keys(b"PRAGMA key='s'; SELECT 1") == b"PRAGMA key= ?; SELECT 1"
