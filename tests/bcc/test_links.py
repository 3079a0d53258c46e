"""Kernels before 6.6 have no uprobe_multi links: one perf event for each probe does the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bcc

WITHOUT_MULTI = """
import sys
from sqltrace.backends.bcc.program import ProbeObject
from sqltrace.cli import main

load = ProbeObject._load
ProbeObject._load = lambda self, name, *, multi: False if multi else load(self, name, multi=False)
sys.exit(main(sys.argv[1:]))
"""


def test_probes_work_without_multi_links(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["run", "--backend", "bcc", "-o", str(log), "--", "sqlite3", ":memory:", "SELECT 1; SELECT 2"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MULTI, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n2\n"), done.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["sql"] for e in events if e["event"] == "statement" and not e["internal"]] == ["SELECT 1;", "SELECT 2"]
    assert events[-1]["hits"] == events[-1]["emitted"]
