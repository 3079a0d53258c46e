"""SQLite inside an addon that Node loads while it runs: every statement is seen, from the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.parity.compare import check_stream, read_lines, statements
from tests.support.node_sqlite import SCRIPT, NodeMissingError, better_sqlite3


@pytest.fixture(scope="module")
def node_path() -> str:
    try:
        return str(better_sqlite3())
    except NodeMissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.timeout(600)  # the addon may have to be compiled first
@pytest.mark.parametrize(
    "backend", [pytest.param("bcc", marks=pytest.mark.bcc), pytest.param("frida", marks=pytest.mark.frida)]
)
def test_every_statement_of_a_node_addon_is_seen(backend: str, node_path: str, tmp_path: Path) -> None:
    log = tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "sqltrace", "run", "--backend", backend, "-o", str(log), "--"]
    done = subprocess.run(
        [*command, "node", SCRIPT, tmp_path / "node.db", "150"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NODE_PATH": node_path},
    )
    executed = json.loads(done.stdout)
    events = read_lines(log)
    assert check_stream(events) == []
    seen = Counter(
        (event["sql"].split()[0], event["rc_name"], event["end"])
        for event in statements(events)
        if not event["internal"]
    )
    assert seen == {
        ("CREATE", "DONE", "done"): 1,
        ("BEGIN", "DONE", "done"): 1,
        ("COMMIT", "DONE", "done"): 1,
        ("INSERT", "DONE", "done"): executed["insert"],
        ("SELECT", "DONE", "done"): executed["select"],
        ("SELECT", "ROW", "reset"): executed["stopped"],
        ("INSERT", "CONSTRAINT_UNIQUE", "error"): executed["failed"],
    }
    assert {event["db"] for event in statements(events)} == {str(tmp_path / "node.db")}
